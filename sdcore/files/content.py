"""What a file is by its first bytes, whatever it is called, and what to do with it then.

People give what their browser saved: the page of a model in place of the model, an archive that
holds it, a pointer to it. Nothing is opened here but its first and last bytes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sdcore.files.opening import open_file

_HEAD, _TAIL = 512, 1 << 20  # bytes that are looked at
_FEWEST = 12  # bytes of a text before zeros
PICKLE = "a pickle checkpoint"
GGUF_MARK = b"GGUF"
_AGAIN = "Download the model itself."
_LOG_IN = (
    "Download it again where it came from: log in, accept its licence if it asks for that, and use "
    "the link of its download button (on the Hugging Face hub with /resolve/ in it, not /blob/)."
)
_UNPACK = "Unpack it, and name the file in it."
_GGUF = "Models and their UNets are read from GGUF; take everything else as safetensors."
_AS_SAFETENSORS = "Take the same model as safetensors."
_LFS = (
    "Fetch it with `git lfs pull` in its folder, or download the file itself in place of a clone."
)


@dataclass(frozen=True)
class Content:
    """What a file that holds no safetensors is. Args: hint: what to do; "" for a pickle."""

    what: str
    hint: str

    @property
    def is_pickle(self) -> bool:
        return PICKLE in self.what


_PICTURE = Content("a picture", "Name the file of the model.")
_ARCHIVE = Content("a packed archive", _UNPACK)
_SIGNATURES = {
    **{bytes((0x80, version)): Content(PICKLE, "") for version in range(2, 6)},
    GGUF_MARK: Content("a GGUF file", _GGUF),
    b"\x89HDF": Content("an HDF5 file", _AS_SAFETENSORS),
    b"\x93NUMPY": Content("an array of numpy", _AS_SAFETENSORS),
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF8": _PICTURE,
    b"RIFF": _PICTURE,
    b"%PDF": Content("a PDF document", _AGAIN),
    b"d8:announce": Content("a torrent", "Download with it what it describes."),
    **dict.fromkeys(
        (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh"), _ARCHIVE
    ),
}
# Of the first protocol, which is text: a list or dict that is noted, or the name of a class.
_OLD_PICKLE = re.compile(rb"\(?[dlt]p\d+\n|\(?c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n|\([dl]\.")
_WEB = ("<!doctype html", "<html", "<head", "<!--", "<body", "<script")


def what_it_is(path: Path) -> Content | None:
    """What a file is by its first bytes, where that is something else than safetensors.

    Raises:
        FileError: it cannot be read.
    """
    with open_file(path) as file:
        head = file.read(_HEAD)
        if head.startswith(b"PK\x03\x04"):
            return _zip(head, file)
    if head[8:9] == b"{" and b"\0" in head[:8]:
        return None  # as safetensors begins
    if _OLD_PICKLE.match(head):
        return Content(PICKLE, "")
    known = next((c for mark, c in _SIGNATURES.items() if head.startswith(mark)), None)
    return known or _text(head)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do. Raises FileError where it cannot be read."""
    with open_file(path) as file:
        return file.read(len(GGUF_MARK)) == GGUF_MARK


def _zip(head: bytes, file: BinaryIO) -> Content:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))  # where an archive lists its files
    if b"/data.pkl" in head or b"/data.pkl" in file.read():
        return Content(f"a zip archive, as torch.save writes: {PICKLE}", "")
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")].decode("utf-8", "replace")
    example = f", such as {name!r:.120}" if name else ""
    return Content(f"a zip archive of other files{example}", _UNPACK)


def _text(head: bytes) -> Content | None:
    """What kind of text a file is; None where it is none."""
    text, zeros, _ = head.partition(b"\0")  # of a download that stopped, zeros may follow
    if zeros and len(text) < _FEWEST:
        return None
    head = text
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not head or len(head) - error.start > 3:  # a letter that is cut in two
            return None
        text = head[: error.start].decode("utf-8-sig")
    words = " ".join(text.split())
    if not words or not words.isprintable():
        return None
    begins = f"that begins with {words!r:.100}"
    start = words.lower()
    if start.startswith("version https://git-lfs"):
        return Content("a git-lfs pointer; the weights themselves were not downloaded", _LFS)
    if start.startswith(_WEB) or ("<html" in start and start.startswith("<")):
        return Content("a web page", _LOG_IN)
    if start.startswith(("<?xml", "<error", "<")):
        return Content(f"an XML text {begins}, such as a server's refusal", _LOG_IN)
    if start.startswith(("{", "[")):
        return Content(*_json(words, begins))
    return Content(f"a text {begins}", _LOG_IN)


def _json(words: str, begins: str) -> tuple[str, str]:
    if '"weight_map"' in words or '"total_size"' in words:
        return "the list of a model's shards, and none of them", "Name the folder that it lies in."
    if '"error"' in words.lower() or '"message"' in words.lower():
        return f"a server's answer {begins}", _LOG_IN
    settings = ('"_class_name"', '"architectures"', '"peft_type"', '"_name_or_path"')
    if any(name in words for name in settings):
        return "the settings of a model, without its weights", "Name the folder that it lies in."
    return f"a JSON text {begins}", _AGAIN
