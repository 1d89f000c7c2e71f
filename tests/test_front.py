"""The picture at the head of the README is what its command makes."""

from __future__ import annotations

import pytest

from docs import front
from docs.book.drawing import alike


@pytest.mark.slow
@pytest.mark.parametrize("language", front.FRONTS)
def test_the_command_leaves_the_picture_as_it_is(language: str) -> None:
    assert alike(front.path_of(language).read_text("utf-8"), front.made(language))


@pytest.mark.parametrize("language", front.FRONTS)
def test_the_picture_shows_each_word(language: str) -> None:
    shown = front.FRONTS[language]
    text = front.path_of(language).read_text("utf-8")
    assert text.count("<image ") == len(shown.words) + 2 and len(text) < 150_000
    for word in (*shown.words, *shown.change):
        assert f">{word}</tspan>" in text
