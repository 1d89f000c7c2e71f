"""What a picture's bytes are, and what is wrong with them, whatever is to be done with the picture.

Pillow finds most damage when it decodes all rows. It does not look at the checksums of a PNG, so we
do; and a JPEG whose end is zeros, as an interrupted copy leaves it, decodes without a word.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from PIL import Image

from sdcore.errors import FileError, SdcoreError
from sdcore.files.limits import PICTURE_PIXELS
from sdcore.image.pictures import FORMATS, decode_picture, to_rgb, undecodable

MOST_BYTES = 256 << 20
_TOP = 16  # rows
_TOO_LARGE = f"It has more than {PICTURE_PIXELS // 1_000_000} million pixels."
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

    digest: of the bytes.
    top: of the size and the uppermost rows, upright: pictures that show the same have the same.
    pixels: of all that it shows; "" where no other picture has the same top.
    width, height: upright.
    kind, reason: what is wrong with it; both "" for a sound picture.
    remarks: (kind, sentence) of what somebody should know of it.
    alpha: whether it has transparency; black: whether it is black everywhere, as a mask must not
        be.
    """

    digest: str
    top: str = ""
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
        quick = _from_top(digest, data) if found == "PNG" else None
        return quick or _from_all(digest, data)
    except SdcoreError as error:
        kind = "too large" if "too large" in error.what else "damaged"
        return Content(digest, kind=kind, reason=error.why)
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        large = isinstance(error, Image.DecompressionBombError)
        reason = _TOO_LARGE if large else undecodable(error)
        return Content(digest, kind="too large" if large else "damaged", reason=reason)


def pixel_digest(data: bytes) -> str:
    """A hash of all that a sound picture shows, upright, with its transparency."""
    image = decode_picture(io.BytesIO(data), "It")
    return _hash(image, _alpha_range(image)[0] < 255)


def unreadable(error: FileError) -> Content:
    """What is said of a picture whose bytes could not be read."""
    what = error.what
    kind = next((k for k in ("too large", "cut short", "missing") if k in what), "unreadable")
    return Content("", kind="damaged" if kind == "cut short" else kind, reason=error.why)


def _from_top(digest: str, data: bytes) -> Content | None:
    """What the uppermost rows of a PNG say; None where they do not say enough.

    To decode all rows of a photograph takes ten times as long as to read its checksums, which tell
    damage as well.
    """
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    cut = _png_top(data)
    if cut is None or width * height > PICTURE_PIXELS:  # the error for that is elsewhere
        return None
    top = decode_picture(io.BytesIO(cut), "It")
    if top.has_transparency_data or _one_colour(top):
        return None
    return Content(digest, _hash(top, False, (width, height)), width=width, height=height)


def _from_all(digest: str, data: bytes) -> Content:
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        frames: int = getattr(opened, "n_frames", 1)
    image = decode_picture(io.BytesIO(data), "It")
    least, most = _alpha_range(image)
    if most == 0:
        return Content(digest, kind="transparent", reason="It is transparent everywhere.")
    alpha = least < 255
    remarks: list[tuple[str, str]] = []
    top = image.crop((0, 0, image.width, min(_TOP, image.height)))
    plain = not alpha and _one_colour(top) and _one_colour(image)
    if plain:
        remarks.append(("one colour", "It is of one colour everywhere."))
    if frames > 1:
        remarks.append(("animated", f"It has {frames} frames; the first is used."))
    return Content(
        digest,
        _hash(top, alpha, image.size),
        width=image.width,
        height=image.height,
        remarks=tuple(remarks),
        alpha=alpha,
        black=plain and to_rgb(image).getpixel((0, 0)) == (0, 0, 0),
    )


def _hash(image: Image.Image, alpha: bool, size: tuple[int, int] | None = None) -> str:
    """Of what an upright picture, or the top of one of that size, shows."""
    hashed = hashlib.sha1(repr(size or image.size).encode(), usedforsecurity=False)
    hashed.update(to_rgb(image).tobytes())
    if alpha:
        hashed.update(image.convert("RGBA").getchannel("A").tobytes())
    return hashed.hexdigest()


def _alpha_range(image: Image.Image) -> tuple[int, int]:
    """(least, most) opacity of a picture, up to 255."""
    if not image.has_transparency_data:
        return 255, 255
    return cast("tuple[int, int]", image.convert("RGBA").getchannel("A").getextrema())


def _one_colour(image: Image.Image) -> bool:
    ranges = cast("tuple[tuple[int, int], ...]", to_rgb(image).getextrema())
    return all(low == high for low, high in ranges)


def _what(data: bytes) -> str:
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, name in _FOREIGN.items():
        if start[: len(signature)].lower() == signature.lower():
            others = f", not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            return name if ";" in name else name + others
    if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif"):
        return "a HEIC photo; export it as JPEG"
    if not any(data[:4096]):
        return "zeros alone, as a failed copy leaves them"
    return f"none of {', '.join(FORMATS)}, whatever its name"


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the content of each chunk of a PNG that is there in full."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            return
        yield data[place + 4 : place + 8], place + 8, end
        place = end + 4


def _png_damage(data: bytes) -> str:
    """What is wrong with the chunks of a PNG, as a sentence; "" where all are whole."""
    end = 8
    for kind, start, end in _chunks(data):
        critical = not kind[0] & 0x20  # others are notes, which no picture needs
        written = int.from_bytes(data[end : end + 4], "big")
        if critical and zlib.crc32(memoryview(data)[start - 4 : end]) != written:
            return f"A checksum in it is wrong, near byte {start} of {len(data)}."
        if kind == b"IEND":
            return ""
    return f"It is cut short: its last part is missing behind byte {end} of {len(data)}."


def _png_top(data: bytes) -> bytes | None:
    """A PNG of the uppermost rows of another; None where that one has to be read as a whole."""
    if data[24] != 8 or data[28]:  # 16 bits, or interlaced
        return None
    kept = [data[:8]]
    for kind, start, end in _chunks(data):
        # Animations, and what may turn the picture.
        if (
            kind in (b"acTL", b"eXIf", b"iTXt", b"zTXt")
            or data[start : start + 11] == b"Raw profile"
        ):
            return None
        if kind == b"IHDR":
            rows = min(_TOP, int.from_bytes(data[start + 4 : start + 8], "big"))
            header = (
                kind + data[start : start + 4] + rows.to_bytes(4, "big") + data[start + 8 : end]
            )
            kept.append((13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big"))
        elif kind in (b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start - 8 : end + 4])
    return b"".join(kept)


def _jpeg_damage(data: bytes) -> str:
    """Whether a JPEG ends in zeros where its last rows should be, as a sentence."""
    kept = len(data.rstrip(b"\0"))
    zeros = len(data) - kept
    if zeros >= 16 and data[kept - 2 : kept] != b"\xff\xd9":
        return f"Its last {zeros} bytes are zeros, as an interrupted copy leaves them."
    return ""
