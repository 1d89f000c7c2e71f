"""A grid through a network in overlapping tiles, one after the other, whose seams are blended.

Little memory at any size, for a picture that differs a little. The tiles are those of diffusers'
AutoencoderKL: a quarter of each overlaps.

Shapes: B batch, C channels, h w grid in, H W grid out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_OVERLAP = 0.25


def in_tiles(call: Callable[[Tensor], Tensor], x: Tensor, side: int, side_out: int) -> Tensor:
    """What `call` makes of x (B, C, h, w), put together from tiles: (B, C', H, W).

    Args:
        side: of a tile of x; side_out: of what `call` makes of one.
    """
    stride = int(side * (1 - _OVERLAP))
    seam = int(side_out * _OVERLAP)
    kept = side_out - seam
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[2], stride):
        row = [
            call(x[:, :, top : top + side, left : left + side])
            for left in range(0, x.shape[3], stride)
        ]
        for i, tile in enumerate(row):
            if above:
                _blend(above[i], tile, seam, dim=2)
            if i:
                _blend(row[i - 1], tile, seam, dim=3)
        rows.append(torch.cat([tile[:, :, :kept, :kept] for tile in row], dim=3))
        above = row
    return torch.cat(rows, dim=2)


def _blend(before: Tensor, tile: Tensor, seam: int, dim: int) -> None:
    """Let the beginning of a tile come out of the end of the one before it, in place."""
    seam = min(seam, before.shape[dim], tile.shape[dim])
    if not seam:
        return
    shape = [1, 1, 1, 1]
    shape[dim] = seam
    share = (torch.arange(seam, dtype=torch.float64) / seam).reshape(shape)
    end = before.narrow(dim, before.shape[dim] - seam, seam)
    start = tile.narrow(dim, 0, seam)
    old, new = (weight.float().to(tile.device) for weight in (1 - share, share))
    start.copy_((end * old).to(tile.dtype) + (start * new).to(tile.dtype))
