"""A fine-tuning killed anywhere goes on to the bit: at named points, and at random moments."""

from __future__ import annotations

import importlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.fine_tuning import assert_same_state, make_settings, run, write_pictures

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
HOW = {
    "run__steps": 6,
    "run__checkpoint_every": 2,
    "run__sample_every": 2,
    "run__ema_decay": 0.9,
    "run__keep": 1,
    "run__keep_every": 4,
    "data__held_out": 1,
    "data__trigger": "zork",
    "validation__images": 1,
    "validation__steps": 1,
}
# (function, before or after it, at which call)
POINTS = [
    ("sdcore.training.data.scan.ScanCache.save", "before", 1),
    ("sdcore.training.data.scan.ScanCache.save", "after", 1),
    ("sdcore.training.data.cache.TensorCache.write", "before", 1),
    ("sdcore.training.data.cache.TensorCache.write", "after", 2),
    ("sdcore.training.run.save_settings", "before", 1),
    ("sdcore.training.run.save_settings", "after", 1),
    ("sdcore.training.prepared.Prepared.record", "after", 1),
    ("sdcore.training.run.append_line", "before", 3),
    ("sdcore.training.run.append_line", "after", 3),
    ("sdcore.training.run.Run.update", "before", 4),
    ("sdcore.training.run.Run.update", "after", 4),
    ("sdcore.training.run.save_checkpoint", "before", 2),
    ("sdcore.training.run.save_checkpoint", "after", 2),
    ("sdcore.training.state.tensors_writer", "before", 5),
    ("sdcore.training.state._hash", "after", 4),
    ("sdcore.training.state.json_writer", "before", 2),
    ("sdcore.training.state._prune", "before", 2),
    ("sdcore.training.state._prune", "after", 3),
    ("sdcore.training.validation.Validation._paint", "before", 2),
    ("sdcore.training.validation.replace_files", "after", 3),
    ("sdcore.training.run.Run.keep_best", "after", 1),
    ("sdcore.training.finetune.write_report", "before", 2),
    ("sdcore.training.finetune.write_report", "after", 3),
    ("sdcore.training.finetune.Export.write", "before", 1),
    ("sdcore.training.finetune.Export.write", "after", 1),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "discs")


@pytest.fixture(scope="module")
def straight(sd_folder: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(make_settings(sd_folder, pictures, folder, **HOW))
    return folder


def in_a_child(work: Callable[[], object]) -> int:
    """Do it in a process of its own; how it ended, as `os.waitpid` says."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die_at(point: str, when: str, call: int) -> None:
    """Make this process kill itself before or after a call of a function."""
    names = point.split(".")
    split = next(i for i in range(len(names), 0, -1) if _is_module(".".join(names[:i])))
    owner: Any = importlib.import_module(".".join(names[:split]))
    for name in names[split:-1]:
        owner = getattr(owner, name)
    real, calls = getattr(owner, names[-1]), 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, names[-1], dying)


def _is_module(name: str) -> bool:
    try:
        return bool(importlib.util.find_spec(name))
    except ModuleNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", POINTS, ids=lambda point: f"{point[0][16:]}-{point[1]}-{point[2]}"
)
def test_killed_at_a_point(point, straight: Path, sd_folder: Path, pictures: Path, tmp_path: Path):
    settings = make_settings(sd_folder, pictures, tmp_path / "run", **HOW)

    def work() -> None:
        die_at(*point)
        run(settings)

    assert in_a_child(work) == signal.SIGKILL, "the point was reached"
    _, paths = run(settings)
    assert_same_state(straight, tmp_path / "run")
    assert [path.stem.removesuffix("-best") for path in paths] == ["run", "run"]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_moment(
    seed, straight: Path, sd_folder: Path, pictures: Path, tmp_path: Path
):
    settings = make_settings(sd_folder, pictures, tmp_path / "run", **HOW)
    draw = random.Random(seed)
    for _ in range(2):
        child = os.fork()
        if not child:
            try:
                run(settings)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0.05, 2.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run(settings)
    assert_same_state(straight, tmp_path / "run")


def test_killed_after_a_checkpoint(straight: Path, sd_folder: Path, pictures: Path, tmp_path: Path):
    """One of the points, for every day."""
    test_killed_at_a_point(POINTS[12], straight, sd_folder, pictures, tmp_path)
