"""A control made ready for a run: what it learns before the first step.

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sdcore.control.run_control import (
    ControlLike,
    Run,
    RunControl,
    as_run_control,
    attention_sites,
)
from sdcore.errors import UsageError
from sdcore.sampling.guidance import StepControls

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step
    from sdcore.sampling.conditioning import PromptPlan


@dataclass(frozen=True)
class ReadyControl:
    """A control whose run has begun.

    control:  what takes part in the run, by its hooks.
    parts:    the control of each prompt of an AND.
    negative: the control of the negative prompt.
    """

    control: RunControl
    parts: tuple[RunControl | None, ...]
    negative: RunControl | None

    def at(self, step: Step) -> StepControls:
        """What the layers call in one step, for each group of rows."""
        parts = tuple(None if part is None else part.at(step) for part in self.parts)
        return StepControls(parts, None if self.negative is None else self.negative.at(step))


def begin_run(
    control: ControlLike | None, unet: nn.Module, latents: Tensor, plan: PromptPlan
) -> ReadyControl:
    """Make a control ready for a run on latents (B, C, h, w); None gives one that does nothing.

    Raises:
        UsageError: it is no control, it does not fit the run, or no word can reach the UNet.
    """
    if control is None:
        return ReadyControl(RunControl(), (), None)
    first, weight = plan.steps[0], next(unet.parameters())
    lengths = tuple(part.conditioning.text.shape[1] for part in first.parts)
    run = Run(
        rows=len(latents),
        text_tokens=lengths[0],
        parts=lengths,
        grid=(latents.shape[2], latents.shape[3]),
        sites=attention_sites(unet),
        device=weight.device,
        dtype=weight.dtype,
        tokens=plan.tokens,
    )
    negative = first.unconditional
    return begin_control(control, run, None if negative is None else negative.text.shape[1])


def begin_control(control: ControlLike, run: Run, negative_tokens: int | None) -> ReadyControl:
    """The same for a run that is known.

    Args:
        negative_tokens: T of the negative prompts; None where they are not read.
    """
    ready = as_run_control(control)
    if not any(site.kind == "cross" for site in run.sites):
        raise UsageError(
            f"{type(control).__name__} cannot control this model.",
            "Its UNet has no cross-attention: no word can reach the picture.",
            "Use a UNet with cross-attention, or leave the control out.",
        )
    ready.begin(run)
    parts = [ready.part(number) for number in range(len(run.parts))]
    negative = _optional(ready.negative)
    if negative is not None:
        if negative_tokens is None:
            raise UsageError(
                "There is a control for the negative prompt, which is not read.",
                "At a guidance scale of 1 or less there are no rows of it.",
                "Raise the guidance scale, or leave that control out.",
            )
        negative.begin(run.of_negative(negative_tokens))
    return ReadyControl(ready, tuple(_optional(part) for part in parts), negative)


def _optional(control: ControlLike | None) -> RunControl | None:
    return None if control is None else as_run_control(control)
