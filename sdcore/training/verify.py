"""A proof, on somebody's own settings and data, that a stopped run goes on to the bit.

A few steps are trained straight, and the same ones with a stop in the middle; weights, average,
optimizer and losses are compared.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch

from sdcore.errors import SdcoreError
from sdcore.files.atomic import make_folder
from sdcore.training.choices import choose_folder, choose_word
from sdcore.training.finetune import train
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.prepare import prepare
from sdcore.training.state import latest_checkpoint, load_checkpoint

STEPS = 4


class ResumeError(SdcoreError):
    """A resumed run is not the straight one."""

    exit_code = 1


def verify_resume(settings: FinetuneSettings) -> str:
    """A sentence that says what was compared and found equal.

    Raises:
        ResumeError: what differs.
    """
    settings = choose_folder(choose_word(settings))
    folder = Path(settings.run.folder)
    make_folder(folder)
    place = Path(tempfile.mkdtemp(prefix="verify-", dir=folder))  # whose name is nobody else's
    cache = settings.data.cache or str(folder / "cache")
    try:
        _train(settings, place / "straight", cache, STEPS)
        _train(settings, place / "resumed", cache, STEPS // 2)
        _train(settings, place / "resumed", cache, STEPS)
        return _compare(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _train(settings: FinetuneSettings, folder: Path, cache: str, steps: int) -> None:
    run = {"folder": str(folder), "steps": steps, "checkpoint_every": STEPS, "sample_every": STEPS}
    # A curve that depends on the number of steps would be another one for the first half.
    run |= {"log_every": 1, "warmup_steps": 2, "schedule": "constant"}
    train(
        prepare(
            settings.model_copy(
                update={
                    "run": settings.run.model_copy(update=run),
                    "data": settings.data.model_copy(update={"cache": cache}),
                    "validation": settings.validation.model_copy(update={"images": 0}),
                }
            )
        )
    )


def _compare(place: Path) -> str:
    checkpoints = [latest_checkpoint(place / name / "checkpoints") for name in _NAMES]
    (_, straight), (_, resumed) = (load_checkpoint(path) for path in checkpoints if path)
    different = [
        f"{part} {name}"
        for part, tensors in straight.items()
        for name, tensor in tensors.items()
        if not torch.equal(tensor, resumed[part][name])
    ]
    losses = [_losses(place / name) for name in _NAMES]
    if losses[0] != losses[1]:
        different.append(f"losses: {losses[0]} and {losses[1]}")
    if different:
        raise ResumeError(
            "A resumed run is not the straight one.",
            f"{len(different)} things differ, first {', '.join(different[:3])}.",
            "On a GPU some kernels round differently each time. On a CPU this is a fault of "
            "sdcore: please report it.",
        )
    tensors = sum(len(part) for part in straight.values())
    half = STEPS // 2
    return (
        f"{STEPS} steps straight, and {half} + {half} with a stop between them, are equal to the "
        f"bit: {tensors} tensors ({', '.join(straight)}) and {STEPS} losses"
    )


_NAMES = ("straight", "resumed")


def _losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]
