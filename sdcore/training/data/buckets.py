"""Buckets: the sizes that pictures are trained at, and what a picture becomes in one.

All pictures of a batch have one size. Buckets are sizes of many shapes and of about one area, so
that little is cut off (NovelAI 2022; Podell et al. 2023, arXiv:2307.01952, section 2.3). A picture
that would have to be enlarged too far is trained at a bucket of three quarters or half the
resolution, where that is large enough, and else is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sdcore.errors import UsageError
from sdcore.size import SIZE_UNIT, Size
from sdcore.training.data.settings import DataSettings

MOST_ASPECT = 8.0  # longer pictures are refused; more than half of them would be cut off
_RUNGS = (1.0, 0.75, 0.5)  # of the resolution
Rungs = tuple[tuple[Size, ...], ...]


@dataclass(frozen=True)
class Fit:
    """What a picture becomes: resized, and then cut to its bucket.

    bucket: the size that is trained at.
    resized: the size of the whole picture before it is cut; no side is smaller than the bucket's.
    crop: (x, y) where the cut begins, in pixels of `resized`.
    """

    bucket: Size
    resized: Size
    crop: tuple[int, int]

    def moved(self, across: float, down: float) -> Fit:
        """The same with the cut elsewhere: shares of the free room, 0 to 1."""
        room = (
            self.resized.width - self.bucket.width,
            self.resized.height - self.bucket.height,
        )
        wanted = zip((across, down), room, strict=True)
        x, y = (min(int(share * (free + 1)), free) for share, free in wanted)
        return replace(self, crop=(x, y))

    def kept(self) -> float:
        """The share of the picture that is not cut off."""
        return self.bucket.area / self.resized.area


def bucket_unit(resolution: int, factor: int) -> int:
    """What sides of buckets are multiples of: 8 latents where an eighth of the side allows it.

    64 pixels for Stable Diffusion at 512 and above; less for small models; a multiple of 8 pixels.
    """
    unit = math.lcm(factor, SIZE_UNIT)
    while unit * 2 <= 8 * factor and unit * 2 * 8 <= resolution:
        unit *= 2
    return unit


def make_buckets(resolution: int, factor: int) -> tuple[Size, ...]:
    """Sizes whose area is at most the square of `resolution`, of shapes from 1:4 to 4:1.

    Args:
        resolution: side of the square, in pixels.
        factor: pixels of a side for each latent.

    Raises:
        UsageError: the resolution is below what the model can be trained at.
    """
    unit = bucket_unit(resolution, factor)
    if resolution < unit:
        raise UsageError(
            f"The resolution is {resolution}.", f"It is at least {unit} here.", f"Use {unit}."
        )
    square = resolution - resolution % unit
    sizes = {Size(square, square)}
    for width in range(unit * math.ceil(resolution / 2 / unit), 2 * resolution + 1, unit):
        height = min(resolution * resolution // width, 2 * resolution)
        height -= height % unit
        if height >= unit:
            sizes |= {Size(width, height), Size(height, width)}
    return tuple(sorted(sizes, key=lambda size: size.width_height))


def make_rungs(settings: DataSettings, resolution: int, factor: int) -> Rungs:
    """Buckets at the resolution, and at smaller ones for small pictures; see the top."""
    unit = bucket_unit(resolution, factor)
    sides = [int(resolution * share) // unit * unit for share in _RUNGS]
    sides = sorted({side for side in sides if side >= unit} | {max(sides[0], unit)}, reverse=True)
    if settings.buckets:
        first = make_buckets(resolution, factor)
        return (first, *(_multiples(make_buckets(side, factor), unit) for side in sides[1:]))
    return tuple((Size(side, side),) for side in sides)


def _multiples(sizes: tuple[Size, ...], unit: int) -> tuple[Size, ...]:
    """Those whose sides are multiples of the large buckets' unit: fewer sizes, fuller batches."""
    return tuple(s for s in sizes if s.width % unit == 0 and s.height % unit == 0)


def fit(size: Size, settings: DataSettings, rungs: Rungs) -> Fit | None:
    """The largest bucket that a picture fills, and of those the one that cuts off least.

    Args:
        size: of the picture, upright.

    Returns:
        None where it would have to be enlarged by more than `settings.most_enlarged`.
    """
    for buckets in rungs:
        bucket = nearest(size, buckets)
        if max(bucket.width / size.width, bucket.height / size.height) <= settings.most_enlarged:
            return _fit_into(size, bucket)
    return None


def nearest(size: Size, buckets: tuple[Size, ...]) -> Size:
    """The bucket whose shape is most like that of a picture."""
    return min(buckets, key=lambda bucket: (_lost(size, bucket), bucket.width_height))


def _lost(size: Size, bucket: Size) -> float:
    """How far the shapes differ, as the logarithm of the ratio of their ratios."""
    return abs(math.log(size.width / size.height) - math.log(bucket.width / bucket.height))


def _fit_into(size: Size, bucket: Size) -> Fit:
    """The smallest whole picture that covers the bucket, cut from its middle."""
    # In whole numbers: floating point could give a side one pixel too small, or another machine's.
    if bucket.width * size.height >= bucket.height * size.width:  # the width is what binds
        across, down = bucket.width, _rounded(size.height * bucket.width, size.width)
    else:
        across, down = _rounded(size.width * bucket.height, size.height), bucket.height
    resized = Size(max(across, bucket.width), max(down, bucket.height))
    crop = (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2
    return Fit(bucket, resized, crop)


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
