"""The first hour of fine-tuning, as its script has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_command_of_the_first_hour(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train" / "first_hour.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    without, trained = (
        np.asarray(Image.open(tmp_path / f"{name}.png"), dtype=float)
        for name in ("without", "with")
    )
    assert np.abs(without - trained).mean() > 5, "the LoRA changes the picture"
    assert Image.open(tmp_path / "diffusers.png").size == (64, 64)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
