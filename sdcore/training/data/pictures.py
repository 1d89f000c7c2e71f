"""Pixels to train on: a picture as it lies on disk, resized, cut and turned into numbers.

Shapes: H W pixels of the bucket.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdcore.errors import FileError
from sdcore.image.pictures import decode_picture, to_mask, to_rgb
from sdcore.training.data.buckets import Fit
from sdcore.training.data.content import MOST_BYTES, content_digest
from sdcore.training.data.items import Blob
from sdcore.training.data.scanned import Scanned


def open_training_picture(blob: Blob, background: str = "#ffffff", name: str = "") -> Image.Image:
    """A picture in RGB, upright, on the background. FileError where it cannot be read."""
    return to_rgb(_decoded(blob.read(MOST_BYTES), name), name or "The picture", background)


def pixels(scanned: Scanned, fit: Fit, flip: bool = False) -> Tensor:
    """(3, H, W) in [-1, 1]: the picture as it is trained on.

    Args:
        fit: what it becomes; `Fit.moved` cuts elsewhere.
        flip: left to right, after the cut.

    Raises:
        FileError: it cannot be read, or is not the one that was scanned.
    """
    image = to_rgb(_picture(scanned), scanned.item.name, scanned.item.look.background)
    levels = _levels(_cut(image, fit, flip))  #          (H, W, 3)
    return torch.as_tensor(levels).permute(2, 0, 1).contiguous() * 2 - 1


def mask_pixels(scanned: Scanned, fit: Fit, flip: bool = False) -> Tensor:
    """(1, H, W) in [0, 1]: how much of each pixel is learned; 1 everywhere without a mask.

    Raises:
        FileError: as `pixels`.
    """
    item = scanned.item
    if item.look.alpha_mask:
        mask = _picture(scanned).convert("RGBA").getchannel("A")
    elif item.mask is not None:
        mask = to_mask(_decoded(item.mask.read(MOST_BYTES), f"The mask of {item.name}"))
    else:
        return torch.ones(1, *fit.bucket.height_width)
    if mask.size != scanned.size.width_height:
        raise _changed(f"The mask of {item.name}")
    return torch.as_tensor(_levels(_cut(mask, fit, flip)))[None]


def _picture(scanned: Scanned) -> Image.Image:
    data = scanned.item.blob.read(MOST_BYTES)
    if content_digest(data) != scanned.digest:
        raise _changed(scanned.item.name)
    return _decoded(data, scanned.item.name)


def _decoded(data: bytes, name: str) -> Image.Image:
    return decode_picture(io.BytesIO(data), name or "The picture")


def _cut(image: Image.Image, fit: Fit, flip: bool) -> Image.Image:
    if image.size != fit.resized.width_height:
        image = image.resize(fit.resized.width_height, Image.Resampling.LANCZOS)
    x, y = fit.crop
    image = image.crop((x, y, x + fit.bucket.width, y + fit.bucket.height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255.0


def _changed(name: str) -> FileError:
    return FileError(
        f"{name} is another picture than before.",
        "It was changed after the data were looked through.",
        "Start again, and leave the data as they are while a run goes on.",
    )
