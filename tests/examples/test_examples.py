"""The examples run as a reader runs them, and do what they say."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcore.app import batch

FOLDER = Path(__file__).parents[2] / "examples"
# What each writes, apart from what it begins from.
WRITES = {
    "paint": "penguin.png rocket.png penguin-large.png rocket-large.png",
    "see_words": "penguin.png left.png apple.png",
    "edit_a_word": "before.png after.png",
    "regions": "regions.png",
    "reweight": "as_it_is.png no_apple.png no_apple_at_first.png",
    "image_to_image": "fox_0.4.png fox_0.8.png lower_half.png",
    "fine_tune_lora": "with.png without.png",
    "attention_by_hand": "",
    "batch_on_ray": "",
}
HALF = slice(64, 128)
APPLE = slice(48, 88), slice(80, 112)


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert {path.name for path in folder.glob("*.png")} == set(WRITES[name].split())


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), float)


def test_every_file_is_short_and_listed() -> None:
    files = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.py")}
    assert set(files) == set(WRITES)
    assert not [name for name, text in files.items() if text.count("\n") > 40]
    listed = (FOLDER / "README.md").read_text("utf-8")
    assert not [name for name in files if f"({name}.py)" not in listed]


def test_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("paint", tmp_path, monkeypatch)
    red, green, blue = levels(tmp_path / "rocket.png")[:4].mean((0, 1))
    assert red > 200 and green > 180 and blue < 160, "the background is yellow"


def test_see_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("see_words", tmp_path, monkeypatch)
    bright = {name: levels(tmp_path / f"{name}.png")[..., 0] for name in ("penguin", "apple")}
    assert bright["penguin"][:, :128].max() > bright["penguin"][:, 128:].max()
    assert bright["apple"][:, :128].max() < bright["apple"][:, 128:].max()
    assert "%  penguin" in capsys.readouterr().out


def test_edit_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("edit_a_word", tmp_path, monkeypatch)
    apart = np.abs(levels(tmp_path / "before.png") - levels(tmp_path / "after.png")).mean((0, 2))
    assert apart[:64].mean() > 4 * apart[HALF].mean(), "the apple on the right stays"


def test_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("regions", tmp_path, monkeypatch)
    red, _, blue = levels(tmp_path / "regions.png")[APPLE].mean((0, 1))
    assert red > blue, "the apple is on the right"


def test_reweight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("reweight", tmp_path, monkeypatch)
    as_it_is, without = (levels(tmp_path / f"{name}.png") for name in ("as_it_is", "no_apple"))
    red = [each[APPLE][..., 0].mean() - each[APPLE][..., 2].mean() for each in (as_it_is, without)]
    assert red[0] > red[1] + 30, "the red of the apple goes"


def test_image_to_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("image_to_image", tmp_path, monkeypatch)
    low, high = (levels(tmp_path / f"fox_{strength}.png") for strength in (0.4, 0.8))
    assert np.abs(low - high).mean() > 1


def test_fine_tune_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("fine_tune_lora", tmp_path, monkeypatch, "3")
    without, trained = (levels(tmp_path / f"{name}.png") for name in ("without", "with"))
    assert np.abs(without - trained).mean() > 0.1


def test_attention_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("attention_by_hand", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    row, column = said.rstrip(")\n").rsplit("(", 1)[1].split(", ")
    assert int(column) >= 4 and 2 <= int(row) <= 5
    assert float(said.split(" apart")[0].rsplit(" ", 1)[1]) < 1e-2


@pytest.mark.slow
def test_batch_on_ray_is_sdcore_batch(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_once: None
) -> None:
    """Two actors write the files of one process; what is missing of either is painted by either."""
    pytest.importorskip("ray")
    jobs, whole, out = tmp_path / "jobs.txt", tmp_path / "whole", tmp_path / "out"
    lines = ["a red fox --s 3 --d 11", "a cat", "a dog --w 48 --h 64", "a tree", "an apple"]
    jobs.write_text("\n".join([*lines, "a cat --nothing 1"]))
    flags = [str(jobs), "--model", str(sd_folder), "--steps", "2", "--output"]

    def on_ray(code: int) -> str:
        with tempfile.TemporaryDirectory(prefix="ray") as short:  # sockets have short names
            process = subprocess.run(
                [sys.executable, str(FOLDER / "batch_on_ray.py"), *flags, str(out)],
                env=os.environ | {"PYTHONPATH": str(FOLDER.parent), "RAY_TMPDIR": short},
                capture_output=True,
                text=True,
                timeout=240,
            )
        assert process.returncode == code, process.stderr
        return process.stderr

    assert batch.main([*flags, str(whole)]) == 2
    assert "1 of 1 jobs could not be painted" in on_ray(1)  # --nothing
    assert pictures(out) == pictures(whole) and len(pictures(out)) == len(lines)
    assert told(out) == told(whole)
    there = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    path = there.popitem()[0]
    path.unlink()
    jobs.write_text("\n".join(lines))
    on_ray(0)
    assert pictures(out) == pictures(whole)
    assert there == {path: path.stat().st_mtime_ns for path in there}
    path.unlink()
    assert batch.main([*flags, str(out)]) == 0
    assert pictures(out) == pictures(whole)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: levels(path).tobytes() for path in folder.glob("*.png")}


def told(folder: Path) -> dict[str, str]:
    """File and hash, from the lines beside the pictures."""
    text = "".join(path.read_text() for path in folder.glob("batch*.jsonl"))
    return {line["file"]: line["sha256"] for line in map(json.loads, text.splitlines())}
