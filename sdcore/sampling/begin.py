"""A control made ready for a run: what it is told before the first step.

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sdcore.attention import Control
from sdcore.control.run_control import NOTHING, Run, RunControl, as_run_control, attention_sites
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.sampling.conditioning import PromptPlan


def begin_run(
    control: Control | None, unet: nn.Module, latents: Tensor, plan: PromptPlan
) -> RunControl:
    """Make a control ready for a run on latents (B, C, h, w); None gives one that does nothing.

    Raises:
        UsageError: the UNet has no cross-attention, or the control does not fit the run.
    """
    if control is None:
        return NOTHING
    sites = attention_sites(unet)
    if not any(site.kind == "cross" for site in sites):
        raise UsageError(
            f"{type(control).__name__} cannot control this model.",
            f"{type(unet).__name__} has no cross-attention: no word can reach the picture.",
            "Use a UNet with cross-attention, or leave the control out.",
        )
    first, grid = plan.steps[0], (latents.shape[2], latents.shape[3])
    lengths = tuple(part.conditioning.text.shape[1] for part in first.parts)
    ready = as_run_control(control)
    run = Run(len(latents), lengths[0], lengths, grid, sites, plan.tokens)
    ready.begin(run)
    if ready.negative is not None:
        if first.unconditional is None:
            raise UsageError(
                "There is a control for the negative prompt, which is not read.",
                "At a guidance scale of 1 or less there are no rows of it.",
                "Raise the guidance scale, or leave that control out.",
            )
        length = first.unconditional.text.shape[1]
        of_negative = replace(run, text_tokens=length, parts=(length,), tokens=None)
        as_run_control(ready.negative).begin(of_negative)
    return ready
