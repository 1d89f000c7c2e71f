"""A run's folder: who is at work in it, and whether a run with these settings may go on there.

All of it is asked before the first step, and by a dry run.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from sdcore.errors import FileError, UsageError, name_some, warn
from sdcore.files.atomic import replace_file, text_writer
from sdcore.files.locks import FolderLock
from sdcore.training.run_settings import MAY_CHANGE, RunSettings
from sdcore.training.settings import Settings, flat, read_yaml
from sdcore.training.state import trained

CHECKPOINTS, SETTINGS = "checkpoints", "resolved.yaml"
_SAFETY = 1.1  # of the disk space that checkpoints need


def lock_folder(folder: Path) -> FolderLock:
    """The folder, for one run alone.

    Raises:
        UsageError: another run is at work in it.
    """
    try:
        return FolderLock(folder)
    except BlockingIOError as error:
        raise UsageError(
            f"Another run is at work in {folder}.",
            "Two runs would write over one another's checkpoints.",
            "Wait for its end, stop it, or use another run.folder.",
        ) from error


def check_unchanged(folder: Path, settings: Settings) -> list[str]:
    """What has changed since the run in a folder began, and may; a sentence each.

    Raises:
        UsageError: the settings make it another run.
        FileError: those that it began with cannot be read.
    """
    path = folder / SETTINGS
    if not path.exists():
        warn(f"{path} is gone; the settings are taken to be the same")
        return []
    new = flat(settings.model_dump(mode="json"))
    try:
        old, why = flat(read_yaml(path)), None
    except FileError as error:
        old, why = {}, f"{error.what} {error.why}"
    lacking = sorted(new.keys() - old.keys())
    if lacking:
        raise FileError(
            f"{folder} holds a run whose settings cannot be read.",
            why or f"{path} lacks {name_some(lacking)}.",
            f"Where they are the same as before, remove {path} and start again.",
        )
    every = sorted(old.keys() | new.keys())
    changed = [key for key in every if not _same(key, old.get(key), new.get(key))]
    texts = {key: f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in changed}
    refused = [text for key, text in texts.items() if key not in MAY_CHANGE]
    if refused:
        raise UsageError(
            f"{folder} holds a run with other settings.",
            "; ".join(refused[:3]) + (f"; {len(refused) - 3} more." if refused[3:] else "."),
            f"Use a new run.folder, or the old settings: those in {path}.",
        )
    return [texts[key] for key in ("run.steps", "run.learning_rate") if key in texts]


_PATHS = ("data.source", "data.masks", "data.cache", "model")


def _same(key: str, old: object, new: object) -> bool:
    """Whether two values are one, or one file or folder by two paths."""
    if old == new or key not in _PATHS:
        return old == new
    there = isinstance(old, str) and isinstance(new, str) and old and Path(old).exists()
    return bool(there) and Path(str(old)).resolve() == Path(str(new)).resolve()


def check_fits(
    checkpoint: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    module: nn.Module,
    wanted: Iterable[str],
) -> None:
    """Refuse a checkpoint of another network, or of settings with other parts.

    Args:
        module: what is trained.
        wanted: parts that it must have beside the module's.

    Raises:
        FileError: names what differs.
    """
    lacking = [name for name in ("model", *wanted) if name not in parts]
    if lacking:
        raise _of_others(checkpoint, f"It has no part {lacking[0]}.")
    theirs = {name: tuple(tensor.shape) for name, tensor in parts["model"].items()}
    mine = {name: tuple(parameter.shape) for name, parameter in trained(module)}
    odd = [n for n in sorted({*mine, *theirs}) if mine.get(n) != theirs.get(n)]
    if odd:
        a, b = theirs.get(odd[0], "not there"), mine.get(odd[0], "not trained")
        why = f"{len(odd)} tensors differ: {odd[0]} is {a} in it, and {b} by these settings."
        raise _of_others(checkpoint, why)


def _of_others(checkpoint: Path, why: str) -> FileError:
    hint = "Use the settings that it began with, or a new run.folder."
    return FileError(f"{checkpoint} is of a run with other settings.", why, hint)


def check_room(folder: Path, module: nn.Module, loop: RunSettings, step: int) -> None:
    """Refuse a disk that is full before the first checkpoint is due.

    Args:
        module: what is trained.
        step: that the run begins at.

    Raises:
        FileError: the disk has too little room.
    """
    tensors = [tensor for _, tensor in trained(module)]
    # weights, an average, and two moments of the optimizer, in float32
    one = sum(tensor.numel() for tensor in tensors) * 4 * (3 + bool(loop.ema_decay))
    kept = loop.keep + 1
    if loop.keep_every:
        kept += (loop.steps - step) // loop.keep_every
    free = shutil.disk_usage(folder).free
    if free < one * kept * _SAFETY:
        raise FileError(
            f"{folder} has too little room.",
            f"{kept} checkpoints of {one / 1e9:.2g} GB are kept at once; {free / 1e9:.2g} GB "
            "are free.",
            "Free some space, choose another run.folder, or a smaller run.keep.",
        )


def forget_rows(folder: Path, step: int) -> None:
    """Leave out what a killed process wrote after its last checkpoint: it is done again."""
    for name, first in (("metrics.jsonl", step), ("evaluation.jsonl", step + 1)):
        path = folder / name
        if not path.is_file():
            continue
        lines = path.read_text("utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) < first]
        if kept != lines:
            replace_file(path, text_writer("".join(f"{line}\n" for line in kept)))


def _step_of(line: str) -> float:
    """The step of a row of metrics; beyond all steps where the line is torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
