"""Small fine-tunings for tests: four pictures, a tiny random model, a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sdcore.training.finetune import train
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.prepare import prepare
from sdcore.training.prepared import Prepared
from sdcore.training.settings import load_settings
from sdcore.training.state import latest_checkpoint, load_checkpoint

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": "white"}
QUICK = {  # of a run
    "run.steps": 4,
    "run.batch_size": 2,
    "run.learning_rate": 1e-3,
    "run.schedule": "constant",
    "run.warmup_steps": 0,
    "run.log_every": 1,
    "run.checkpoint_every": 100,
    "run.sample_every": 100,
    "run.precision": "no",
    "validation.images": 0,
}


def write_pictures(folder: Path, side: int = 64) -> Path:
    """Four pictures with captions: a coloured disc each, on another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inside = ((y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 3) ** 2).numpy()
    for number, (name, colour) in enumerate(COLOURS.items()):
        picture = Image.new("RGB", (side, side), (90 + 30 * number, 120, 200 - 40 * number))
        disc = Image.new("RGB", (side, side), colour)
        picture.paste(disc, mask=Image.fromarray(inside.astype("uint8") * 255))
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} apple", "utf-8")
    return folder


def make_settings(
    model: Path | str, data: Path, folder: Path, **changes: object
) -> FinetuneSettings:
    """Settings with `group__name=value` for group.name."""
    values = {"model": str(model), "data": str(data), "run.folder": str(folder), **QUICK}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    texts = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return load_settings(FinetuneSettings, None, texts)


def run(settings: FinetuneSettings) -> tuple[Prepared, list[Path]]:
    ready = prepare(settings)
    return ready, train(ready)


def state_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """All that the newest checkpoint of a run holds."""
    checkpoint = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    return load_checkpoint(checkpoint)[1]


def losses_of(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len({row["step"] for row in rows}) == len(rows), "a step was written twice"
    return {row["step"]: row["loss"] for row in rows}


def assert_same_state(one: Path, other: Path) -> None:
    """Weights, average, optimizer and losses of two runs are equal to the bit."""
    ours, theirs = state_of(one), state_of(other)
    assert ours.keys() == theirs.keys()
    for part, tensors in ours.items():
        assert tensors.keys() == theirs[part].keys() and tensors
        different = [name for name, x in tensors.items() if not torch.equal(x, theirs[part][name])]
        assert not different, f"{part}: {different[:3]}"
    assert losses_of(one) == losses_of(other)
