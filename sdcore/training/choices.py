"""What a fine-tuning takes where its settings do not say, and why.

A run that goes on keeps what it chose: `resolved.yaml` is asked first.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import torch

from sdcore.checkpoint.model import Model
from sdcore.errors import FileError
from sdcore.machine import bfloat16_gain
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.peft_layers import AdapterSettings
from sdcore.training.run_settings import MAY_CHANGE
from sdcore.training.settings import flat, read_yaml

_SMALL = 100_000_000  # parameters of a UNet that is trained on a CPU in minutes
_SEEN = 100  # times that each picture is seen, at least
_FEWEST, _MOST = 200, 4000  # steps
_RATES = {  # method -> of a small model, of Stable Diffusion
    "lora": (2e-3, 1e-4),
    "full": (1e-4, 1e-5),
    "textual_inversion": (2e-2, 5e-3),
}
_RANK = 16
# Settings that stand for "choose" at one of their values: None, 0, -1, auto or nothing.
_CHOSEN = (
    *("run.folder", "run.batch_size", "run.warmup_steps", "run.precision", "lora.rank"),
    *("data.resolution", "data.cache_latents"),
)
# Pixels of a batch for each GB of a GPU, without gradient checkpointing.
_PIXELS_PER_GB = 512 * 512 / 6


def choose_folder(settings: FinetuneSettings) -> FinetuneSettings:
    """The settings with a folder of the run: named after data and method where none is named.

    A run with these settings goes on in its folder; another one gets a number behind the name.
    """
    if settings.run.folder:
        return settings
    name = Path(settings.data.source.removeprefix("hub:")).stem or "pictures"
    stem = f"runs/{name}-{settings.method.replace('_', '-')}"
    folders = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return _with(settings, {"folder": next(f for f in folders if _may_be_in(settings, Path(f)))})


def _may_be_in(settings: FinetuneSettings, folder: Path) -> bool:
    """Whether a folder holds no run, or one that began with these settings."""
    path = folder / "resolved.yaml"
    if not path.exists():
        return True
    try:
        old = flat(read_yaml(path))
    except FileError:
        return True  # the run says what is wrong with it
    new = flat(settings.model_dump(mode="json"))
    chosen = set(_CHOSEN)
    if not {"kind", "targets"} & settings.lora.model_fields_set:
        chosen |= {"lora.kind", "lora.targets"}
    asked = {k: v for k, v in new.items() if not (k in chosen and v in (None, 0, -1, "auto", ""))}
    asked = {k: v for k, v in asked.items() if k not in {"lora.kind", "lora.targets"} & chosen}
    return all(old.get(key) == value for key, value in asked.items() if key not in MAY_CHANGE)


def idle(settings: FinetuneSettings) -> list[str]:
    """The settings that somebody has changed, and that do nothing with this method."""
    groups = {"lora": settings.lora, "full": settings.full, "inversion": settings.inversion}
    mine = "inversion" if settings.method == "textual_inversion" else settings.method
    names = [
        f"{name}.{key}"
        for name, group in groups.items()
        for key, value in type(group)()
        if name != mine and getattr(group, key) != value
    ]
    read = {"lora": settings.lora.text_encoder, "full": settings.full.text_encoder}
    if settings.text_encoder_rate is not None and not read.get(mine):
        names.append("text_encoder_rate")
    return names


def choose_word(settings: FinetuneSettings) -> FinetuneSettings:
    """The settings with one word to learn, which captions say: each is the other's default."""
    if settings.method != "textual_inversion":
        return settings
    token, trigger = settings.inversion.token, settings.data.trigger
    inversion = settings.inversion.model_copy(update={"token": token or trigger})
    data = settings.data.model_copy(update={"trigger": trigger or token})
    return settings.model_copy(update={"inversion": inversion, "data": data})


def choose(
    settings: FinetuneSettings, model: Model, pictures: int, device: torch.device
) -> tuple[FinetuneSettings, list[str]]:
    """Complete settings, and a line for each thing that was chosen.

    Args:
        pictures: samples of an epoch.
    """
    before = _before(Path(settings.run.folder))
    small = sum(p.numel() for p in model.unet.parameters()) < _SMALL
    family = "a small model" if small else model.kind.family
    run, chosen, why = settings.run, dict[str, Any](), dict[str, str]()

    def take(name: str, value: Any, reason: str) -> Any:
        value = before.get(name, value)
        chosen[name] = value
        shown = f"{value:g}" if isinstance(value, float) else value
        why[name] = f"run.{name}={shown} ({'as the run began' if name in before else reason})"
        return value

    batch, rate = run.batch_size, _RATES[settings.method][0 if small else 1]
    if run.optimizer == "prodigy":
        rate = 1.0
    if run.precision == "auto":
        take("precision", _precision(device), f"for {device.type}, measured")
    if not batch:
        batch = take("batch_size", _batch(settings, small, pictures, device), f"for {family}")
    if not run.learning_rate:
        take("learning_rate", rate, f"{settings.method} on {family}, {run.optimizer}")
    steps = run.steps
    if not steps:
        together = batch * run.accumulate
        steps = min(_MOST, max(_FEWEST, -(-_SEEN * pictures // together)))
        steps = take("steps", steps, f"{pictures} pictures, each about {_SEEN} times")
    if run.warmup_steps < 0:
        take("warmup_steps", min(100, steps // 10), "a tenth of the steps, at most 100")
    if not run.checkpoint_every:
        take("checkpoint_every", max(1, min(500, steps // 4)), "four in the run")
    if not run.sample_every:
        take("sample_every", max(1, steps // 4), "four in the run")
    lines = list(why.values())
    settings = _with(settings, chosen)
    if settings.method == "lora":
        changes = _layers(settings.lora, small)
        lora = settings.lora.model_copy(update=changes)
        settings = settings.model_copy(update={"lora": lora})
        lines += [f"lora.{name}={_typed(value)} (for {family})" for name, value in changes.items()]
    return settings, lines


def _typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _layers(lora: AdapterSettings, small: bool) -> dict[str, Any]:
    """Rank and layers: a small model needs changes of all its layers to learn a style."""
    changes: dict[str, Any] = {}
    if small and not {"kind", "targets"} & lora.model_fields_set:
        changes |= {"kind": "locon", "targets": ["all"]}
    if lora.rank is None:
        changes["rank"] = _RANK
    return changes


def _with(settings: FinetuneSettings, changes: dict[str, Any]) -> FinetuneSettings:
    return settings.model_copy(update={"run": settings.run.model_copy(update=changes)})


def _before(folder: Path) -> dict[str, Any]:
    """What a run in this folder had; nothing where there is none or its settings are torn."""
    path = folder / "resolved.yaml"
    if not path.exists():
        return {}
    try:
        values = read_yaml(path)
        return dict(values["run"])
    except (FileError, KeyError, TypeError):
        return {}


def _batch(settings: FinetuneSettings, small: bool, pictures: int, device: torch.device) -> int:
    if small:
        return max(1, min(8, pictures))
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    side = settings.data.resolution or 512
    return int(max(1, min(8, pictures, free / 1e9 * _PIXELS_PER_GB / side**2)))


def _precision(device: torch.device) -> str:
    """The type in which this device multiplies fastest, of those that train well."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if device.type != "cpu":
        return "no"
    # bfloat16 rounds, and casts cost: it has to be well ahead
    return "bf16" if bfloat16_gain() > 1.4 else "no"
