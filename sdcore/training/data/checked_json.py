"""JSON that we write for ourselves, with its hash, so that damage is seen and never believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sdcore.errors import FileError, warn
from sdcore.files.atomic import replace_file
from sdcore.files.opening import read_bytes

_LIMIT = 1 << 30


def read_checked(path: Path) -> dict[str, Any] | None:
    """What `write_checked` wrote; None, with a warning where it is damaged."""
    if not path.exists():
        return None
    try:
        digest, _, body = read_bytes(path, _LIMIT).partition(b"\n")
        if digest == _digest(body):
            return json.loads(body)
        why = "Its checksum is wrong."
    except FileError as error:
        why = error.why
    warn(f"{path} is made anew: {why}")
    return None


def write_checked(path: Path, value: dict[str, Any]) -> None:
    """Write a value whole or not at all; a warning where it cannot be written, no error."""
    body = json.dumps(value).encode()
    data = _digest(body) + b"\n" + body
    try:
        replace_file(path, lambda draft: draft.write_bytes(data))
    except FileError as error:
        warn(f"{path} is not kept: {error.why}")


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()
