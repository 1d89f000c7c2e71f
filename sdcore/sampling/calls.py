"""The UNet as a run calls it: rows of several texts at once, each text read once.

Shapes: B images, R rows of a call (B for each text), C channels, h w latent grid, T text tokens,
D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sdcore.attention import Control, KnownText
from sdcore.unet.unet import AddedConditions

if TYPE_CHECKING:
    from sdcore.unet.unet import UNet

KEPT = 2  # calls whose texts are known at a time: with the negative prompt, and without it


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about each image: text (B, T, D), and SDXL's added conditions."""

    text: Tensor
    added: AddedConditions | None = None


class _Known(NamedTuple):
    conditionings: Sequence[Conditioning]
    text: KnownText
    added: AddedConditions | None


class RunCall:
    """The UNet of one run: what its layers make of a text is the same at every step, and is kept.

    It belongs to the run; the UNet keeps nothing. Each text is read in the rows of its call, so the
    numbers are those of reading it at every step.

    A call is for B images, with several texts of one length for each: latents (B, C, h, w) to rows
    (R, C, h, w), text by text.
    """

    def __init__(self, unet: UNet) -> None:
        self.unet = unet
        # by the identity of the conditionings, which are held here as long as it is used
        self._known: dict[tuple[int, ...], _Known] = {}

    def __call__(
        self,
        latents: Tensor,
        time: Tensor,
        conditionings: Sequence[Conditioning],
        control: Control | None,
        told: float | None,
    ) -> Tensor:
        """The UNet's answer.

        Args:
            control: sees all rows.
            told: the guidance scale, for a UNet that is told it.
        """
        known = self.known(conditionings)
        rows = torch.cat([latents] * len(conditionings))  #         (R, C, h, w)
        scale = {} if told is None else {"guidance_scale": told}
        return self.unet(rows, time, known.text, control, added=known.added, **scale)

    def known(self, conditionings: Sequence[Conditioning]) -> _Known:
        """The texts of a call as the layers know them."""
        key = tuple(map(id, conditionings))
        if key not in self._known:
            if len(self._known) == KEPT:
                del self._known[next(iter(self._known))]
            both = _stack(conditionings)
            with torch.no_grad():  # a control may look ahead with gradients, of latents alone
                text = self.unet.read(both.text)
            self._known[key] = _Known(conditionings, text, both.added)
        return self._known[key]


def _stack(conditionings: Sequence[Conditioning]) -> Conditioning:
    """The rows of several texts as one batch, text by text."""
    text = torch.cat([each.text for each in conditionings])  #      (R, T, D)
    added = [each.added for each in conditionings if each.added is not None]
    if not added:
        return Conditioning(text)
    assert len(added) == len(conditionings)
    pooled = torch.cat([each.pooled_text for each in added])
    time_ids = torch.cat([each.time_ids for each in added])
    return Conditioning(text, AddedConditions(pooled, time_ids))
