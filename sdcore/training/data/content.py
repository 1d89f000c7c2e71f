"""What a picture's bytes are, and what is wrong with them, whatever is to be done with the picture.

Pillow finds most damage when it decodes all rows. It does not look at the checksums of a PNG, and a
JPEG whose end is zeros, as an interrupted copy leaves it, decodes without a word.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import cast

from PIL import Image

from sdcore.errors import FileError, SdcoreError
from sdcore.image.pictures import FORMATS, decode_picture, to_rgb

MOST_BYTES = 256 << 20
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
}
# What lies under a picture's name and is none that is read, by its first bytes.
_FOREIGN = {
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF or a camera's raw file",
    b"MM\0*": "a TIFF or a camera's raw file",
    b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"%PDF": "a PDF",
    b"<svg": "an SVG drawing",
    b"PK\x03\x04": "a zip archive",
    b"version https://git-lfs": "a git-lfs pointer; the picture itself was not downloaded",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML file",
    b"{": "JSON",
}


@dataclass(frozen=True)
class Content:
    """What a picture's bytes hold.

    digest: of the bytes; pixels: of the decoded picture, upright, with its transparency.
    width, height: upright.
    kind, reason: what is wrong with it; both "" for a sound picture.
    remarks: (kind, sentence) of what somebody should know of it.
    alpha: whether it has transparency; black: whether it is black everywhere, as a mask must not
        be.
    """

    digest: str
    pixels: str = ""
    width: int = 0
    height: int = 0
    kind: str = ""
    reason: str = ""
    remarks: tuple[tuple[str, str], ...] = ()
    alpha: bool = False
    black: bool = False


def content_digest(data: bytes) -> str:
    """A hash of a picture's bytes, by which all that is made of it is filed."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def picture_format(data: bytes) -> str | None:
    """The format that the first bytes of a file say, one of `FORMATS`; None for all others."""
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if data[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1") else None


def examine(data: bytes) -> Content:
    """All that can be said of a picture from its bytes."""
    digest = content_digest(data)
    found = picture_format(data)
    if not data:
        return Content(digest, kind="empty", reason="The file has zero bytes.")
    if found is None:
        return Content(digest, kind="not a picture", reason=f"It is {_what(data)}.")
    checks = {"PNG": _png_damage, "JPEG": _jpeg_damage}
    damage = checks[found](data) if found in checks else ""
    if damage:
        return Content(digest, kind="damaged", reason=damage)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            frames = getattr(opened, "n_frames", 1)
        image = decode_picture(io.BytesIO(data), "It")
        return _judge(digest, image, frames)
    except SdcoreError as error:
        kind = "too large" if "too large" in error.what else "damaged"
        return Content(digest, kind=kind, reason=error.why)
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        reason = f"{type(error).__name__}: {error}."
        large = isinstance(error, Image.DecompressionBombError)
        return Content(digest, kind="too large" if large else "damaged", reason=reason)


def unreadable(error: FileError) -> Content:
    """What is said of a picture whose bytes could not be read."""
    what = error.what
    kind = next((k for k in ("too large", "cut short", "missing") if k in what), "unreadable")
    return Content("", kind="damaged" if kind == "cut short" else kind, reason=error.why)


def _judge(digest: str, image: Image.Image, frames: int) -> Content:
    remarks: list[tuple[str, str]] = []
    alpha = image.has_transparency_data
    hashed = hashlib.sha1(repr(image.size).encode(), usedforsecurity=False)
    if alpha:
        channel = image.convert("RGBA").getchannel("A")
        if channel.getextrema() == (0, 0):
            return Content(digest, kind="transparent", reason="It is transparent everywhere.")
        hashed.update(channel.tobytes())
        alpha = channel.getextrema() != (255, 255)
    rgb = to_rgb(image)
    hashed.update(rgb.tobytes())
    ranges = cast("tuple[tuple[int, int], ...]", rgb.getextrema())
    if not alpha and all(low == high for low, high in ranges):
        remarks.append(("one colour", "It is of one colour everywhere."))
    if frames > 1:
        remarks.append(("animated", f"It has {frames} frames; the first is used."))
    black = not alpha and all(high == 0 for _, high in ranges)
    return Content(
        digest,
        hashed.hexdigest(),
        *image.size,
        remarks=tuple(remarks),
        alpha=alpha,
        black=black,
    )


def _what(data: bytes) -> str:
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, name in _FOREIGN.items():
        if start[: len(signature)].lower() == signature.lower():
            return f"{name}, not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif"):
        return "a HEIC photo; export it as JPEG"
    if not any(data[:4096]):
        return "zeros alone, as a failed copy leaves them"
    return f"none of {', '.join(FORMATS)}, whatever its name"


def _png_damage(data: bytes) -> str:
    """What is wrong with the chunks of a PNG, as a sentence; "" where all are whole."""
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        end = place + 8 + length
        if end + 4 > len(data):
            break
        critical = not kind[0] & 0x20  # others are notes, which no picture needs
        if critical and zlib.crc32(data[place + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            return f"A checksum in it is wrong, near byte {place} of {len(data)}."
        if kind == b"IEND":
            return ""
        place = end + 4
    return f"It is cut short: its last part is missing behind byte {place} of {len(data)}."


def _jpeg_damage(data: bytes) -> str:
    """Whether a JPEG ends in zeros where its last rows should be, as a sentence."""
    kept = len(data.rstrip(b"\0"))
    zeros = len(data) - kept
    if zeros >= 16 and data[kept - 2 : kept] != b"\xff\xd9":
        return f"Its last {zeros} bytes are zeros, as an interrupted copy leaves them."
    return ""
