"""A fine-tuning killed anywhere goes on to the bit: at named points, and at random moments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.reliability.training_kills import HOW, POINTS, check_end, kill_by_number
from tests.training.fine_tuning import make_settings, run, write_pictures

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
NAMES = [f"{name[16:]}-{when}-{call}" for name, when, call in POINTS]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "discs")


@pytest.fixture(scope="module")
def straight(sd_folder: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(make_settings(sd_folder, pictures, folder, **HOW))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(len(POINTS) + 20), ids=[*NAMES, *(f"random-{seed}" for seed in range(20))]
)
def test_killed_anywhere(
    number: int, straight: Path, sd_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = make_settings(sd_folder, pictures, tmp_path / "run", **HOW)
    kill_by_number(number, settings)
    check_end(straight, tmp_path / "run", run(settings)[1])


def test_killed_after_a_checkpoint(straight: Path, sd_folder: Path, pictures: Path, tmp_path: Path):
    """One of the points, for every day."""
    test_killed_anywhere(12, straight, sd_folder, pictures, tmp_path)
