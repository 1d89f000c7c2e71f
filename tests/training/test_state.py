"""Checkpoints: whole or not there, whatever happens while they are written; draws without order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sdcore.files.weights
import sdcore.training.state
from sdcore.errors import FileError
from sdcore.training.state import (
    Average,
    fault,
    generator,
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def parts(step: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"weight": torch.full((3, 2), float(step)), "bias": torch.arange(3.0) + step},
        "optimizer": {"0.step": torch.tensor(float(step))},
    }


def holds(checkpoint: Path | None, step: int) -> bool:
    assert checkpoint is not None
    found, tensors = load_checkpoint(checkpoint)
    return found == step and torch.equal(tensors["model"]["weight"], parts(step)["model"]["weight"])


def steps_in(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.iterdir())


# What a save calls, in this order of kinds; a kill at any call of any of them is survived.
POINTS: dict[str, tuple[object, str]] = {
    "write a part": (sdcore.files.weights, "save_file"),
    "write the manifest": (Path, "write_bytes"),
    "flush": (os, "fsync"),
    "publish": (os, "rename"),
    "remove": (shutil, "rmtree"),
}


def break_at(
    monkeypatch: pytest.MonkeyPatch, point: str, call: int, late: bool
) -> Callable[[], int]:
    """Make call number `call` of `point` the last that happens, before or after its effect."""
    owner, name = POINTS[point]
    real, count = getattr(owner, name), 0

    def broken(*args: object, **options: object) -> object:
        nonlocal count
        count += 1
        if count == call and not late:
            raise Killed
        result = real(*args, **options)
        if count == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, broken)
    return lambda: count


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {"model": {"half": torch.randn(4).bfloat16(), "part": torch.randn(4, 4)[:, 1]}}
    path = save_checkpoint(tmp_path, 7, tensors)
    step, loaded = load_checkpoint(path)
    assert step == 7 and path == latest_checkpoint(tmp_path)
    for name, tensor in tensors["model"].items():
        assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(loaded["model"][name], tensor)


def test_a_large_part_comes_in_several_files_and_is_whole_only_with_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdcore.training.state, "FILE_BYTES", 64)
    small, large = {f"s{i}": torch.randn(8) for i in range(5)}, {"large": torch.randn(40)}
    tensors = {"model": small | large, "average": {"one": torch.randn(16)}, "empty": {}}
    path = save_checkpoint(tmp_path, 7, tensors)
    files = sorted(file.name for file in path.glob("model*"))
    assert files == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]  # 2, 2, 1, large
    assert (path / "average.safetensors").is_file()
    _, loaded = load_checkpoint(path)
    assert {name: part.keys() for name, part in loaded.items()} == {
        name: part.keys() for name, part in tensors.items()
    }
    assert all(torch.equal(loaded["model"][name], t) for name, t in tensors["model"].items())
    (path / files[1]).unlink()
    with pytest.raises(FileError, match=files[1]):
        latest_checkpoint(tmp_path)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save_checkpoint(tmp_path, step, parts(step), keep=2)
    assert steps_in(tmp_path) == ["step-00000006", "step-00000008"]


def test_none_is_read_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that keeps forty would else spend its time on verifying them."""
    monkeypatch.setattr("sdcore.training.state.fault", lambda path: pytest.fail(f"{path} was read"))
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, parts(step), keep=3)


def calls_of_a_save(point: str, folder: Path) -> int:
    """How often a save beside two older checkpoints, one of which it prunes, passes `point`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for step in (2, 4):
            save_checkpoint(folder, step, parts(step), keep=2)
        count = break_at(monkeypatch, point, call=-1, late=False)
        save_checkpoint(folder, 6, parts(6), keep=2)
        return count()


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_of_a_save(
    point: str, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_a_save(point, tmp_path / "count")
    assert calls >= 1
    for call in range(1, calls + 1):
        runs = tmp_path / str(call)
        for step in (2, 4):
            save_checkpoint(runs, step, parts(step), keep=2)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            break_at(patch, point, call, late)
            save_checkpoint(runs, 6, parts(6), keep=2)

        good = [path for path in runs.glob("step-*") if fault(path) is None]
        assert len(good) >= 2, f"{point} {call}: fewer good checkpoints than before"
        newest = latest_checkpoint(runs)
        assert holds(newest, 6) or holds(newest, 4)

        save_checkpoint(runs, 6, parts(6), keep=2)  # the resumed run does the same step again
        assert steps_in(runs) == ["step-00000004", "step-00000006"], "something was left behind"
        assert holds(latest_checkpoint(runs), 6)


def test_nothing_older_goes_before_the_new_one_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 2, parts(2), keep=1)
    events = []
    rename, rmtree = os.rename, shutil.rmtree
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("publish"), rename(a, b)))

    def remove(path: Path, **options: bool) -> None:
        if Path(path).is_dir():
            events.append(f"remove {Path(path).name}")
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    save_checkpoint(tmp_path, 4, parts(4), keep=1)
    drafts = [event for event in events if ".draft" in event]
    assert len(drafts) == 1 and events[0] == "publish"
    assert events[-1] == "remove step-00000002"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit flipped": lambda folder: flip_a_bit(folder / "model.safetensors"),
    "cut short": lambda folder: cut_short(folder / "optimizer.safetensors"),
    "part missing": lambda folder: (folder / "model.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut short": lambda folder: cut_short(folder / "manifest.json"),
    "manifest empty": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "manifest of no file": lambda folder: (folder / "manifest.json").write_text(
        '{"step": 4, "files": {}}'
    ),
    "manifest of nothing": lambda folder: (folder / "manifest.json").write_text("null"),
    "another step's manifest": lambda folder: shutil.copy(
        folder.parent / "step-00000002" / "manifest.json", folder
    ),
    "another step's folder": lambda folder: (
        shutil.rmtree(folder),
        shutil.copytree(folder.parent / "step-00000002", folder),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_gives_way_to_the_older_one(damage: str, tmp_path: Path) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, step, parts(step))
    DAMAGE[damage](tmp_path / "step-00000004")
    assert fault(tmp_path / "step-00000004")
    with pytest.warns(UserWarning, match="step-00000004 is damaged.* step-00000002 is used"):
        assert holds(latest_checkpoint(tmp_path), 2)
    with pytest.raises(FileError, match="step-00000004"):
        load_checkpoint(tmp_path / "step-00000004")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_damaged_ones_do_not_count_when_pruning(keep: int, tmp_path: Path) -> None:
    for step in (2, 4, 12):
        save_checkpoint(tmp_path, step, parts(step), keep=9)
    flip_a_bit(tmp_path / "step-00000012" / "model.safetensors")
    save_checkpoint(tmp_path, 6, parts(6), keep=keep)
    good = sorted((p.name for p in tmp_path.glob("step-*") if fault(p) is None), reverse=True)
    assert good == ["step-00000006", "step-00000004", "step-00000002"][:keep]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    assert latest_checkpoint(tmp_path) is None


def test_draws_do_not_depend_on_order() -> None:
    keys = [(seed, purpose, step, i) for seed in (0, 1) for purpose in ("noise", "time")
            for step in range(4) for i in range(4)]  # fmt: skip
    forwards = {key: torch.randn(8, generator=generator(*key)) for key in keys}
    torch.manual_seed(99)
    backwards = {key: torch.randn(8, generator=generator(*key)) for key in reversed(keys)}
    assert all(torch.equal(forwards[key], backwards[key]) for key in keys)
    assert len({tuple(draw.tolist()) for draw in forwards.values()}) == len(keys)


def test_draws_look_standard_normal_across_keys() -> None:
    draws = torch.stack(
        [torch.randn(16, generator=generator(0, "noise", 0, i)) for i in range(2000)]
    )
    assert draws.mean().abs() < 4 / 32000**0.5
    assert (draws.std() - 1).abs() < 4 / 64000**0.5


def test_optimizer_goes_on_to_the_bit() -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, number: int) -> None:
        layer(torch.full((2, 4), float(number))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    straight, optimizer = build()
    for number in range(5):
        step(straight, optimizer, number)
        if number == 2:
            kept = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
            weights = {k: v.clone() for k, v in straight.state_dict().items()}
    resumed, fresh = build()
    resumed.load_state_dict(weights)
    restore_optimizer(fresh, kept)
    for number in (3, 4):
        step(resumed, fresh, number)
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)


def test_average_against_its_definition() -> None:
    layer = torch.nn.Linear(2, 2).double()
    average = Average(layer, decay=0.6)
    expected = layer.weight.detach().float().double()
    for step in range(12):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 2, dtype=torch.float64))
        average.update(layer, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    assert average.tensors["weight"].dtype == torch.float32
    torch.testing.assert_close(average.tensors["weight"].double(), expected, rtol=1e-6, atol=1e-6)
