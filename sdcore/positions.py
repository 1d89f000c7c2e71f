"""Places of tokens, and times of the diffusion, as vectors: sinusoid and learned.

Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.

Shapes: B batch, N tokens, D width, n numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.checks import as_finite, check_int, has_type, shown
from sdcore.errors import UsageError


def sinusoid(
    position: Tensor, width: int, *, cosine_first: bool = False, shift: float = 0.0
) -> Tensor:
    """Turn numbers into waves of geometrically spaced lengths: (n,) to (n, width), float32.

    Used for places in a sentence and for times of the diffusion alike (3.5; there sines and
    cosines take turns, here each kind stands together, which only numbers the D places anew).

    Args:
        position: (n,) positions or times; fractions are fine.
        width: length of each vector; an odd one ends in a zero.
        cosine_first: cosines before sines (`flip_sin_to_cos`).
        shift: 1 makes the longest wave exactly 10000, 0 a little shorter (`freq_shift`).

    Raises:
        UsageError: the positions are no list of numbers, the width is below 1, or the shift is no
            number below half the width.
    """
    check_int("The width of waves", width, 1, hint="Use an even number.")
    if not has_type(position, Tensor) or position.dim() != 1 or position.is_complex():
        found = tuple(position.shape) if has_type(position, Tensor) else type(position).__name__
        why = f"They are a tensor (n,) of numbers, and not {found}."
        raise UsageError("Waves cannot be made for these positions.", why, "Give one row of them.")
    half = width // 2
    if as_finite(shift) is None or (half <= shift and shift):
        raise UsageError(
            f"Waves of width {width} cannot have the shift {shown(shift)}.",
            f"They have {half} lengths, from which the shift is taken.",
            "Use a larger width, or a shift of 0.",
        )
    exponents = torch.arange(half, dtype=torch.float32, device=position.device)
    frequencies = torch.exp(-math.log(10000) * exponents / (half - shift))
    angles = position.float()[:, None] * frequencies  # (n, half)
    waves = (angles.cos(), angles.sin()) if cosine_first else (angles.sin(), angles.cos())
    return F.pad(torch.cat(waves, dim=-1), (0, width % 2))


class SinusoidalPositions(nn.Module):
    """Add to each token the wave pattern of its place: x (B, N, D) to (B, N, D); any length.

    `first` is the place of the first token given, where those before it are already written.
    """

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        place = torch.arange(first, first + x.shape[1], device=x.device)
        return x + sinusoid(place, x.shape[2]).to(x.dtype)


class LearnedPositions(nn.Module):
    """Add to each token a trained vector for its place: x (B, N, D), N at most `length`."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        check_int("The number of learned positions", length, 1, hint="Use 1 or more.")
        check_int("The width of learned positions", width, 1, hint="Use that of the tokens.")
        self.weight = nn.Parameter(torch.randn(length, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.weight):
            raise UsageError(
                f"The sequence has {x.shape[1]} tokens.",
                f"Learned positions exist for {len(self.weight)} tokens.",
                "Shorten the sequence, or use sinusoidal positions.",
            )
        if x.shape[2] != self.weight.shape[1]:
            raise UsageError(
                f"The tokens have the width {x.shape[2]}.",
                f"These positions have the width {self.weight.shape[1]}.",
                "Use positions of the width of the tokens.",
            )
        return x + self.weight[: x.shape[1]]
