"""Pictures and masks from outside: opened safely, turned into RGB, cut, resized and put back.

Shapes: B images, H W pixels.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sdcore.checks import has_type
from sdcore.errors import FileError, UsageError, warning_filter
from sdcore.files.limits import MIB, PICTURE_PIXELS, PICTURE_SIDE
from sdcore.files.opening import open_file

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF")
# From this opacity on a pixel of a mask counts as drawn; greys this near are strokes of one colour.
_SOLID, _ONE_COLOUR = 128, 32


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a PNG, JPEG, WebP, BMP or AVIF file, as `to_rgb` gives it.

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
    with open_file(path) as file:
        return decode_picture(file, str(path))


def decode_picture(file: BinaryIO, name: str) -> Image.Image:
    """The picture in an open file, upright, in the mode that it is stored in.

    Args:
        name: of the picture, for errors.

    Raises:
        FileError: as `open_picture`.
    """
    try:
        # The filter keeps other threads from theirs, so it is for the header alone.
        with warning_filter("error", Image.DecompressionBombWarning):
            image = Image.open(file, formats=FORMATS)
        with image:
            if image.width * image.height > PICTURE_PIXELS or max(image.size) > PICTURE_SIDE:
                raise Image.DecompressionBombError(f"it has {image.width} x {image.height}")
            if image.format == "PNG":
                _check_pixels(file, 16 * image.width * image.height + MIB)
            return ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError as error:
        raise FileError(
            f"{name} is not a picture that can be read.",
            f"Its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, whatever its name.",
            "Save it as PNG.",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileError(
            f"{name} is too large.",
            f"Pictures of more than {PICTURE_PIXELS:,} pixels, or of a side of more than "
            f"{PICTURE_SIDE:,}, are not opened: {error}.",
            "Scale it down first.",
        ) from error
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        raise FileError(
            f"{name} is damaged.",
            undecodable(error),
            "Open it in an image program and save it again as PNG.",
        ) from error


def _check_pixels(file: BinaryIO, most: int) -> None:
    """OSError where the pixels of a PNG have another checksum: Pillow reads those of other parts.

    Args:
        file: read on where it was.
        most: bytes that are looked at; so many no picture has.
    """
    before = file.tell()
    file.seek(8)
    while len(head := file.read(8)) == 8 and most > 0:
        kind, left = head[4:], int.from_bytes(head[:4], "big")
        if kind != b"IDAT":
            file.seek(left + 4, 1)
            continue
        found = zlib.crc32(kind)
        while left and most > 0 and (part := file.read(min(left, MIB))):
            found, left, most = zlib.crc32(part, found), left - len(part), most - len(part)
        told = file.read(4)
        if not left and len(told) == 4 and int.from_bytes(told, "big") != found:
            raise OSError("its pixels have another checksum")
    file.seek(before)


def undecodable(error: Exception) -> str:
    """What a reader of Pillow's says of a damaged picture, as a sentence for people."""
    said = f"{error}".rstrip(".")
    plain = isinstance(error, OSError) and said and "object at 0x" not in said
    return f"It cannot be decoded: {said}." if plain else "It cannot be decoded: it is damaged."


def to_rgb(image: Image.Image, name: str = "The picture", background: str = "white") -> Image.Image:
    """Any picture as 8-bit RGB, turned upright as its EXIF tag says.

    What is transparent lies on the background, a colour by its name or as #ffffff. Of 16 bits the
    upper 8 are kept, rounded. Palettes, greys, CMYK and the like are converted; colour profiles are
    not applied.
    """
    image = _upright_8_bit(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def to_mask(image: Image.Image, name: str = "The mask") -> Image.Image:
    """A mask as 8-bit grey: white is repainted, black is kept.

    Strokes of one colour on an empty layer are the mask, whatever their colour: it is their
    opacity. Of a mask with light and dark, what is transparent is black.
    """
    image = _upright_8_bit(image, name)
    if not image.has_transparency_data:
        return image.convert("L")
    layer = image.convert("RGBA")
    alpha = layer.getchannel("A")
    greys = np.asarray(layer.convert("RGB").convert("L"))
    drawn = greys[np.asarray(alpha) >= _SOLID]
    one_colour = drawn.size == 0 or int(drawn.max()) - int(drawn.min()) <= _ONE_COLOUR
    if one_colour and int(np.asarray(alpha).min()) < 255:
        return alpha
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), layer).convert("L")


def _upright_8_bit(image: Image.Image, name: str) -> Image.Image:
    if not has_type(image, Image.Image):
        raise UsageError(
            f"{name} is of type {type(image).__name__}.",
            "It must be a PIL image.",
            "Use sdcore.open_picture for a file, PIL.Image.fromarray for an array.",
        )
    if image.width * image.height > PICTURE_PIXELS or 0 in image.size:
        raise UsageError(
            f"{name} is {image.width} x {image.height} pixels.",
            f"It must have between 1 and {PICTURE_PIXELS:,}.",
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


def to_images(pixels: Tensor) -> list[Image.Image]:
    """PIL pictures of (B, 3, H, W) in [-1, 1]; what lies outside is clipped."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in levels.permute(0, 2, 3, 1).cpu()]
