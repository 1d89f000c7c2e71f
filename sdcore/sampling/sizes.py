"""What SDXL's UNet reads about the size of a picture, besides the text."""

from __future__ import annotations

from dataclasses import replace

from sdcore.checkpoint.kind import ModelKind
from sdcore.errors import UsageError
from sdcore.size import Size, SizeConditioning

# diffusers' aesthetic scores of the refiner, for the prompt and for the negative prompt.
SCORE, NEGATIVE_SCORE = 6.0, 2.5


def choose_sizes(
    kind: ModelKind,
    painted: Size,
    size: SizeConditioning | None = None,
    negative: SizeConditioning | None = None,
) -> tuple[SizeConditioning | None, SizeConditioning | None]:
    """What the UNet reads about the size, for the prompt and for the negative prompt.

    Args:
        painted: the picture's size, for what is None.

    Raises:
        UsageError: a conditioning that this model cannot read.
    """
    for one in (size, negative):
        check_size_conditioning(kind, one)
    if not kind.size_numbers:
        return None, None
    size = size or SizeConditioning.of(painted)
    if not kind.refiner:
        return size, negative or size
    negative = negative or replace(size, crop=(0, 0), aesthetic=None)
    score, negative_score = size.aesthetic, negative.aesthetic
    return (
        replace(size, aesthetic=SCORE if score is None else score),
        replace(negative, aesthetic=NEGATIVE_SCORE if negative_score is None else negative_score),
    )


def check_size_conditioning(kind: ModelKind, size: object) -> None:
    """Refuse, with a UsageError, a conditioning that this model's UNet cannot read."""
    if size is None:
        return
    if not kind.size_numbers:
        raise UsageError(
            "There is a size conditioning.",
            "This model's UNet reads nothing about sizes; SDXL's does.",
            "Leave it out.",
        )
    if not isinstance(size, SizeConditioning):
        raise UsageError(
            f"The size conditioning is of type {type(size).__name__}.",
            "It says original size, crop and target size.",
            "Pass a sdcore.SizeConditioning.",
        )
    if size.aesthetic is not None and not kind.refiner:
        raise UsageError(
            "The size conditioning has an aesthetic score.",
            "Only SDXL's refiner reads one; this model reads a target size in its place.",
            "Leave the score out.",
        )
