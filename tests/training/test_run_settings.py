"""The learning rate of each step against its closed form; ranges of a run's settings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from sdcore.training.run_settings import RunSettings, learning_rate

STEPS, WARM, TOP = 60, 10, 3e-4


def after(step: int) -> float:
    return (step - WARM) / (STEPS - WARM)


CURVES: dict[str, Callable[[int], float]] = {  # after the warm-up
    "constant": lambda step: 1.0,
    "linear": lambda step: 1 - after(step),
    "polynomial": lambda step: (1 - after(step)) ** 2,
    "cosine": lambda step: (1 + math.cos(math.pi * after(step))) / 2,
    "cosine_restarts": lambda step: (1 + math.cos(math.pi * (3 * after(step) % 1))) / 2,
    "warmup_stable_decay": lambda step: min(1, (STEPS - step) / (0.25 * STEPS)),
}


@pytest.mark.parametrize("schedule", CURVES)
def test_against_the_closed_form(schedule: str) -> None:
    settings = RunSettings(
        folder="",
        steps=STEPS,
        batch_size=1,
        learning_rate=TOP,
        schedule=schedule,
        warmup_steps=WARM,
        decay_share=0.25,
        restarts=3,
    )
    for step in range(STEPS):
        expected = (step + 1) / WARM if step < WARM else CURVES[schedule](step)
        assert abs(learning_rate(settings, step) - TOP * expected) <= 1e-12, step


@pytest.mark.parametrize(
    "change",
    [
        *({"ema_decay": 2}, {"warmup_steps": -3}, {"steps": -5}, {"keep": 0}, {"threads": -1}),
        *({"checkpoint_every": 0}, {"log_every": 0}, {"learning_rate": math.nan}, {"restarts": 0}),
        *({"accumulate": 0}, {"schedule": "sine"}, {"optimizer": "sgd"}, {"precision": "fp8"}),
        *(
            {"on_non_finite": "hope"},
            {"keep_every": -1},
            {"weight_decay": -1},
            {"max_grad_norm": 0},
        ),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(change: dict[str, object]) -> None:
    values = {"folder": "", "steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    with pytest.raises(ValidationError, match=next(iter(change))):
        RunSettings.model_validate(values | change)
