"""How commands end: by signals, and where their streams take nothing more or cannot show a text."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sdcore.app import batch, edit, explain, inspect, paint
from sdcore.errors import SdcoreError, visible
from sdcore.files.atomic import write_new

ROOT = Path(__file__).parents[2]
INSPECT = [sys.executable, str(ROOT / "sample" / "inspect_model.py")]
PAINT = [sys.executable, str(ROOT / "sample" / "text_to_image.py")]
FULL = Path("/dev/full")


def shell(command: list[str], *, output: str, **environment: str) -> tuple[int, str, str]:
    """A command whose standard output goes into `output` of a shell: exit code, and what that and
    standard error say."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {output}; exit ${{PIPESTATUS[0]}}', "bash", *command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("flags", [["--help"], ["{model}"], ["{model}", "--json"]])
def test_a_reader_that_has_read_enough(sd_folder: Path, flags: list[str]) -> None:
    command = [*INSPECT, *(flag.format(model=sd_folder) for flag in flags)]
    # `true` may end before or after the text is written, which fits into a pipe.
    code, said, err = shell(command, output="| (exec <&-; sleep 2)")
    assert (code, said, err) == (141, "", "")
    code, said, err = shell(command, output="| head -1")
    assert code in (0, 141) and said and not err


@pytest.mark.skipif(not FULL.exists(), reason="a file of Linux")
@pytest.mark.parametrize("flags", [["{model}"], ["{model}", "--json"]])
def test_a_full_disk_behind_standard_output_is_named(sd_folder: Path, flags: list[str]) -> None:
    command = [*INSPECT, *(flag.format(model=sd_folder) for flag in flags)]
    code, _, err = shell(command, output=f"> {FULL}")
    assert code == 3 and err.startswith("error: What is printed could not be") and "No space" in err
    assert err.count("\n") == 3


def test_standard_streams_that_are_closed(sd_folder: Path) -> None:
    assert shell([*INSPECT, str(sd_folder)], output=">&- 2>&-") == (0, "", "")
    assert shell([*INSPECT, "/nowhere"], output=f"2> {FULL}")[0] == 3


@pytest.mark.parametrize("gone", [["stderr"], ["stdout"], ["stdin", "stdout", "stderr"]])
def test_commands_paint_without_streams(
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    read_once: None,
    gone: list[str],
) -> None:
    """As under a service manager, or pythonw: Python then has None in their place."""
    lines = tmp_path / "jobs.txt"
    lines.write_text("a fox\n")
    flags = ["--model", str(sd_folder), "--output", str(tmp_path / "out")]
    for stream in gone:
        monkeypatch.setattr(sys, stream, None)
    for main, given in (
        (paint.main, ["a fox", "--steps", "1"]),
        (batch.main, [str(lines), "--steps", "1"]),
        (edit.main, ["a cat", "--to", "a fox", "--steps", "1"]),
        (explain.main, ["a fox", "--steps", "1"]),
        (paint.main, ["a fox", "--steps", "0"]),
    ):
        assert main([*given, *flags]) == 2 * (given[-1] == "0")
    monkeypatch.undo()
    if gone == ["stderr"]:
        assert "error" not in capsys.readouterr().out
    assert len([*(tmp_path / "out").glob("**/*.png")]) >= 3


@pytest.mark.parametrize("coding", ["cp1252", "ascii"])
def test_a_terminal_that_cannot_show_a_name(sd_folder: Path, tmp_path: Path, coding: str) -> None:
    folder = shutil.copytree(sd_folder, tmp_path / "一只狐狸")
    code, said, err = shell([*INSPECT, str(folder)], output="", PYTHONIOENCODING=coding)
    assert code == 0 and "StableDiffusionPipeline" in said and not err
    code, said, err = shell([*INSPECT, str(folder / "没有")], output="", PYTHONIOENCODING=coding)
    assert code == 3 and "\\u6ca1\\u6709" in err


STEERING = "a\x1b[2Jb\rc\x9bd\u202ee\u2066f\x00\u2028\x7f"


def test_what_steers_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    shown = r"a\x1b[2Jb\rc\x9bd\u202ee\u2066f\x00\u2028\x7f"
    assert visible(STEERING) == shown
    assert visible("👨\u200d👩 一只\n\té") == "👨\u200d👩 一只\n\té"
    error = SdcoreError(STEERING, STEERING, STEERING)
    assert str(error) == f"{shown}\n  why: {shown}\n  try: {shown}"
    assert inspect.main(["/nowhere/" + STEERING.replace("\x00", "")]) == 3
    assert "\x1b" not in (err := capsys.readouterr().err) and "\\u202e" in err


def begun(*flags: str) -> subprocess.Popen[str]:
    """A command that paints without end, once it paints."""
    command = [*PAINT, "a fox", "--steps", "1000", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("attention"):
        assert process.poll() is None
    return process


def test_sigterm_ends_a_run_that_paints(sd_folder: Path, tmp_path: Path) -> None:
    process = begun("--model", str(sd_folder), "--output", str(tmp_path / "out"))
    for _ in range(2):  # as `timeout` does it: the process, then its group
        process.send_signal(signal.SIGTERM)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 143 and not said, err
    assert err == "stopped; what was painted before is saved\n"
    assert not list(tmp_path.rglob("*.draft")) and not list(tmp_path.rglob("*.png"))


def test_an_output_folder_that_is_deleted_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SdcoreError, match=r"out/a\.png could not be written"):
        write_new(Path("out/a.png"), Image.new("RGB", (1, 1)).save)
