"""Captions out of text files, in the encodings that people's tools write."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from sdcore.errors import FileError
from sdcore.files.opening import read_bytes

LIMIT = 64 << 10  # bytes; CLIP reads about 300 letters
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def decode(data: bytes) -> tuple[str, str]:
    """(text, encoding) of the bytes of a text file: utf-8, utf-16 or cp1252.

    Raises:
        ValueError: it is no text in any of them, with the reason as a sentence.
    """
    encoding = "utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as first:
        encoding = "cp1252"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            text = "\x00"
        if _CONTROL.search(text):
            raise ValueError(
                f"It is not text in UTF-8 (byte {first.start}), nor in cp1252."
            ) from None
    if found := _CONTROL.search(text):
        raise ValueError(_no_text(found))
    return text, encoding


def _no_text(found: re.Match[str]) -> str:
    return f"It holds the control character {ord(found[0])}, as no text does."


def fault_of(caption: str) -> str:
    """Why a text of a table can be no caption, as a sentence; "" where it can."""
    if found := _CONTROL.search(caption):
        return _no_text(found)
    try:
        length = len(caption.encode("utf-8"))
    except UnicodeEncodeError:
        return "It holds half a character."
    return f"It has more than {LIMIT >> 10} KiB." if length > LIMIT else ""


def read_caption(path: Path) -> tuple[str, str]:
    """(caption, encoding) of a text file; lines and other white space become single spaces.

    Raises:
        ValueError: with the reason as a sentence.
    """
    try:
        text, encoding = decode(read_bytes(path, LIMIT))
    except FileError as error:
        raise ValueError(f"{error.why}") from error
    return tidy(text), encoding


def tidy(text: str) -> str:
    """A caption in one line."""
    return " ".join(text.split())
