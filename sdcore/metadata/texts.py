"""What a picture file says about how it was made: its texts, by the names that programs give them.

In PNG they are text chunks, in JPEG and WebP the EXIF comment, or ComfyUI's make and model. NovelAI
and extensions of the web UI also hide theirs in the last bit of the alpha channel.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sdcore.errors import FileError, name_some, warn, warning_filter
from sdcore.files.jsonfile import is_object
from sdcore.files.limits import MIB, PICTURE_SIDE, PIXELS_FOR_TEXT, TEXT_LETTERS
from sdcore.files.opening import open_file
from sdcore.metadata.invoke import INVOKE_TEXTS
from sdcore.metadata.other_tools import EASY_SETTINGS, NOVELAI_TEXTS

# The web UI's text (also Swarm's and Fooocus'), ours, ComfyUI's graph.
_USUAL = ("parameters", "sdcore", "prompt", "workflow")
TEXTS = tuple(dict.fromkeys((*_USUAL, *INVOKE_TEXTS, *NOVELAI_TEXTS, *EASY_SETTINGS)))
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_MAKE, _MODEL = 0x010F, 0x0110
# Words of which one is in every such text, to tell the order of the bytes in UTF-16.
_SIGNS = ("Steps", "steps", "prompt", '": ')
# How a text hidden in the alpha channel begins: packed, and plain.
_HIDDEN = {b"stealth_pngcomp": True, b"stealth_pnginfo": False}


def read_texts(path: Path) -> dict[str, str]:
    """What a PNG, JPEG or WebP says about how it was made: those of `TEXTS` that are there.

    Where a PNG has a text twice, the last one counts. A text over 4 MiB is left out, with a
    warning.

    Raises:
        FileError: no such file, no such picture, or nothing said.
    """
    with open_file(path) as file:
        try:
            texts = _texts(file)
        except MemoryError:
            raise
        except Exception as error:  # Pillow has no short list of errors for damaged files
            why = " ".join(str(error).split()) or type(error).__name__
            raise no_settings(path, f"It cannot be read as a picture: {why:.200}.") from error
    if not texts:
        raise no_settings(path, f"It holds none of the texts {', '.join(_USUAL)}.")
    read = {name: text for name, text in texts.items() if len(text) <= TEXT_LETTERS}
    long = [name for name in texts if name not in read]
    said = f"over {TEXT_LETTERS // MIB} MiB: {name_some(long)}"
    if not read:
        raise no_settings(path, f"Its texts are {said}.")
    if long:
        warn(f"{path.name}: its texts {said}; they are not read")
    return read


def no_settings(path: Path, why: str) -> FileError:
    """The error for a picture that does not say what it must."""
    return FileError(
        f"{path} does not say how it was made.",
        why,
        "Use a picture as sdcore, Stable Diffusion web UI, ComfyUI, SwarmUI, Fooocus, InvokeAI, "
        "NovelAI or Easy Diffusion saved it.",
    )


def _texts(file: BinaryIO) -> dict[str, str]:
    from PIL import Image

    with (
        warning_filter("ignore", module=r"PIL\."),  # about EXIF values that are not asked for
        warning_filter("error", Image.DecompressionBombWarning),
        Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image,
    ):
        small = image.width * image.height <= PIXELS_FOR_TEXT and max(image.size) <= PICTURE_SIDE
        found = _chunks(image)
        if not found and image.format == "PNG" and small:
            image.load()  # some programs write their text behind the pixels
            found = _chunks(image)
        if not found and (small or image.format != "PNG"):  # Pillow reads a PNG's pixels for it
            found = _exif(image)
        if not found and small and image.mode == "RGBA":
            found = _hidden(np.asarray(image.getchannel("A")))
    return {name: text for name, text in found.items() if text.strip()}


def _chunks(image: Any) -> dict[str, str]:
    info = image.info
    found = {name: str(info[name]) for name in TEXTS if isinstance(info.get(name), str)}
    # Titles and descriptions of any program are called as NovelAI's.
    if not found.get("Comment", "").lstrip().startswith("{"):
        found = {name: text for name, text in found.items() if name not in NOVELAI_TEXTS}
    return found


def _exif(image: Any) -> dict[str, str]:
    exif = image.getexif()
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    found = {"parameters": _decode_comment(comment)} if comment else {}
    for tag in (_MAKE, _MODEL):  # "prompt:{...}" and "workflow:{...}"
        name, _, text = str(exif.get(tag, "")).partition(":")
        if name in ("prompt", "workflow"):
            found[name] = text
    return found


def _decode_comment(comment: bytes | str) -> str:
    """The text of an EXIF UserComment: 8 bytes that name the code, then the text."""
    if isinstance(comment, str):
        return comment
    code, text = comment[:8], comment[8:]
    if code.startswith(b"UNICODE"):
        return _decode_utf16(text)
    if code.startswith((b"ASCII", b"\0\0\0\0\0\0\0\0")):
        return text.decode("utf-8", "replace")
    return "" if code.startswith(b"JIS") else comment.decode("utf-8", "replace")


def _decode_utf16(text: bytes) -> str:
    """By its mark; without one, in the order in which it holds the words of such a text."""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", "replace")
    orders = ("utf-16-be", "utf-16-le")  # the web UI writes the high byte first
    read = [text.decode(order, "replace") for order in orders]
    return next((each for each in read if any(sign in each for sign in _SIGNS)), read[0])


def _hidden(alpha: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, str]:
    """The text in the last bits of an alpha channel (H, W), column by column."""

    def read(start: int, count: int) -> bytes:
        """So many bits from there on; of the picture no more columns than hold them."""
        rows = len(alpha)
        first, last = start // rows, -(-(start + count) // rows)
        bits = alpha[:, first:last].T.reshape(-1) & 1
        return np.packbits(bits[start - first * rows :][:count]).tobytes()

    head = max(len(sign) for sign in _HIDDEN) * 8
    packed = _HIDDEN.get(read(0, head))
    if packed is None:
        return {}
    length = int.from_bytes(read(head, 32), "big")
    if length > TEXT_LETTERS * 8:
        return {}
    data = read(head + 32, length)
    if packed:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            data = file.read(TEXT_LETTERS + 1)
    text = data.decode("utf-8", "replace")
    try:
        named: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {"parameters": text}  # the web UI's
    if not is_object(named) or "Comment" not in named:
        return {"parameters": text}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in named.items()
        if name in TEXTS
    }
