"""Sizes that a job leaves open."""

from __future__ import annotations

from sdcore.job.sources import Noise, Picture, Source
from sdcore.size import Size, check_side


def complete_size(
    width: int | None, height: int | None, source: Source, native: Size, factor: int
) -> Size | None:
    """The size of a job of which one side is known; None where none is.

    Args:
        native: the model's own size.
        factor: how many pixels a latent covers in each direction.

    Raises:
        UsageError: a side of which no picture can be painted.
    """
    if width is None and height is None:
        return None
    size = native
    if isinstance(source, Picture):
        if source.only_masked is None:
            size = Size(*source.image.size).rounded_down()
    elif not isinstance(source, Noise) or source.latents is not None:
        assert source.latents is not None
        rows, columns = source.latents.shape[-2:]
        size = Size(columns * factor, rows * factor)
    return Size(
        width=size.width if width is None else check_side(width, "width"),
        height=size.height if height is None else check_side(height, "height"),
    )
