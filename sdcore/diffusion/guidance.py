"""How strongly the prompt is followed: the settings of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sdcore.checks import as_finite, shown
from sdcore.errors import UsageError

LARGEST_SCALE = 1e6


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed.

    Attributes:
        scale: 1 or less runs the conditional rows alone.
        rescale: 0 to 1, how far the guided prediction is brought back to the standard deviation of
            the conditional one (Lin et al. 2023, arXiv 2305.08891, section 3.4); 0.7 is usual for
            v-prediction models with zero terminal SNR, which high scales over-expose.
        interval: the part of the noise levels in which guidance is used, from 0 (pure noise) to 1
            (none); outside it the conditional rows run alone (Kynkäänniemi et al. 2024,
            arXiv 2404.07724).
        plus: CFG++, whose steps need the prediction without the prompt at any scale, and whose
            scale may be below 1.
        told: the UNet itself is told the scale (`time_cond_proj_dim`): no unconditional rows.

    Raises:
        UsageError: a number out of range.
    """

    scale: float = 7.5
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    plus: bool = False
    told: bool = False

    def __post_init__(self) -> None:
        if as_finite(self.scale, 0, LARGEST_SCALE) is None:
            raise UsageError(
                f"guidance_scale is {shown(self.scale)}.",
                f"It must be a number from 0 to {LARGEST_SCALE:g}.",
                "Use 1 for no guidance, 5 to 8 for most models.",
            )
        if as_finite(self.rescale, 0, 1) is None:
            raise UsageError(
                f"guidance_rescale is {shown(self.rescale)}.",
                "It mixes two predictions, so it lies between 0 and 1.",
                "Use 0 for none; 0.7 is usual for v-prediction models.",
            )
        interval = _as_interval(self.interval)
        if interval is None:
            raise UsageError(
                f"guidance_interval is {shown(self.interval)}.",
                "It is a part of the noise levels, 0 <= start < end <= 1.",
                "Use 0 and 1 for all of them; 0.2 and 0.8 spares the first and the last.",
            )
        object.__setattr__(self, "interval", interval)

    def at(self, cleaned: float) -> Guidance:
        """The guidance where this share of the noise levels, 0 to 1, is passed."""
        start, end = self.interval
        # An end of 1 is behind the last level, that of time 0.
        inside = start <= cleaned and (cleaned < end or end == 1)
        return self if inside else Guidance(1.0, plus=self.plus, told=self.told)

    @property
    def active(self) -> bool:
        """Whether the unconditional rows are run."""
        return self.plus or (self.scale > 1 and not self.told)


def _as_interval(value: Any) -> tuple[float, float] | None:
    """Two numbers, 0 <= start < end <= 1; None where it is no such pair."""
    if not isinstance(value, tuple | list) or len(cast("Sequence[Any]", value)) != 2:
        return None
    start, end = (as_finite(number, 0, 1) for number in cast("Sequence[Any]", value))
    return None if start is None or end is None or start >= end else (start, end)
