"""How strongly the prompt is followed: the settings of classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

from sdcore.checks import as_finite
from sdcore.errors import UsageError


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

    Raises:
        UsageError: a number out of range.
    """

    scale: float = 7.5
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if as_finite(self.scale, 0) is None:
            raise UsageError(
                f"guidance_scale is {self.scale!r}.",
                "It must be a finite number that is not negative.",
                "Use 1 for no guidance, 5 to 8 for most models.",
            )
        if as_finite(self.rescale, 0, 1) is None:
            raise UsageError(
                f"guidance_rescale is {self.rescale!r}.",
                "It mixes two predictions, so it lies between 0 and 1.",
                "Use 0 for none; 0.7 is usual for v-prediction models.",
            )

        start, end = self.interval
        if as_finite(start, 0, 1) is None or as_finite(end, 0, 1) is None or start >= end:
            raise UsageError(
                f"guidance_interval is {self.interval!r}.",
                "It is a part of the noise levels, 0 <= start < end <= 1.",
                "Use 0 and 1 for all of them; 0.2 and 0.8 spares the first and the last.",
            )

    def at(self, cleaned: float) -> Guidance:
        """The guidance where this share of the noise levels, 0 to 1, is passed."""
        start, end = self.interval
        return self if start <= cleaned < end or self.interval == (0, 1) else Guidance(1.0)

    @property
    def active(self) -> bool:
        return self.scale > 1
