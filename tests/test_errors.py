"""Warnings point at the line of the caller, not into sdcore."""

from __future__ import annotations

import logging

import pytest

from sdcore import Job, TextToImage
from sdcore.errors import warn


@pytest.fixture(scope="module")
def pipe(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def test_a_warning_points_at_the_callers_line(pipe: TextToImage) -> None:
    long = "a red apple " * 40
    for call in (
        lambda: warn("here"),
        lambda: pipe(long, steps=1),
        lambda: pipe.paint(Job(long, steps=1)),
        lambda: list(pipe.painting(Job(long, steps=1))),
        lambda: pipe.tokenizer and pipe.tokenizer(long),
    ):
        with pytest.warns(UserWarning) as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}


def test_the_library_logs_what_it_does_and_prints_nothing(pipe, caplog, capfd) -> None:
    with caplog.at_level(logging.INFO, logger="sdcore"):
        pipe(["a cat", "a dog"], steps=2, seed=3, progress=False)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "2 images" in said and "3 steps" in said  # pndm looks twice at one of two
    assert capfd.readouterr() == ("", "")
