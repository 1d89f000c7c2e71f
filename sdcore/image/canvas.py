"""Canvases: a picture, its mask and the part of it that is painted, resized and put back.

Shapes: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdcore.errors import UsageError
from sdcore.image.pictures import to_mask, to_rgb
from sdcore.size import Size

Box = tuple[int, int, int, int]  # left, top, right, bottom, as in Pillow


@dataclass(frozen=True)
class Canvas:
    """One picture, the mask that goes with it, and the part of it that is painted.

    Attributes:
        picture: RGB, at its own size.
        mask: grey, as large as the picture; None repaints everything.
        box: the part that is painted, in the picture's pixels.
        size: the size at which it is painted. Where the two differ the part is resized
            (Lanczos). With `keeps_aspect` it is not distorted for that: what is missing to the
            aspect ratio is filled up with the pixels at its edges.
        keeps_aspect: see `size`.
    """

    picture: Image.Image
    mask: Image.Image | None
    box: Box
    size: Size
    keeps_aspect: bool = False

    def pixels(self) -> Tensor:
        """The part to paint: (3, H, W) in [-1, 1]."""
        levels = np.asarray(self._to_size(self.picture), dtype=np.float32) / 255.0
        return torch.as_tensor(levels).permute(2, 0, 1) * 2 - 1

    def mask_pixels(self) -> Tensor:
        """(1, H, W): 1 where the mask is at least half white, else 0."""
        assert self.mask is not None
        levels = np.asarray(self._to_size(self.mask).convert("L"), dtype=np.float32) / 255.0
        return torch.as_tensor((levels >= 0.5).astype(np.float32))[None]

    def put_back(self, painted: Image.Image) -> Image.Image:
        """The whole picture with what was painted in it.

        Where the mask is black the picture's own pixels stay, to the bit; where it is white those
        that were painted; the greys between mix the two.
        """
        if self.mask is None:
            return painted
        left, top, right, bottom = self.box
        mode = "crop" if self.keeps_aspect else "default"
        painted = _resize(painted, Size(right - left, bottom - top), mode)
        result = self.picture.copy()
        result.paste(painted, (left, top))
        return Image.composite(result, self.picture, self.mask)

    def _to_size(self, image: Image.Image) -> Image.Image:
        mode = "fill" if self.keeps_aspect else "default"
        return _resize(image.crop(self.box), self.size, mode)


def _resize(image: Image.Image, size: Size, mode: str) -> Image.Image:
    if image.size == size.width_height:
        return image
    from diffusers.image_processor import VaeImageProcessor  # seconds, which most runs do not need

    processor = VaeImageProcessor(do_resize=False)  # Lanczos, as in diffusers' pipelines
    resized = processor.resize(image, size.height, size.width, resize_mode=mode)
    assert isinstance(resized, Image.Image)
    return resized


def make_canvases(
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image] | None,
    *,
    width: int | None = None,
    height: int | None = None,
    model_size: Size | None = None,
    only_masked: int | None = None,
) -> list[Canvas]:
    """The canvas of each picture, all of one size to paint at.

    Args:
        width, height: to paint at; None is that of the first picture, rounded down to a multiple of
            8; or that of `model_size`, if there is one, where only a part is painted.
        only_masked: paints the rectangle around what the mask repaints, this many pixels wider on
            each side and grown to the aspect ratio of the size, instead of the whole picture.

    Raises:
        UsageError: pictures or masks that cannot be used.
    """
    pictures = [to_rgb(image, _name("The picture", i, images)) for i, image in enumerate(images)]
    if masks is not None:
        masks = [to_mask(mask, _name("The mask", i, masks)) for i, mask in enumerate(masks)]
        for picture, mask in zip(pictures, masks, strict=True):
            check_mask(picture, mask)
    natural = Size(*pictures[0].size).rounded_down()
    if only_masked is not None and model_size is not None:
        natural = model_size
    to_paint = Size(width or natural.width, height or natural.height)
    if masks is None or only_masked is None:
        each = masks or [None] * len(pictures)
        return [
            Canvas(picture, mask, (0, 0, *picture.size), to_paint)
            for picture, mask in zip(pictures, each, strict=True)
        ]
    return [
        Canvas(picture, mask, masked_box(mask, to_paint, only_masked), to_paint, keeps_aspect=True)
        for picture, mask in zip(pictures, masks, strict=True)
    ]


def masked_box(mask: Image.Image, size: Size, padding: int) -> Box:
    """The rectangle around all that is not black, grown by `padding` and to the ratio of `size`.

    The rule of Stable Diffusion web UI's "only masked": it moves inwards at the picture's edges and
    is as large as the picture allows.
    """
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor.get_crop_region(mask, *size.width_height, pad=padding)


def check_mask(picture: Image.Image, mask: Image.Image) -> None:
    """Refuse a mask of another size, or one that repaints nothing. Raises UsageError."""
    if mask.size != picture.size:
        raise UsageError(
            f"The mask is {mask.width} x {mask.height} pixels.",
            f"The picture is {picture.width} x {picture.height}.",
            "Make the mask as large as the picture.",
        )
    brightest = mask.getextrema()[1]
    if brightest == 0:
        raise UsageError(
            "The mask is black everywhere.",
            "White is what is repainted, so nothing would be.",
            "Draw what is to be repainted in white, or invert the mask.",
        )


def _name(name: str, number: int, among: Sequence[object]) -> str:
    return name if len(among) == 1 else f"{name} number {number + 1}"
