"""The size of a picture in pixels, and what SDXL's UNet reads about it: one record for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

from sdcore.checks import as_finite, as_int, shown
from sdcore.errors import UsageError

# 8 also where one latent covers less: the rule of Stable Diffusion and of diffusers' pipelines.
SIZE_UNIT = 8
# How many times as many pixels as a model was trained on, or as few, are too many.
FAR = 4
_LARGEST = 1_000_000  # pixels of a side, and that a conditioning tells
_WRITTEN = re.compile(r"([0-9]{1,6})(?:x([0-9]{1,6}))?")


Box = tuple[float, float, float, float]


def check_box(box: Any, of: str) -> Box:
    """A part of a picture: left, top, right, bottom, as parts of its width and height.

    Args:
        of: whose it is, as a sentence about it goes on: "the region 'a fox'".

    Raises:
        UsageError: it is empty, outside, or no four numbers.
    """
    sides: list[Any] = [*cast("Any", box)] if isinstance(box, tuple | list) else []
    good = len(sides) == 4 and all(as_finite(side, 0, 1) is not None for side in sides)
    if not good or sides[0] >= sides[2] or sides[1] >= sides[3]:
        raise UsageError(
            f"The box of {of} is {shown(cast('object', box))}.",
            "It is left, top, right, bottom, each 0 to 1; as it stands it is empty or outside.",
            "The left half of the picture is (0, 0, 0.5, 1).",
        )
    return sides[0], sides[1], sides[2], sides[3]


@dataclass(frozen=True)
class Size:
    """A width and a height in pixels, whole numbers.

    A size as such may be any: a photograph need not be a multiple of 8. What is painted is checked
    by `paintable`.
    """

    width: int
    height: int

    @classmethod
    def parse(cls, text: str, flag: str = "") -> Size:
        """The size that is written as 768x512, width first, or as 512 for both.

        Args:
            flag: the flag of a command that it was written behind, for the error.

        Raises:
            UsageError: it is written in another way.
        """
        found = _WRITTEN.fullmatch(text.lower())
        if found is None:
            example = f"{flag} " if flag else ""
            raise UsageError(
                f"{flag or 'The size'} {text} cannot be used.",
                "It is one number, or width and height joined by x.",
                f"Use for example {example}512 or {example}768x512.",
            )
        return cls(int(found[1]), int(found[2] or found[1]))

    @property
    def width_height(self) -> tuple[int, int]:
        """The order of Pillow."""
        return self.width, self.height

    @property
    def height_width(self) -> tuple[int, int]:
        """The order of a tensor (..., H, W)."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """The number of pixels."""
        return self.width * self.height

    def latent_grid(self, factor: int) -> tuple[int, int]:
        """(h, w) of the latents, of which each covers `factor` pixels in width and in height."""
        return self.height // factor, self.width // factor

    def paintable(self, unit: int = SIZE_UNIT) -> Size:
        """This size as plain ints. UsageError where its sides are no multiples of `unit`."""
        return Size(check_side(self.width, "width", unit), check_side(self.height, "height", unit))

    def rounded_down(self, unit: int = SIZE_UNIT) -> Size:
        """The largest size within this one that can be painted; at least one unit each way."""
        width, height = (max(unit, side - side % unit) for side in self.width_height)
        return Size(width, height)

    def is_far_from(self, native: Size, times: float = FAR) -> bool:
        """Whether this is more than so many times a model's own area, or less than that part."""
        return not 1 / times <= self.area / native.area <= times

    def fitted_to(self, native: Size, unit: int = SIZE_UNIT) -> Size:
        """The same aspect ratio at a model's own area."""
        scale = (native.area / self.area) ** 0.5
        width, height = (max(unit, round(side * scale / unit) * unit) for side in self.width_height)
        return Size(width, height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class SizeConditioning:
    """What SDXL's UNet reads about a picture's size, in pixels, rows first as in its training.

    Attributes:
        original: (height, width) that the picture had before it was cropped and scaled.
        crop: (top, left) where the crop began; (0, 0) for a picture that nothing is cut from.
        target: (height, width) that is painted.
        aesthetic: the refiner's score in place of the target size; 6.0, and 2.5 for the negative
            prompt, in diffusers.

    Podell et al. 2023 (arXiv:2307.01952), section 2.2.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]
    aesthetic: float | None = None

    @classmethod
    def of(cls, size: Size) -> SizeConditioning:
        """A whole picture of a size, nothing cut from it."""
        return cls(original=size.height_width, crop=(0, 0), target=size.height_width)

    def check(self) -> None:
        """Refuse what is no pair of pixels. Raises UsageError."""
        for name in ("original", "crop", "target"):
            pair: Any = getattr(self, name)
            numbers = cast("list[Any]", pair) if isinstance(pair, tuple | list) else []
            if len(numbers) != 2 or any(as_finite(n, -_LARGEST, _LARGEST) is None for n in numbers):
                raise UsageError(
                    f"The size conditioning's {name} is {shown(cast('object', pair))}.",
                    f"It is two numbers of pixels, up to {_LARGEST:,}.",
                    "Use for example SizeConditioning.of(Size(1024, 1024)).",
                )
        if self.aesthetic is not None and as_finite(self.aesthetic, -_LARGEST, _LARGEST) is None:
            raise UsageError(
                f"The size conditioning's aesthetic score is {shown(self.aesthetic)}.",
                "It is a number, about 1 to 10.",
                "Use 6, as diffusers does.",
            )

    @property
    def numbers(self) -> tuple[float, ...]:
        """The UNet's `time_ids`: six, or the refiner's five."""
        last = self.target if self.aesthetic is None else (self.aesthetic,)
        return (*self.original, *self.crop, *last)


def check_side(side: object, name: str, unit: int = SIZE_UNIT) -> int:
    """A width or height in pixels as an int. UsageError if no picture of it can be painted.

    Args:
        side: a whole number of any kind, NumPy's too.
        name: of the side, for the error.
        unit: what it must be a multiple of.
    """
    number = as_int(side, -_LARGEST, _LARGEST)
    if number is None or number < unit or number % unit:
        near = 64 if number is None else max(1, round(number / unit))
        raise UsageError(
            f"The {name} is {shown(side)} pixels.",
            f"It must be a multiple of {unit}, {unit} or more and at most {_LARGEST:,}.",
            f"Use {near * unit}.",
        )
    return number
