"""Sources: what a picture begins from - noise, a picture, latents, or a run that stopped half way.

Two sources are equal when their content is, so that equal jobs give equal bits.

Shapes: C latent channels, h w latent grid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdcore.checks import as_int, check_choice
from sdcore.diffusion.steps import check_share
from sdcore.errors import NonFiniteError, UsageError
from sdcore.image.canvas import MASK_CELLS, TOUCHED, fitted_mask
from sdcore.image.pictures import to_mask, to_rgb


class _Content:
    """What can be compared by the digest of its content."""

    @property
    def digest(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.digest == self.digest  # pyright: ignore

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.digest))


@dataclass(frozen=True, eq=False)
class Noise(_Content):
    """Noise alone: that of the job's seed, or these latents (C, h, w) of a standard normal."""

    latents: Tensor | None = None

    def __post_init__(self) -> None:
        if self.latents is not None:
            check_latents(self.latents, "noise")

    @cached_property
    def latents_hash(self) -> str:
        """SHA-256 of the latents as float32."""
        return "" if self.latents is None else hash_latents(self.latents)

    @property
    def digest(self) -> tuple[Any, ...]:
        return () if self.latents is None else (self.latents_hash,)


@dataclass(frozen=True, eq=False)
class Picture(_Content):
    """A picture, and perhaps a mask of what is painted anew.

    Attributes:
        image: any PIL picture; it is turned into RGB.
        strength: above 0 to 1, how much is painted anew: the last int(steps * strength) steps are
            run. None is the model's, with a mask 1.
        mask: white is repainted, black stays as it is to the bit, grey mixes the two; of another
            size it is resized to the picture's, with a warning.
        only_masked: paints the part around the mask alone, this many pixels wider, at the size that
            is asked for, and puts it back.
        mask_cells: what the model repaints, on its grid of 8 x 8 pixels or so: every position of
            which the mask has touched a pixel, "touched"; or those whose top left pixel is white,
            "corner", which is diffusers' rule.

    Meng et al. 2021 (SDEdit, arXiv 2108.01073).
    """

    image: Image.Image
    strength: float | None = None
    mask: Image.Image | None = None
    only_masked: int | None = None
    mask_cells: str = TOUCHED

    def __post_init__(self) -> None:
        check_choice("mask_cells", self.mask_cells, MASK_CELLS)
        check_share("strength", self.strength)
        object.__setattr__(self, "image", to_rgb(self.image))
        if self.mask is not None:
            mask = fitted_mask(self.image, to_mask(self.mask))
            object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "only_masked", _check_padding(self.only_masked, self.mask))

    @cached_property
    def image_hash(self) -> str:
        """SHA-256 of the RGB pixels."""
        return hashlib.sha256(self.image.tobytes()).hexdigest()

    @cached_property
    def mask_hash(self) -> str | None:
        """SHA-256 of the mask's pixels; None without one."""
        return None if self.mask is None else hashlib.sha256(self.mask.tobytes()).hexdigest()

    @property
    def digest(self) -> tuple[Any, ...]:
        sizes = self.image.size, self.strength, self.only_masked, self.mask_cells
        return (self.image_hash, self.mask_hash, *sizes)


@dataclass(frozen=True, eq=False)
class Latents(_Content):
    """Clean latents (C, h, w), such as a result's; `strength` as for a `Picture`."""

    latents: Tensor
    strength: float | None = None

    def __post_init__(self) -> None:
        check_share("strength", self.strength)
        check_latents(self.latents, "latents to begin from")

    @cached_property
    def latents_hash(self) -> str:
        """SHA-256 of the latents as float32."""
        return hash_latents(self.latents)

    @property
    def digest(self) -> tuple[Any, ...]:
        return self.latents_hash, self.strength


@dataclass(frozen=True, eq=False)
class Handover(_Content):
    """The latents (C, h, w) of a run that stopped at `start`, 0 to 1: the rest is run."""

    latents: Tensor
    start: float

    def __post_init__(self) -> None:
        check_share("denoising_start", self.start)
        check_latents(self.latents, "latents to go on from")

    @cached_property
    def latents_hash(self) -> str:
        """SHA-256 of the latents as float32."""
        return hash_latents(self.latents)

    @property
    def digest(self) -> tuple[Any, ...]:
        return self.latents_hash, self.start


Source = Noise | Picture | Latents | Handover


def hash_latents(latents: Tensor) -> str:
    """SHA-256 of the values as float32."""
    return hashlib.sha256(latents.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def check_latents(latents: Any, name: str, dimensions: int = 3) -> None:
    """Refuse what can be no latents, whatever the model.

    Args:
        dimensions: 3 for those of one image (C, h, w), 4 for (B, C, h, w).

    Raises:
        UsageError: it is no tensor, or has another number of dimensions.
        NonFiniteError: it holds NaN or infinity.
    """
    shape = "(C, h, w)" if dimensions == 3 else "(B, C, h, w)"
    if not isinstance(latents, Tensor):
        raise UsageError(
            f"The {name} are of type {type(latents).__name__}.",
            f"They must be a torch tensor {shape}.",
            "Use torch.as_tensor, or leave them out for noise of the seed.",
        )
    if latents.ndim != dimensions or 0 in latents.shape:
        raise UsageError(
            f"The {name} have the shape {tuple(latents.shape)}.",
            f"They must be {shape}.",
            "Leave them out for noise of the seed.",
        )
    if not torch.isfinite(latents).all():
        raise NonFiniteError(
            f"The {name} hold NaN or infinity.",
            "They were given so; no part of the model has run yet.",
            "Look at what computed them.",
        )


def _check_padding(padding: Any, mask: Image.Image | None) -> int | None:
    if padding is None:
        return None
    number = as_int(padding, 0)
    if number is None:
        raise UsageError(
            f"only_masked is {padding!r}.",
            "It is how many pixels around the mask are painted with it.",
            "Use a whole number from 0 up; 32 is usual.",
        )
    if mask is None:
        raise UsageError(
            "only_masked is given alone.", "It needs a mask.", "Add a mask, or leave it out."
        )
    return number
