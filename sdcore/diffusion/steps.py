"""The steps of a run: which of a scheduler's times are visited, and how one step is taken.

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcore.checks import as_finite, shown
from sdcore.diffusion.scheduler_config import is_edm
from sdcore.errors import UsageError


@dataclass(frozen=True)
class Step:
    """One call of the UNet: `index` of `count`, at `time` (a training step, or between two)."""

    index: int
    count: int
    time: float

    @property
    def progress(self) -> float:
        """0 at the first step (pure noise), towards 1 at the last."""
        return self.index / self.count


def iterate_steps(times: Tensor) -> Iterator[tuple[Step, Tensor]]:
    """Every call of the UNet in order, with the time as the scheduler's own tensor ()."""
    for index, time in enumerate(times):
        yield Step(index, len(times), float(time)), time


def take_step(
    scheduler: Any,
    prediction: Tensor,
    time: Tensor,
    latents: Tensor,
    generators: Sequence[torch.Generator],
    unconditional: Tensor | None = None,
) -> Tensor:
    """The latents (B, C, h, w) one step on.

    Args:
        unconditional: the prediction without the prompt, which the CFG++ methods need.
        generators: one for each image, on the CPU. Stochastic schedulers draw each image's noise
            from its own, so that an image does not depend on the batch that it is painted in.
    """
    assert len(generators) == len(latents)
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": list(generators)} if "generator" in accepted else {}
    if reads_unconditional(scheduler):
        assert unconditional is not None
        extra["unconditional"] = unconditional
    return scheduler.step(prediction, time, latents, **extra, return_dict=False)[0]


def reads_unconditional(scheduler: Any) -> bool:
    """Whether a step needs the prediction without the prompt: CFG++."""
    return "unconditional" in inspect.signature(scheduler.step).parameters


def guess_clean(scheduler: Any, prediction: Tensor, time: Tensor, latents: Tensor) -> Tensor:
    """The clean latents (B, C, h, w) that a prediction at the present step stands for.

    latents = a · clean + b · noise, in the scheduler's own scale: a² + b² is 1 or more.
    """
    kind = scheduler.config.prediction_type
    if is_edm(scheduler.config):
        sigma = scheduler.sigmas[scheduler.step_index]
        return scheduler.precondition_outputs(latents, prediction, sigma)
    one, zero = latents.new_ones(1, 1, 1, 1), latents.new_zeros(1, 1, 1, 1)
    a = scheduler.add_noise(one, zero, time.reshape(1))
    b = scheduler.add_noise(zero, one, time.reshape(1))
    if hasattr(scheduler, "sigmas_interpol"):
        # Between the two calls of DPM2 the latents are at a level of their own, which `add_noise`
        # does not know; what the UNet is shown has the length 1.
        b = (1 / scheduler.scale_model_input(one.double(), time) ** 2 - 1).sqrt().to(b)
    if kind == "sample":
        return prediction
    if kind == "epsilon":
        return (latents - b * prediction) / a
    assert kind == "v_prediction", kind
    # v speaks of latents of the length 1: (a · noise - b · clean) / √(a² + b²)
    return (a * latents / (a * a + b * b).sqrt() - b * prediction) / (a * a + b * b).sqrt()


def visited_times(
    scheduler: Any,
    steps: int,
    *,
    strength: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Which of the scheduler's times a run visits; all of them unless something is given.

    Args:
        scheduler: with its `steps` times set; its first step is moved to the first of these.
        strength: above 0 to 1; the last int(steps · strength) steps, for a picture to begin from.
        start, end: between 0 and 1; the times from the one where a run with this `end` stopped, or
            up to it: the share of the training times that is passed, counted from pure noise.

    Raises:
        UsageError: a value out of range, or one that leaves no step.
    """
    for name, value in (("strength", strength), ("denoising_start", start), ("denoising_end", end)):
        check_share(name, value)
    times, order = scheduler.timesteps, scheduler.order
    first, last = 0, len(times)
    if strength is not None:
        run = min(int(steps * strength), steps)
        first = (steps - run) * order if run else last
    if start is not None:
        first = _passed(scheduler, start)
    if end is not None:
        last = _passed(scheduler, end)
    if first >= last:
        limits = {"strength": strength, "denoising_start": start, "denoising_end": end}
        shown = ", ".join(
            f"{name} {value:g}" for name, value in limits.items() if value is not None
        )
        raise UsageError(
            f"Nothing is left to do with {steps} steps and {shown}.",
            "They select the part of the steps that is run, and here it is empty.",
            "Use more steps, a higher strength, or an end above the start.",
        )
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return times[first:last]


def passed_share(scheduler: Any, time: float) -> float:
    """Which share of the noise levels is passed at a time, 0 for pure noise to 1 for none.

    A training step is a share of them; EDM's times are logarithms of levels.
    """
    config = scheduler.config
    if is_edm(config):
        most, least = math.log(config.sigma_max) / 4, math.log(config.sigma_min) / 4
        return min(max((most - time) / (most - least), 0.0), 1.0)  # times are float32
    return 1 - time / config.num_train_timesteps


def _passed(scheduler: Any, share: float) -> int:
    """How many of the times lie in this share of the training times, from pure noise on."""
    if is_edm(scheduler.config):
        passed = sum(passed_share(scheduler, float(time)) <= share for time in scheduler.timesteps)
    else:
        trained = scheduler.config.num_train_timesteps
        cut = round(trained - share * trained)
        passed = int((scheduler.timesteps >= cut).sum())
    # A step of a second-order solver is two calls: between them there is nothing to hand over.
    return min(-(-passed // scheduler.order) * scheduler.order, len(scheduler.timesteps))


def check_share(name: str, value: Any) -> None:
    """Refuse a part of the run that is not above 0, and below 1; a strength may be 1."""
    if value is None:
        return
    number = as_finite(value, 0, 1)
    if number and (number < 1 or name == "strength"):
        return
    if name == "strength":
        allowed, hint = "up to 1", "Use 0.3 to stay near the picture, 0.8 to keep little of it."
    else:
        allowed, hint = "below 1", "0.8 is usual for SDXL's refiner."
    raise UsageError(f"{name} is {shown(value)}.", f"It must be a number above 0, {allowed}.", hint)
