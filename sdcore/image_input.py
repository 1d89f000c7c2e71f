"""Pictures and masks from outside: opened safely, turned into RGB, cut, resized and put back.

Shapes: B images, H W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from sdcore.errors import FileError, UsageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000

Box = tuple[int, int, int, int]  # left, top, right, bottom, as in Pillow

_processor = VaeImageProcessor(do_resize=False)  # Lanczos, as in diffusers' pipelines


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a PNG, JPEG or WebP file, as `to_rgb` gives it.

    The format is found from the content. Of an animation the first frame is read.

    Raises:
        FileError: the file is missing, damaged, of another format, or of more than 64 million
            pixels; the size is read before any pixel is.
    """
    return to_rgb(_open(Path(path)), str(path))


def open_mask(path: str | Path) -> Image.Image:
    """The mask in a picture file, as `to_mask` gives it. Raises FileError as `open_picture`."""
    return to_mask(_open(Path(path)), str(path))


def open_transparency(path: str | Path) -> Image.Image:
    """A mask from a picture's own alpha channel: what is transparent is to be repainted."""
    image = _open(Path(path))
    if not image.has_transparency_data:
        raise FileError(
            f"{path} has no transparency.",
            f"It is of kind {image.mode}, which is opaque everywhere.",
            "Erase what is to be repainted and save it as PNG, or give a mask of its own.",
        )
    return ImageOps.invert(image.convert("RGBA").getchannel("A"))


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileError(
            f"{path} is not a picture file.",
            "It is a folder or a device." if path.exists() else "There is no such file.",
            "Check the name.",
        )
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(path, formats=FORMATS) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"it has {image.width} x {image.height}")
            return ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError as error:
        raise FileError(
            f"{path} is not a picture that can be read.",
            f"Its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, whatever its name.",
            "Save it as PNG.",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileError(
            f"{path} is too large.",
            f"Pictures of more than {MAX_PIXELS:,} pixels are not opened: {error}.",
            "Scale it down first.",
        ) from error
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        raise FileError(
            f"{path} is damaged.",
            f"{type(error).__name__}: {error}",
            "Open it in an image program and save it again as PNG.",
        ) from error


def to_rgb(image: Image.Image, name: str = "The picture") -> Image.Image:
    """Any picture as 8-bit RGB, turned upright as its EXIF tag says.

    What is transparent lies on white. Of 16 bits the upper 8 are kept, rounded. Palettes, greys,
    CMYK and the like are converted; colour profiles are not applied.
    """
    image = _upright_8_bit(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def to_mask(image: Image.Image, name: str = "The mask") -> Image.Image:
    """A mask as 8-bit grey: white is repainted, black is kept; transparent is black."""
    image = _upright_8_bit(image, name)
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return image.convert("L")


def _upright_8_bit(image: Image.Image, name: str) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"{name} is of type {type(image).__name__}.",
            "It must be a PIL image.",
            "Use sdcore.image_input.open_picture for a file, PIL.Image.fromarray for an array.",
        )
    if image.width * image.height > MAX_PIXELS or 0 in image.size:
        raise UsageError(
            f"{name} is {image.width} x {image.height} pixels.",
            f"It must have between 1 and {MAX_PIXELS:,}.",
            "Resize it first.",
        )
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise _bad_mode(image, name)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise _bad_mode(image, name)
    return image


def _bad_mode(image: Image.Image, name: str) -> UsageError:
    return UsageError(
        f"{name} is of kind {image.mode!r}, which has no fixed range.",
        "Pictures have 8 or 16 bits for each channel.",
        "Scale it to 0 to 255 and convert it to 8 bits first.",
    )


@dataclass(frozen=True)
class Canvas:
    """One picture, the mask that goes with it, and the part of it that is painted.

    Attributes:
        picture: RGB, at its own size.
        mask: grey, as large as the picture; None repaints everything.
        box: the part that is painted, in the picture's pixels.
        size: (width, height) at which it is painted. Where the two differ the part is resized
            (Lanczos). With `keeps_aspect` it is not distorted for that: what is missing to the
            aspect ratio is filled up with the pixels at its edges.
        keeps_aspect: see `size`.
    """

    picture: Image.Image
    mask: Image.Image | None
    box: Box
    size: tuple[int, int]
    keeps_aspect: bool = False

    def pixels(self) -> Tensor:
        """The part to paint: (3, H, W) in [-1, 1]."""
        levels = np.asarray(self._to_size(self.picture), dtype=np.float32) / 255.0
        return torch.from_numpy(levels).permute(2, 0, 1) * 2 - 1

    def mask_pixels(self) -> Tensor:
        """(1, H, W): 1 where the mask is at least half white, else 0."""
        assert self.mask is not None
        levels = np.asarray(self._to_size(self.mask).convert("L"), dtype=np.float32) / 255.0
        return torch.from_numpy((levels >= 0.5).astype(np.float32))[None]

    def put_back(self, painted: Image.Image) -> Image.Image:
        """The whole picture with what was painted in it.

        Where the mask is black the picture's own pixels stay, to the bit; where it is white those
        that were painted; the greys between mix the two.
        """
        if self.mask is None:
            return painted
        left, top, right, bottom = self.box
        mode = "crop" if self.keeps_aspect else "default"
        painted = _resize(painted, (right - left, bottom - top), mode)
        whole = self.picture.copy()
        whole.paste(painted, (left, top))
        return Image.composite(whole, self.picture, self.mask)

    def _to_size(self, image: Image.Image) -> Image.Image:
        mode = "fill" if self.keeps_aspect else "default"
        return _resize(image.crop(self.box), self.size, mode)


def _resize(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    width, height = size
    if image.size == size:
        return image
    resized = _processor.resize(image, height, width, resize_mode=mode)
    assert isinstance(resized, Image.Image)
    return resized


def make_canvases(
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image] | None,
    size: tuple[int | None, int | None],
    model_size: tuple[int, int],
    only_masked: int | None = None,
) -> list[Canvas]:
    """The canvas of each picture, all of one size to paint at.

    Args:
        size: (width, height) to paint at; None is that of the first picture, rounded down to a
            multiple of 8, or `model_size` where only a part is painted.
        only_masked: paints the rectangle around what the mask repaints, this many pixels wider on
            each side and grown to the aspect ratio of the size, instead of the whole picture.

    Raises:
        UsageError: pictures or masks that cannot be used.
    """
    pictures = [to_rgb(image, _name("The picture", i, images)) for i, image in enumerate(images)]
    if masks is not None:
        masks = [to_mask(mask, _name("The mask", i, masks)) for i, mask in enumerate(masks)]
        for picture, mask in zip(pictures, masks, strict=True):
            _check_mask(picture, mask)
    width, height = pictures[0].size
    natural = (max(8, width - width % 8), max(8, height - height % 8))
    if only_masked is not None:
        natural = model_size
    to_paint = (size[0] or natural[0], size[1] or natural[1])
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


def masked_box(mask: Image.Image, size: tuple[int, int], padding: int) -> Box:
    """The rectangle around all that is not black, grown by `padding` and to the ratio of `size`.

    The rule of Stable Diffusion web UI's "only masked": it moves inwards at the picture's edges and
    is as large as the picture allows.
    """
    return VaeImageProcessor.get_crop_region(mask, *size, pad=padding)


def _check_mask(picture: Image.Image, mask: Image.Image) -> None:
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


def _name(name: str, number: int, among: Sequence) -> str:
    return name if len(among) == 1 else f"{name} number {number + 1}"
