"""Training state that survives anything: checkpoints written whole or not at all, and exact resume.

A checkpoint is a folder `step-00001000/` of safetensors files and a `manifest.json` with the hash
of each. No file is much over 14 MB, so that a checkpoint can be moved to wherever the run goes on.
It appears whole (`files.atomic`); only then older ones are removed.
The latest checkpoint is the newest that verifies, so a run killed at any moment resumes from a good
one. Nothing is pickled. No random state is stored, because every random draw of a training run is a
function of (seed, purpose, step, sample): see `generator`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from sdcore.errors import FileError, warn
from sdcore.files.atomic import json_writer, replace_folder
from sdcore.files.jsonfile import read_json
from sdcore.files.opening import open_file
from sdcore.files.weights import tensors_writer
from sdcore.training.sharding import copy_into, part_of

Tensors = Mapping[str, Tensor]
FILE_BYTES = 14_000_000  # of a file's tensors; one tensor is never divided
MOST_FILES = 64  # of a part; a large model's files are larger
_OF_THE_STEP = ("lr", "initial_lr", "scale", "params")  # of a group: not part of its state
_CHECKPOINT = re.compile(r"step-\d{8}")
_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")  # as the files of diffusers' large weights are named


def generator(seed: int, purpose: str, step: int, sample: int) -> torch.Generator:
    """A CPU generator for one draw: the same numbers whatever the order, ranks or restarts."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}/{sample}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def save_checkpoint(
    runs: Path, step: int, parts: Mapping[str, Tensors], keep: int = 2, keep_every: int = 0
) -> Path:
    """Write `parts` (name -> tensors) as the checkpoint of `step`; keep the newest `keep`.

    Args:
        keep_every: checkpoints of these steps stay, whatever comes after them; 0 keeps none so.

    Raises:
        FileError: the disk is full, or the folder cannot be written; older ones are still there.
    """

    def write(folder: Path) -> None:
        for name, tensors in parts.items():
            for stem, some in _files(name, tensors):
                tensors_writer(some)(folder / f"{stem}.safetensors")
        hashes = {path.name: _hash(path) for path in sorted(folder.iterdir())}
        json_writer({"step": step, "files": hashes}, indent=None)(folder / "manifest.json")

    target = runs / _name(step)
    replace_folder(target, write)
    _prune(runs, target, keep, keep_every)
    return target


def latest_checkpoint(runs: Path) -> Path | None:
    """The newest checkpoint under `runs` that is as it was written; None where there is none.

    Warns:
        UserWarning: a newer one is damaged.

    Raises:
        FileError: there are some, and all of them are damaged.
    """
    faults: list[str] = []
    for path in _checkpoints(runs):
        why = fault(path)
        if why is None:
            for text in faults:
                warn(f"{text} {path.name} is used.")
            return path
        faults.append(f"The checkpoint {path.name} is damaged: {why}")
    if faults:
        raise FileError(
            f"No checkpoint in {runs} can be used.",
            f"{' '.join(faults[:3])} All {len(faults)} are damaged.",
            "Put a copy of one back, or begin a new run in another folder.",
        )
    return None


def newest_step(runs: Path) -> int:
    """The step of the newest checkpoint under `runs`, sound or not; 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in _checkpoints(runs)), default=0)


def fault(checkpoint: Path) -> str | None:
    """What is damaged about a checkpoint, as a sentence; None where all is as it was written."""
    try:
        manifest = read_json(checkpoint / "manifest.json")
        if checkpoint.name != _name(manifest["step"]):
            return "Its manifest is of another step."
        if not manifest["files"]:
            return "Its manifest names no file."
        for name, written in manifest["files"].items():
            if _hash(checkpoint / name) != written:
                return f"{name} is not as it was written."
    except FileError as error:
        return f"{error.what} {error.why}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "Its manifest is not one."
    return None


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """(step, name -> tensors) of a checkpoint. FileError when it is damaged."""
    why = fault(checkpoint)
    if why is not None:
        raise FileError(f"The checkpoint {checkpoint} is damaged.", why, "Use an older one.")
    manifest = read_json(checkpoint / "manifest.json")
    parts: dict[str, dict[str, Tensor]] = {}
    for name in manifest["files"]:
        part = parts.setdefault(_NUMBER.sub("", Path(name).stem), {})
        part |= load_file(checkpoint / name)
    return manifest["step"], parts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors `index.name`, and `group.index.name` for its numbers.

    Learning rates come from the step, and are left out.
    """
    state = optimizer.state_dict()
    found = {
        f"{i}.{name}": torch.as_tensor(value)
        for i, row in state["state"].items()
        for name, value in row.items()
        if value is not None
    }
    for i, group in enumerate(state["param_groups"]):  # Prodigy keeps its estimate of the rate here
        for name, value in group.items():
            if name not in _OF_THE_STEP and isinstance(value, int | float | Tensor):
                wide = torch.float64 if isinstance(value, float) else None
                found[f"group.{i}.{name}"] = torch.as_tensor(value, dtype=wide)
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `optimizer_tensors` gave."""
    state = optimizer.state_dict()
    rows: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("group."):
            _, index, name = key.split(".", 2)
            group = state["param_groups"][int(index)]
            plain = not isinstance(group.get(name), Tensor) and value.ndim == 0
            group[name] = value.item() if plain else value
        else:
            index, name = key.split(".", 1)
            rows.setdefault(int(index), {})[name] = value
    _plain_numbers(optimizer, rows)
    _laid_out(optimizer, rows)
    optimizer.load_state_dict(state | {"state": rows})


def _laid_out(optimizer: torch.optim.Optimizer, rows: dict[int, dict[str, Any]]) -> None:
    """State lies in memory as its parameters do: other strides would be rounded otherwise."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, row in rows.items():
        for name, value in row.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                row[name] = torch.empty_like(parameters[index], dtype=value.dtype)
                copy_into(row[name], value)


def _plain_numbers(optimizer: torch.optim.Optimizer, rows: dict[int, dict[str, Any]]) -> None:
    """What an optimizer keeps as a Python number becomes one again: Prodigy's step, for example.

    Torch's own optimizers keep `step` as a tensor, and ask for one.
    """
    if type(optimizer).__module__.startswith("torch."):
        return
    for row in rows.values():
        for name, value in row.items():
            if name in ("step", "k") and value.ndim == 0:
                row[name] = value.item()


class Average:
    """Exponential moving average of what is trained of a module (Polyak averaging), in float32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: p.detach().clone().float() for name, p in trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module`; early steps use a shorter memory, so the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # By name: a loaded checkpoint has the tensors in another order than the module.
        ours = [part_of(self.tensors[name]) for name, _ in trained(module)]
        theirs = [part_of(p.detach()).float() for _, p in trained(module)]
        torch._foreach_lerp_(ours, theirs, 1 - decay)  # pyright: ignore


def trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a run changes, by their names: those that take a gradient."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _files(name: str, tensors: Tensors) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(stem, tensors) of each file of a part: `model`, or `model-00001-of-00002` and so on."""
    files: list[dict[str, Tensor]] = [{}]
    most = max(FILE_BYTES, sum(tensor.nbytes for tensor in tensors.values()) // MOST_FILES)
    free = most
    for key, tensor in tensors.items():
        if tensor.nbytes > free and files[-1]:
            files.append({})
            free = most
        files[-1][key] = tensor.detach().contiguous()
        free -= tensor.nbytes
    for number, some in enumerate(files, start=1):
        yield name if len(files) == 1 else f"{name}-{number:05d}-of-{len(files):05d}", some


def _prune(runs: Path, newest: Path, keep: int, keep_every: int) -> None:
    """Remove all but `newest`, which was just written, and the `keep - 1` good ones before it."""
    older = [
        path
        for path in _checkpoints(runs)
        if path != newest and not (keep_every and int(path.name[5:]) % keep_every == 0)
    ]
    kept = older
    if len(older) >= keep:  # else none has to go; to verify is to read every byte of it
        kept = list(islice((path for path in older if fault(path) is None), keep - 1))
    for path in older:
        if path not in kept:
            shutil.rmtree(path)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(runs: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first; what else a user keeps there is left alone:
    other names, and links to folders elsewhere."""
    named = (path for path in runs.glob("step-*") if _CHECKPOINT.fullmatch(path.name))
    return sorted((p for p in named if p.is_dir() and not p.is_symlink()), reverse=True)


def _hash(path: Path) -> str:
    with open_file(path) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return digest.hexdigest()
