"""The settings that every run has: how long, how fast, where; and the learning rate at each step.

The rate is a function of the step alone, so a run that was resumed or prolonged goes on with the
curve of one that never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field

from sdcore.training.settings import PathText, Settings

MOST_STEPS = 99_999_999  # the names of checkpoints have eight digits
MOST_AT_ONCE = 65_536  # pictures
MOST_SEED = (1 << 63) - 1

OptimizerName = Literal["adamw", "adamw_8bit", "adafactor", "prodigy", "schedule_free", "muon"]
ScheduleName = Literal[
    "warmup_stable_decay", "constant", "linear", "cosine", "cosine_restarts", "polynomial"
]


class RunSettings(Settings):
    """How long, how fast, where. Steps count optimizer updates."""

    folder: PathText  # everything the run writes
    steps: int = Field(ge=1, le=MOST_STEPS)
    batch_size: int = Field(ge=1, le=MOST_AT_ONCE)  # of each process, at once
    accumulate: int = Field(default=1, ge=1, le=MOST_AT_ONCE)  # batches for one update
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    schedule: ScheduleName = "warmup_stable_decay"
    warmup_steps: int = Field(default=200, ge=0)
    decay_share: float = Field(
        default=0.3, ge=0, le=1
    )  # the last steps, over which the rate falls to zero
    restarts: int = Field(default=1, ge=1)  # of cosine_restarts: so many falls
    optimizer: OptimizerName = "adamw"  # muon: of weight matrices; see optimizers.py
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)  # 0: no moving average
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    precision: Literal["no", "bf16", "fp16"] = "bf16"  # fp16: float32 weights, and a loss scaler
    on_non_finite: Literal["stop", "skip"] = "stop"  # what a NaN or infinity does to a run
    shard: bool = False  # several processes divide the UNet: see sharding.py
    threads: int = Field(default=0, ge=0, le=1024)  # 0: as many as torch takes
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    sample_every: int = Field(default=1000, ge=1)
    keep: int = Field(default=2, ge=1)  # so many of the newest checkpoints
    keep_every: int = Field(default=0, ge=0)  # checkpoints of these steps stay; 0: none
    tracker: Literal["", "tensorboard", "wandb", "trackio"] = ""  # that gets the metrics, too


# A run may be prolonged, moved, watched and paced otherwise without becoming another run.
MAY_CHANGE = {
    *(f"run.{name}" for name in ("folder", "steps", "decay_share", "learning_rate", "threads")),
    *(f"run.{name}" for name in ("keep", "keep_every", "log_every", "checkpoint_every")),
    *(f"run.{name}" for name in ("sample_every", "on_non_finite", "tracker")),
    *(f"data.{name}" for name in ("workers", "cache", "cache_latents")),
    *(f"output.{name}" for name in ("name", "formats", "dtype")),
    "validation.patience",
}


def learning_rate(settings: RunSettings, step: int) -> float:
    """The rate of a step: a linear warm-up, then the curve that `schedule` names.

    warmup_stable_decay  a plateau, and a linear fall to zero over the last `decay_share` of the
                         steps; the plateau lets a run be prolonged from a checkpoint before the
                         fall (Hu et al. 2024, arXiv:2404.06395)
    constant             a plateau
    linear, polynomial   a straight fall to zero, or its square
    cosine               half a wave down to zero (Loshchilov & Hutter 2016, arXiv:1608.03983)
    cosine_restarts      `restarts` such falls, one after the other
    """
    rise = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return settings.learning_rate * rise * _CURVES[settings.schedule](settings, step)


def _progress(settings: RunSettings, step: int) -> float:
    """How much of the way after the warm-up is behind, 0 to 1."""
    way = max(1, settings.steps - settings.warmup_steps)
    return min(1.0, max(0, step - settings.warmup_steps) / way)


def _plateau_and_fall(settings: RunSettings, step: int) -> float:
    return min(1.0, (settings.steps - step) / max(1.0, settings.decay_share * settings.steps))


def _half_wave(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _restarts(settings: RunSettings, step: int) -> float:
    return _half_wave(_progress(settings, step) * settings.restarts % 1)


_CURVES: Mapping[str, Callable[[RunSettings, int], float]] = {
    "warmup_stable_decay": _plateau_and_fall,
    "constant": lambda settings, step: 1.0,
    "linear": lambda settings, step: 1 - _progress(settings, step),
    "polynomial": lambda settings, step: (1 - _progress(settings, step)) ** 2,
    "cosine": lambda settings, step: _half_wave(_progress(settings, step)),
    "cosine_restarts": _restarts,
}
