"""Fine-tunings killed at named points and at random moments, which then go on: to the bit."""

from __future__ import annotations

import importlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from sdcore.training.finetune_settings import FinetuneSettings
from tests import tiny
from tests.training.fine_tuning import assert_same_state, make_settings, run, write_pictures

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


def kill_training(count: int, first: int = 0, seconds: float = float("inf")) -> int:
    """Kill so many runs, and print what was found; 1 where one did not go on to the bit.

    Numbers below that of `POINTS` are runs killed there, those above are runs killed twice at
    random moments. None is begun after so many seconds.
    """
    found, until = Counter[str](), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        model, pictures = tiny.write_sd(folder / "sd"), write_pictures(folder / "discs")
        run(make_settings(model, pictures, folder / "straight", **HOW))
        for number in range(first, first + count):
            if time.monotonic() > until:
                break
            again = folder / f"{number}"
            settings = make_settings(model, pictures, again, **HOW)
            try:
                found["kills"] += kill_by_number(number, settings)
                check_end(folder / "straight", again, run(settings)[1])
            except Exception as error:
                found["DIFFERENT"] += 1
                print(f"{number}: {error!r:.500}", file=sys.stderr)
            found["runs"] += 1
            found["at a point"] += number < len(POINTS)
            shutil.rmtree(again, ignore_errors=True)
    print(", ".join(f"{name} {n}" for name, n in sorted(found.items())))
    return int(bool(found["DIFFERENT"]))


@contextmanager
def quiet() -> Generator[None]:
    """What a training prints and warns of, left out."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def kill_by_number(number: int, settings: FinetuneSettings) -> int:
    """Kill a run, and count how often it was killed at work."""
    if number < len(POINTS):
        kill_at(POINTS[number], settings)
        return 1
    draw = random.Random(number - len(POINTS))
    return sum(kill_after(draw.uniform(0.05, 2.5), settings) for _ in range(2))


def kill_at(point: tuple[str, str, int], settings: FinetuneSettings) -> None:
    def work() -> None:
        die_at(*point)
        run(settings)

    assert in_a_child(work) == signal.SIGKILL, "the point was reached"


def kill_after(seconds: float, settings: FinetuneSettings) -> bool:
    """Whether the run was still at work then."""
    child = os.fork()
    if not child:
        try:
            run(settings)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def check_end(straight: Path, again: Path, paths: list[Path]) -> None:
    """Assert that a run ended as one that was never killed, and left nothing else."""
    assert_same_state(straight, again)
    assert [path.stem.removesuffix("-best") for path in paths] == [again.name, again.name]
    kept = sorted(path.name for path in (again / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"]


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
