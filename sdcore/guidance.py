"""Classifier-free guidance, and the one place that knows which rows are unconditional.

    prediction = unconditional + scale · (conditional - unconditional)     (Ho & Salimans 2022)

Both are computed in one call of the UNet on 2B rows, unconditional first, as in diffusers.

Shapes: B images, C channels, h w latent grid, T text tokens, D text width, H heads, N image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.errors import UsageError
from sdcore.unet import AddedConditions

if TYPE_CHECKING:
    from sdcore.attention import Attend, Control, Site


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about each image: text (B, T, D), and SDXL's added conditions."""

    text: Tensor
    added: AddedConditions | None = None

    def pick(self, rows: Sequence[int]) -> Conditioning:
        """These rows, in this order, some perhaps more than once."""
        return self._map(lambda values: values[list(rows)])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        added = self.added
        if added is not None:
            added = AddedConditions(change(added.pooled_text), change(added.time_ids))
        return Conditioning(change(self.text), added)


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed.

    Attributes:
        scale: 1 or less runs the conditional rows alone.
        rescale: 0 to 1, how far the guided prediction is brought back to the standard deviation of
            the conditional one (Lin et al. 2023, arXiv 2305.08891, section 3.4); 0.7 is usual for
            v-prediction models with zero terminal SNR, which high scales over-expose.
    """

    scale: float = 7.5
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not _is_number(self.scale) or not math.isfinite(self.scale) or self.scale < 0:
            raise UsageError(
                f"guidance_scale is {self.scale!r}.",
                "It must be a finite number that is not negative.",
                "Use 1 for no guidance, 5 to 8 for most models.",
            )
        if not _is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise UsageError(
                f"guidance_rescale is {self.rescale!r}.",
                "It mixes two predictions, so it lies between 0 and 1.",
                "Use 0 for none; 0.7 is usual for v-prediction models.",
            )

    @property
    def active(self) -> bool:
        return self.scale > 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def guided_prediction(
    unet: Callable[..., Tensor],
    latents: Tensor,
    time: Tensor,
    conditional: Conditioning,
    unconditional: Conditioning | None,
    guidance: Guidance,
    control: Control | None = None,
) -> Tensor:
    """The UNet's prediction for B images, guided: (B, C, h, w) in the type of the UNet's answer.

    Args:
        unet: called as `unet(latents, time, text, control, added=...)`.
        unconditional: may be None when `guidance` is not active.
        control: is handed the B conditional rows only, in the order of the images.
    """
    if not guidance.active:
        return unet(latents, time, conditional.text, control, added=conditional.added)
    assert unconditional is not None, "guidance needs the unconditional rows"

    both = _stack(unconditional, conditional)
    rows = torch.cat([latents, latents])  #                         (2B, C, h, w)
    control = None if control is None else _ConditionalRows(control)
    negative, positive = unet(rows, time, both.text, control, added=both.added).chunk(2)
    prediction = negative + guidance.scale * (positive - negative)
    if guidance.rescale > 0:
        prediction = _rescale(prediction, positive, guidance.rescale)
    return prediction


def _stack(unconditional: Conditioning, conditional: Conditioning) -> Conditioning:
    text = torch.cat([unconditional.text, conditional.text])  #     (2B, T, D)
    if conditional.added is None:
        return Conditioning(text)
    assert unconditional.added is not None
    pooled = torch.cat([unconditional.added.pooled_text, conditional.added.pooled_text])
    time_ids = torch.cat([unconditional.added.time_ids, conditional.added.time_ids])
    return Conditioning(text, AddedConditions(pooled, time_ids))


def _rescale(prediction: Tensor, conditional: Tensor, amount: float) -> Tensor:
    axes = tuple(range(1, prediction.ndim))
    wanted = conditional.std(dim=axes, keepdim=True)
    rescaled = prediction * (wanted / prediction.std(dim=axes, keepdim=True))
    return amount * rescaled + (1 - amount) * prediction


class _ConditionalRows:
    """Shows a control the conditional half; the other half attends as if there were none."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        q_negative, q_positive = q.chunk(2)  #                      (2B, H, N, d) -> (B, H, N, d)
        k_negative, k_positive = k.chunk(2)
        v_negative, v_positive = v.chunk(2)
        negative = attend(q_negative, k_negative, v_negative)
        positive = self.control(site, grid, q_positive, k_positive, v_positive, attend)
        return torch.cat([negative, positive])
