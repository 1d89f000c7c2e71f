"""Canvases: a picture, its mask and the part of it that is painted, resized and put back.

Shapes: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdcore.errors import UsageError, warn
from sdcore.image.pictures import to_mask, to_rgb
from sdcore.size import Size

# When a position of the latent grid is painted: where any pixel of it is white in the mask; or, as
# in diffusers, where its top left pixel is.
TOUCHED, CORNER = "touched", "corner"
MASK_CELLS = (TOUCHED, CORNER)
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
        cells: what counts of a mask, see `MASK_CELLS`.
    """

    picture: Image.Image
    mask: Image.Image | None
    box: Box
    size: Size
    keeps_aspect: bool = False
    cells: str = TOUCHED

    def pixels(self) -> Tensor:
        """The part to paint: (3, H, W) in [-1, 1]."""
        levels = np.asarray(self._to_size(self.picture), dtype=np.float32) / 255.0
        return torch.as_tensor(levels).permute(2, 0, 1) * 2 - 1

    def mask_pixels(self) -> Tensor:
        """(1, H, W): 1 where the mask is at least half white, else 0.

        Where it is made smaller, a pixel counts as white by its brightest part, or by diffusers'
        rule by its mean.
        """
        assert self.mask is not None
        if self.cells == CORNER:
            levels = np.asarray(self._to_size(self.mask).convert("L"), dtype=np.float32) / 255.0
            return torch.as_tensor((levels >= 0.5).astype(np.float32))[None]
        white = np.asarray(self.mask) >= 128
        parts = self._to_size(Image.fromarray(white.astype(np.float32)), Image.Resampling.BOX)
        return torch.as_tensor((np.asarray(parts) > 1e-6).astype(np.float32))[None]

    def mask_cells(self, grid: tuple[int, int]) -> Tensor:
        """(1, h, w): 1 where the model paints, on the latent grid (h, w)."""
        pixels = self.mask_pixels()[None]
        if self.cells == CORNER:
            return F.interpolate(pixels, size=grid)[0]
        return F.adaptive_max_pool2d(pixels, grid)[0]

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

    def _to_size(
        self, image: Image.Image, filtered: Image.Resampling = Image.Resampling.LANCZOS
    ) -> Image.Image:
        image = image.crop(self.box)
        if filtered != Image.Resampling.LANCZOS:
            return self._by_parts(image, filtered)
        return _resize(image, self.size, "fill" if self.keeps_aspect else "default")

    def _by_parts(self, image: Image.Image, filtered: Image.Resampling) -> Image.Image:
        """The same with another filter; beyond the edges there is nothing."""
        width, height = inner = self.size.width_height
        if self.keeps_aspect:
            scale = min(width / image.width, height / image.height)
            inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        result = Image.new(image.mode, (width, height))
        place = (width - inner[0]) // 2, (height - inner[1]) // 2
        result.paste(image.resize(inner, filtered), place)
        return result


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
    cells: str = TOUCHED,
) -> list[Canvas]:
    """The canvas of each picture, all of one size to paint at.

    Args:
        width, height: to paint at; None is as `size_to_paint` says; or that of `model_size`, where
            only a part is painted.
        only_masked: paints the rectangle around what the mask repaints, this many pixels wider on
            each side and grown to the aspect ratio of the size, instead of the whole picture.
        cells: one of `MASK_CELLS`.

    Raises:
        UsageError: pictures or masks that cannot be used.
    """
    pictures = [to_rgb(image, _name("The picture", i, images)) for i, image in enumerate(images)]
    if masks is not None:
        masks = [to_mask(mask, _name("The mask", i, masks)) for i, mask in enumerate(masks)]
        masks = [fitted_mask(*pair) for pair in zip(pictures, masks, strict=True)]
    if width is None or height is None:
        natural = model_size if only_masked is not None else None
        natural = natural or size_to_paint(Size(*pictures[0].size), model_size)
        width, height = width or natural.width, height or natural.height
    to_paint = Size(width, height)
    if masks is None or only_masked is None:
        each = masks or [None] * len(pictures)
        return [
            Canvas(picture, mask, (0, 0, *picture.size), to_paint, cells=cells)
            for picture, mask in zip(pictures, each, strict=True)
        ]
    return [
        Canvas(
            picture,
            mask,
            masked_box(mask, to_paint, only_masked),
            to_paint,
            keeps_aspect=True,
            cells=cells,
        )
        for picture, mask in zip(pictures, masks, strict=True)
    ]


def size_to_paint(picture: Size, model_size: Size | None = None) -> Size:
    """The size at which a picture is painted where nobody says: its own, rounded down.

    Warns:
        UserWarning: it is far from the model's, and so is fitted to it, with its aspect ratio.
    """
    if model_size is None or not picture.is_far_from(model_size):
        return picture.rounded_down()
    fitted = picture.fitted_to(model_size)
    warn(
        f"the picture is {picture}, the model's own size is {model_size}: it is painted at "
        f"{fitted}; ask for a size to have another"
    )
    return fitted


def masked_box(mask: Image.Image, size: Size, padding: int) -> Box:
    """The rectangle around all that is not black, grown by `padding` and to the ratio of `size`.

    The rule of Stable Diffusion web UI's "only masked": it moves inwards at the picture's edges and
    is as large as the picture allows.
    """
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor.get_crop_region(mask, *size.width_height, pad=padding)


def fitted_mask(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The grey mask, as large as the picture; where it is made smaller nothing drawn is lost.

    Raises:
        UsageError: it repaints nothing.

    Warns:
        UserWarning: it had another size.
    """
    brightest = mask.getextrema()[1]
    if brightest == 0:
        raise UsageError(
            "The mask is black everywhere.",
            "White is what is repainted, so nothing would be.",
            "Draw what is to be repainted in white, or invert the mask.",
        )
    if mask.size == picture.size:
        return mask
    sizes = Size(*mask.size), Size(*picture.size)
    warn(f"the mask is {sizes[0]}, the picture {sizes[1]}: the mask is resized to the picture")
    smaller = min(mask.width, picture.width), min(mask.height, picture.height)
    levels = torch.as_tensor(np.array(mask, dtype=np.float32))[None, None]
    levels = F.adaptive_max_pool2d(levels, smaller[::-1])[0, 0]
    reduced = Image.fromarray(levels.numpy().astype(np.uint8))
    return reduced.resize(picture.size, Image.Resampling.BILINEAR)


def _name(name: str, number: int, among: Sequence[object]) -> str:
    return name if len(among) == 1 else f"{name} number {number + 1}"
