"""The sampling loop, and which part of a scheduler's times it visits.

    noise or a noisy picture -> (unet, guidance, one step of the scheduler) ... -> latents

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdcore.attention_inputs import describe_tensor
from sdcore.diffusion.steps import Step, guess_clean, iterate_steps, passed_share, take_step
from sdcore.errors import NonFiniteError, UsageError
from sdcore.sampling.begin import begin_run
from sdcore.sampling.calls import NO_SHORTCUTS, RunCall
from sdcore.sampling.fitting import check_shortcuts
from sdcore.sampling.guidance import (
    Guidance,
    Part,
    Prediction,
    StepConditioning,
    StepControls,
    guided_prediction,
)

if TYPE_CHECKING:
    from sdcore.attention import Control
    from sdcore.control.run_control import ControlLike
    from sdcore.diffusion.shortcuts import Shortcuts
    from sdcore.sampling.conditioning import PromptPlan
    from sdcore.unet.unet import UNet


@dataclass(frozen=True)
class Sampler:
    """A scheduler of one run's own, the times of it that are visited, and each image's generator.

    Every draw of image i comes from generator i, so that it does not depend on its batch.
    """

    scheduler: Any
    times: Tensor
    generators: Sequence[torch.Generator]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise (B, *shape), on the CPU."""
        drawn = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn)

    def add_noise(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Clean latents as noisy as the scheduler has them at the time where the run stands."""
        return self.scheduler.add_noise(latents, noise, time.reshape(1))


@dataclass(frozen=True)
class Kept:
    """What a UNet that knows nothing of masks must leave as it is: put back after each step.

    image: (B, C, h, w) the picture's latents.
    noise: (B, C, h, w) the noise that the run began from.
    mask:  (B, 1, h, w), 1 where the model paints, 0 where the picture stays.
    """

    image: Tensor
    noise: Tensor
    mask: Tensor

    def put_back(self, latents: Tensor, sampler: Sampler, next_time: Tensor | None) -> Tensor:
        """The latents with the picture, as noisy as they are, where the mask is 0.

        Avrahami et al. 2022 (arXiv 2206.02779).
        """
        image = self.image
        if next_time is not None:
            image = sampler.add_noise(image, self.noise, next_time)
        return (1 - self.mask) * image + self.mask * latents


@dataclass(frozen=True)
class Start:
    """What a run begins from.

    latents:       (B, C, h, w), as noisy as the first time.
    mask_channels: (B, 1 + C, h, w) for an inpainting UNet, which reads the mask and the masked
        picture together with the latents.
    kept:          for inpainting with any other UNet.
    """

    latents: Tensor
    mask_channels: Tensor | None = None
    kept: Kept | None = None


def denoise(
    unet: UNet,
    sampler: Sampler,
    start: Start,
    plan: PromptPlan,
    guidance: Guidance,
    control: ControlLike | None = None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
) -> Iterator[tuple[Step, Tensor]]:
    """The sampling loop: each step, and the latents (B, C, h, w) after it, in float32.

    The UNet runs in its own type.

    Raises:
        NonFiniteError: NaN or infinity appeared; the message says whose it is, and at which step.
        UsageError: a shortcut that this run cannot take.
    """
    check_shortcuts(shortcuts, plan, guidance, control)
    scheduler, dtype = sampler.scheduler, next(unet.parameters()).dtype
    latents = start.latents
    ready, call = begin_run(control, unet, latents, plan), RunCall(unet, shortcuts)

    def predict(
        latents: Tensor,
        time: Tensor,
        conditioning: StepConditioning,
        guidance: Guidance,
        controls: StepControls,
        step: Step | None = None,
    ) -> Prediction:
        seen = scheduler.scale_model_input(latents, time)
        if start.mask_channels is not None:
            seen = torch.cat([seen, start.mask_channels], dim=1)  #            (B, 2C + 1, h, w)
        seen = seen.to(dtype)
        here = partial(call, step=step)
        found = guided_prediction(here, seen, time, conditioning, guidance, controls)
        alone = found.unconditional
        return Prediction(found.guided.float(), None if alone is None else alone.float())

    def predict_alone(
        latents: Tensor, control: Control | None, time: Tensor, conditioning: StepConditioning
    ) -> Tensor:
        """The first prompt's rows alone, without a shortcut, for a control that looks ahead."""
        first = StepConditioning((Part(conditioning.parts[0].conditioning),), None)
        return predict(latents, time, first, Guidance(1.0), StepControls((control,))).guided

    for step, time in iterate_steps(sampler.times):
        conditioning = plan.at(step)
        look_ahead = partial(predict_alone, time=time, conditioning=conditioning)
        changed = ready.control.before_step(step, latents, look_ahead)
        latents = _checked(changed, latents, step, "before_step")
        here = call.guidance(step, guidance.at(passed_share(scheduler, step.time)))
        prediction, alone = predict(latents, time, conditioning, here, ready.at(step), step)
        guess = partial(guess_clean, scheduler, prediction, time, latents)
        ready.control.on_guess(step, guess)
        latents = take_step(scheduler, prediction, time, latents, sampler.generators, alone)
        _check_finite(latents, prediction, step)
        latents = _checked(ready.control.after_step(step, latents), latents, step, "after_step")
        if start.kept is not None:
            following = sampler.times[step.index + 1 : step.index + 2]
            next_time = following[0] if len(following) else None
            latents = start.kept.put_back(latents, sampler, next_time)
        yield step, latents


def _checked(changed: object, latents: Tensor, step: Step, hook: str) -> Tensor:
    """What a control made of latents (B, C, h, w). UsageError where it is nothing like them."""
    if (
        isinstance(changed, Tensor)
        and changed.shape == latents.shape
        and changed.dtype == latents.dtype
        and changed.device == latents.device
    ):
        return changed
    raise UsageError(
        f"A control's {hook} gave {describe_tensor(changed)} at step {step.index + 1} of "
        f"{step.count}.",
        f"The run goes on with {describe_tensor(latents)}.",
        "Return the latents that it is handed, or a tensor like them.",
    )


def _check_finite(latents: Tensor, prediction: Tensor, step: Step) -> None:
    if torch.isfinite(latents).all():
        return
    broken = not torch.isfinite(prediction).all()
    raise NonFiniteError(
        f"The {'UNet' if broken else 'scheduler'} gave NaN or infinity.",
        f"It happened at step {step.index + 1} of {step.count}, time {step.time:g}.",
        "Load the model in float32 or bfloat16, or lower the guidance scale.",
    )
