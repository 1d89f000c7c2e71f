"""A file of jobs: painted once each, in shards, after a kill, and with lines that fail."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sdcore import Job, Size, TextToImage
from sdcore.app import batch
from sdcore.metadata.png import read_settings

LINES = [
    *("a red fox --s 3 --d 11", "a cat", "a dog --w 48 --h 64 --n bad", "a blue tree --l 3"),
    *("a small apple --ss 'euler a'", "a photo of a dog"),
]


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.txt"
    path.write_text("\n".join(LINES))
    return path


@pytest.fixture
def run(sd_folder: Path, tmp_path: Path, capsys, read_once: None):
    def call(path: Path, *flags: str, out: str = "out") -> tuple[int, list[str], str]:
        where = ["--output", str(tmp_path / out), "--model", str(sd_folder)]
        code = batch.main([str(path), *where, "--steps", "2", "--seed", "40", *flags])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return call


def pixels(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found[path.name] = image.tobytes()
    return found


def told(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_job_is_the_picture_of_that_job_alone(run, jobs, tmp_path, sd_folder) -> None:
    code, paths, err = run(jobs)
    assert code == 0 and "6 painted, 0 were there, 0 failed" in err
    pipe = TextToImage.from_pretrained(sd_folder)
    alone = [
        Job("a red fox", steps=3, seed=11),
        Job("a cat", steps=2, seed=41),
        Job("a dog", "bad", steps=2, seed=42, size=Size(48, 64)),
        Job("a blue tree", steps=2, seed=43, guidance_scale=3.0),
        Job("a small apple", steps=2, seed=44, scheduler="euler a"),
        Job("a photo of a dog", steps=2, seed=45),
    ]
    for path, job, line in zip(paths, alone, told(tmp_path / "out/batch.jsonl"), strict=True):
        with Image.open(path) as image:
            assert image.tobytes() == pipe.paint(job).images[0].tobytes(), path
        assert (line["file"], line["seed"]) == (Path(path).name, job.seed)
        assert read_settings(Path(path)).job.prompt == line["prompt"] == job.prompt


@pytest.mark.slow
def test_a_killed_run_goes_on_and_paints_nothing_twice(run, jobs, tmp_path, sd_folder) -> None:
    whole = tmp_path / "whole"
    run(jobs, "--batch-size", "2", out="whole")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sdcore", "batch", str(jobs), "--model", str(sd_folder)]
    command += ["--output", str(out), "--steps", "2", "--seed", "40", "--batch-size", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    while not list(out.glob("*.png")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert there
    with (out / "batch.jsonl").open("a") as file:
        file.write('{"number": 5, "fi')  # what a kill may leave
    code, paths, _ = run(jobs, "--batch-size", "2")
    assert code == 0 and len(paths) == len(LINES) - len(there)
    assert pixels(out) == pixels(whole)
    assert there == {path: path.stat().st_mtime_ns for path in there}
    lines = told(out / "batch.jsonl")
    assert sorted(line["number"] for line in lines) == [1, 2, 3, 4, 5, 6]
    assert {line["file"]: line["sha256"] for line in lines} == {
        line["file"]: line["sha256"] for line in told(whole / "batch.jsonl")
    }
    # A missing one of a group comes back with the digits of its group.
    next(out.glob("000002-*")).unlink()
    code, paths, _ = run(jobs, "--batch-size", "2")
    assert [Path(path).name[:6] for path in paths] == ["000002"]
    assert pixels(out) == pixels(whole)
    assert run(jobs, "--batch-size", "2")[1] == []


def test_shards_are_the_whole(run, jobs, tmp_path) -> None:
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        run(jobs, "--shard", shard)
    run(jobs, out="whole")
    assert pixels(tmp_path / "out") == pixels(tmp_path / "whole")
    assert len(told(tmp_path / "out" / "batch-2-of-4.jsonl")) == 2
    code, _, err = run(jobs, "--shard", "9/9")
    assert code == 3 and "holds no job" in err
    for wrong in ("0/4", "5/4", "1", "a/b", "-1/2"):
        with pytest.raises(SystemExit):
            run(jobs, f"--shard={wrong}")


@pytest.mark.slow
def test_the_line_for_slurm_paints_its_shard(tmp_path) -> None:
    """Each task of `sbatch --wrap` is this line in a shell, with these two variables."""
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text("utf-8")
    (line,) = re.findall(r"^ +sbatch .*\\\n +--wrap='(.*)'$", page, re.MULTILINE)
    own = tmp_path / "bin" / "sdcore"
    own.parent.mkdir()
    own.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sdcore "$@"\n')
    own.chmod(0o755)
    jobs = [{"prompt": "a red fox", "steps": 1, "seed": seed} for seed in range(65)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    paths = f"{own.parent}{os.pathsep}{os.environ['PATH']}"
    here = {**os.environ, "PATH": paths, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for task, count in ((1, 64), (7, 2)):  # of --array=1-64, and later of --array=7,9
        given = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count)}
        subprocess.run(["sh", "-c", line], cwd=tmp_path, env=here | given, check=True)
    numbers = sorted(int(path.name[:6]) for path in (tmp_path / "out").glob("*.png"))
    assert numbers == [1, 7, 65]
    assert [each["number"] for each in told(tmp_path / "out/batch-1-of-64.jsonl")] == [1, 65]


def test_lines_that_fail_are_listed_and_the_rest_is_painted(run, tmp_path) -> None:
    path = tmp_path / "jobs.jsonl"
    lines = [
        '{"prompt": "a cat"}',
        '{"promt": "a cat"}',
        '{"prompt": "a dog", "width": 7}',
        '{"prompt": "a fox", "steps": 2000}',
        '{"prompt": "a tree <lora:gone:1>", "dialect": "a1111"}',
        "{",
        '{"prompt": "a cat", "source": {"image": "00", "strength": 1}}',
        '{"prompt": "a dog", "hires": {"width": 64, "height": 0, "strength": 1}}',
        '{"prompt": "a dog"}',
    ]
    path.write_text("\n".join(lines))
    code, paths, err = run(path, "--batch-size", "4")
    assert code == 2 and [Path(each).name[:6] for each in paths] == ["000001", "000009"]
    failed = told(tmp_path / "out/failed.jsonl")
    assert [line["number"] for line in failed] == [2, 3, 4, 5, 6, 7, 8]
    assert all(line["what"] and line["why"] and line["try"] for line in failed)
    assert "7 of 9 jobs could not be painted" in err and "line 2 failed" in err
    path.write_text("\n".join([lines[0], '{"prompt": "a fox"}']))
    assert run(path)[0] == 0
    assert not (tmp_path / "out/failed.jsonl").exists()


def test_what_would_be_lost_is_refused(run, jobs, tmp_path) -> None:
    assert run(jobs, "--images", "2")[0] == 2
    assert run(jobs, out="one.png")[0] == 2
    assert run(tmp_path / "missing.txt")[0] == 3
    from sdcore.app.batch_report import Report

    report = Report(tmp_path / "out", (1, 1), 1)
    code, _, err = run(jobs)
    assert code == 2 and "is being filled" in err
    report.close()
