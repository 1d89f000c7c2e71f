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

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from sdcore.errors import FileError, warn
from sdcore.files.atomic import json_writer, replace_folder
from sdcore.files.jsonfile import read_json
from sdcore.files.opening import open_file
from sdcore.files.weights import tensors_writer

Tensors = Mapping[str, Tensor]
FILE_BYTES = 14_000_000  # of a file's tensors; one tensor is never divided
_CHECKPOINT = re.compile(r"step-\d{8}")
_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")  # as the files of diffusers' large weights are named


def generator(seed: int, purpose: str, step: int, sample: int) -> torch.Generator:
    """A CPU generator for one draw: the same numbers whatever the order, ranks or restarts."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}/{sample}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def save_checkpoint(runs: Path, step: int, parts: Mapping[str, Tensors], keep: int = 2) -> Path:
    """Write `parts` (name -> tensors) as the checkpoint of `step`; keep the newest `keep`.

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
    _prune(runs, target, keep)
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


def fault(checkpoint: Path) -> str | None:
    """What is damaged about a checkpoint, as a sentence; None where all is as it was written."""
    try:
        manifest = read_json(checkpoint / "manifest.json")
        if checkpoint.name != _name(manifest["step"]):
            return "Its manifest is of another step."
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
    """The optimizer's state as flat tensors `index.name`; learning rates come from the step."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": torch.as_tensor(value)
        for i, row in state.items()
        for name, value in row.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `optimizer_tensors` gave."""
    rows: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        rows.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": rows})


class Average:
    """Exponential moving average of a module's parameters (Polyak averaging), in float32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: p.detach().clone().float() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module`; early steps use a shorter memory, so the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # By name: a loaded checkpoint has the tensors in another order than the module.
        ours = [self.tensors[name] for name, _ in module.named_parameters()]
        theirs = [p.detach().float() for p in module.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)  # pyright: ignore


def _files(name: str, tensors: Tensors) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(stem, tensors) of each file of a part: `model`, or `model-00001-of-00002` and so on."""
    files: list[dict[str, Tensor]] = [{}]
    free = FILE_BYTES
    for key, tensor in tensors.items():
        if tensor.nbytes > free and files[-1]:
            files.append({})
            free = FILE_BYTES
        files[-1][key] = tensor.detach().contiguous()
        free -= tensor.nbytes
    for number, some in enumerate(files, start=1):
        yield name if len(files) == 1 else f"{name}-{number:05d}-of-{len(files):05d}", some


def _prune(runs: Path, newest: Path, keep: int) -> None:
    """Remove all but `newest`, which was just written, and the `keep - 1` good ones before it."""
    older = [path for path in _checkpoints(runs) if path != newest]
    kept = older
    if len(older) >= keep:  # else none has to go; to verify is to read every byte of it
        kept = list(islice((path for path in older if fault(path) is None), keep - 1))
    for path in older:
        if path not in kept:
            shutil.rmtree(path)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(runs: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first; what else a user keeps there is left alone."""
    named = (path for path in runs.glob("step-*") if _CHECKPOINT.fullmatch(path.name))
    return sorted((path for path in named if path.is_dir()), reverse=True)


def _hash(path: Path) -> str:
    with open_file(path) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return digest.hexdigest()
