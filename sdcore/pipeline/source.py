"""What a call begins from besides noise, checked before anything is computed.

Shapes: P pictures given, B images painted, C latent channels, h w latent grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdcore.diffusion.steps import check_strength
from sdcore.errors import NonFiniteError, UsageError
from sdcore.image.canvas import Canvas, make_canvases
from sdcore.metadata.image_settings import SourceSettings
from sdcore.pipeline.request import check_size, whole
from sdcore.size import Size


@dataclass(frozen=True)
class Source:
    """Pictures, latents, or neither.

    Attributes:
        canvases: P pictures, with their masks or all without.
        latents: (P, C, h, w): clean ones; with `denoising_start` those of a run that stopped there.
        strength: how much is painted anew; None where nothing is given or a run goes on.
    """

    canvases: Sequence[Canvas] = ()
    latents: Tensor | None = None
    strength: float | None = None
    denoising_start: float | None = None
    only_masked: int | None = None

    @property
    def given(self) -> bool:
        """False where a run begins from noise alone."""
        return bool(self.canvases) or self.latents is not None

    @property
    def masked(self) -> bool:
        return bool(self.canvases) and self.canvases[0].mask is not None

    def size(self, factor: int) -> dict[str, int]:
        """Width and height to paint at, where it says any; `factor` is the autoencoder's."""
        if self.canvases:
            size = self.canvases[0].size
            return {"width": size.width, "height": size.height}
        if self.latents is not None:
            height, width = (size * factor for size in self.latents.shape[2:])
            return {"width": width, "height": height}
        return {}

    def put_back(self, painted: Sequence[Image.Image]) -> list[Image.Image]:
        """The B pictures that were painted, each in its own where only a part was."""
        if not self.masked:
            return list(painted)
        each = len(painted) // len(self.canvases)
        return [self.canvases[i // each].put_back(image) for i, image in enumerate(painted)]

    def settings(self, images: int) -> list[SourceSettings | None]:
        """What each of B images began from, by its hashes; None for noise and for a run that goes
        on."""
        if self.strength is None:
            return [None] * images
        given = self.canvases if self.latents is None else self.latents
        each = images // len(given)
        return [self._settings(given[i // each], self.strength) for i in range(images)]

    def _settings(self, given: Canvas | Tensor, strength: float) -> SourceSettings:
        if isinstance(given, Tensor):
            return SourceSettings(_hash(given.float().cpu().numpy().tobytes()), strength)
        mask = None if given.mask is None else _hash(given.mask.tobytes())
        return SourceSettings(_hash(given.picture.tobytes()), strength, mask, self.only_masked)


def read_source(
    image: Any,
    mask: Any,
    *,
    strength: float | None,
    denoising_start: float | None,
    only_masked: int | None,
    size: tuple[int | None, int | None],
    model_size: tuple[int, int] = (512, 512),
    default_strength: float = 0.8,
    channels: int = 4,
) -> Source:
    """The arguments of a call about pictures. The defaults do for a check without a model.

    Args:
        image: a PIL image, a list of them, latents (P, C, h, w), or None.
        mask: a PIL image, a list of as many as there are pictures, or None.
        size, model_size: (width, height), see `sdcore.image.canvas.make_canvases`.
        channels: of latents.

    Raises:
        UsageError: arguments that cannot be used, or not together.
        NonFiniteError: the latents hold NaN or infinity.
    """
    of_latents = isinstance(image, Tensor)
    _check_together(image, mask, strength, denoising_start, only_masked)
    check_strength(strength)
    if image is None:
        return Source()
    if of_latents:
        _check_latents(image, channels)
        if denoising_start is None and strength is None:
            strength = default_strength
        return Source(latents=image, strength=strength, denoising_start=denoising_start)

    images = _several(image, "image")
    masks = None if mask is None else _several(mask, "mask")
    if masks is not None and len(masks) == 1:
        masks = masks * len(images)
    if masks is not None and len(masks) != len(images):
        raise UsageError(
            f"There are {len(masks)} masks for {len(images)} pictures.",
            "Each picture needs one.",
            "Pass one mask to use it for all pictures.",
        )
    for value, name in zip(size, ("width", "height"), strict=True):
        if value is not None:
            check_size(value, name)
    only_masked = _check_padding(only_masked)
    canvases = make_canvases(
        images,
        masks,
        width=size[0],
        height=size[1],
        model_size=Size(*model_size),
        only_masked=only_masked,
    )
    if strength is None:
        strength = default_strength if masks is None else 1.0
    return Source(canvases, strength=strength, only_masked=only_masked)


def check_count(source: Source, prompts: int, images: int) -> None:
    """One picture serves all prompts; several are one for each prompt or for each image."""
    given = len(source.canvases) if source.latents is None else len(source.latents)
    if given and given not in (1, prompts, images):
        needed = f"{prompts}" if prompts == images else f"{prompts} or {images}"
        raise UsageError(
            f"There are {given} pictures for {prompts} prompts.",
            f"A list needs one for each prompt or each image: {needed}.",
            "Pass one picture to use it for all prompts.",
        )


def check_channels(source: Source, reads: int, latents: int) -> None:
    """Refuse a UNet that reads something else than this source gives."""
    if reads == latents or (reads == 2 * latents + 1 and source.masked):
        return
    inpaints = reads == 2 * latents + 1
    raise UsageError(
        f"This UNet reads {reads} channels.",
        f"The latents have {latents}; the rest is for "
        + ("a mask and the masked picture." if inpaints else "something that is not known here."),
        "Pass image and mask, a white one to repaint everything, or use another model."
        if inpaints
        else "Use a text-to-image or an inpainting model.",
    )


def check_noise(noise: Any) -> None:
    """Refuse `latents` that cannot be noise to begin from, whatever their shape should be."""
    if noise is not None and not isinstance(noise, Tensor):
        raise UsageError(
            f"The latents are of type {type(noise).__name__}.",
            "They must be a torch tensor (B, C, h, w).",
            "Use torch.as_tensor, or leave them out for noise of the seed.",
        )
    if noise is not None and (noise.ndim != 4 or 0 in noise.shape):
        raise UsageError(
            f"The latents have the shape {tuple(noise.shape)}.",
            "They must be (B, C, h, w).",
            "Leave them out for noise of the seed.",
        )
    if noise is not None:
        _check_finite(noise, "latents")


def _several(given: Any, name: str) -> list[Any]:
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        if not given:
            raise UsageError(f"The list of {name}s is empty.", "One is needed.", "Pass one.")
        return list(given)
    return [given]


def _check_latents(latents: Tensor, channels: int) -> None:
    if latents.ndim != 4 or latents.shape[1] != channels or 0 in latents.shape:
        raise UsageError(
            f"The tensor given as image has the shape {tuple(latents.shape)}.",
            f"A tensor is taken for latents, (B, {channels}, h, w).",
            "Pass pictures as PIL images.",
        )
    _check_finite(latents, "latents given as image")


def _check_finite(latents: Tensor, name: str) -> None:
    if not torch.isfinite(latents).all():
        raise NonFiniteError(
            f"The {name} hold NaN or infinity.",
            "They were given so; no part of the model has run yet.",
            "Look at what computed them.",
        )


def _check_padding(padding: Any) -> int | None:
    padding = whole(padding)
    if padding is not None and (type(padding) is not int or padding < 0):
        raise UsageError(
            f"only_masked is {padding!r}.",
            "It is how many pixels around the mask are painted with it.",
            "Use a whole number from 0 up; 32 is usual.",
        )
    return padding


def _check_together(
    image: Any, mask: Any, strength: Any, denoising_start: Any, only_masked: Any
) -> None:
    of_latents = isinstance(image, Tensor)
    rules = {
        "mask": (mask is None or image is not None, "a picture to repaint", "Pass image."),
        "strength": (strength is None or image is not None, "a picture", "Pass image."),
        "only_masked": (only_masked is None or mask is not None, "a mask", "Pass mask."),
        "denoising_start": (
            denoising_start is None or of_latents,
            "the latents of a run that stopped there",
            "Pass image=result.latents of a run with denoising_end.",
        ),
    }
    for name, (holds, needed, hint) in rules.items():
        if not holds:
            raise UsageError(f"{name} is given alone.", f"It needs {needed}.", hint)
    if mask is not None and of_latents:
        raise UsageError(
            "A mask is given with latents.",
            "What is outside the mask is taken from a picture.",
            "Pass the picture as a PIL image.",
        )
    if strength is not None and denoising_start is not None:
        raise UsageError(
            "strength and denoising_start are both given.",
            "Each says at which noise level the run begins.",
            "Leave one out.",
        )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
