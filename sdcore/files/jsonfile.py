"""JSON settings files, read without trust: a bad one is a FileError that names the file."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

from sdcore.errors import FileError

_SIZE_LIMIT = 16 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileError: no such file, over 16 MiB, not UTF-8, not JSON, not an object, a key given twice,
            or a number that is not finite.
    """
    require_file(path)
    if path.stat().st_size > _SIZE_LIMIT:
        raise _bad_json(path, f"it is over {_SIZE_LIMIT >> 20} MiB, no settings file is that large")
    try:
        return parse_json_object(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path} cannot be read", str(error), "check the file's rights") from error
    except ValueError as error:
        raise _bad_json(path, str(error)) from error


def parse_json_object(data: bytes) -> dict[str, Any]:
    """One JSON object, strictly.

    Raises:
        ValueError: with the reason, in one line.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_number,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def require_file(path: Path) -> None:
    """Check that `path` is an ordinary file; the error lists what is there instead.

    Raises:
        FileError: nothing there, or a folder, pipe or device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = f"{path.parent} holds: {listing(path.parent)}" if path.parent.is_dir() else str(error)
        hint = "check the folder's name, or download the model again"
        raise FileError(f"{path} is missing", why, hint) from error
    if not stat.S_ISREG(mode):
        raise FileError(
            f"{path} is not a file",
            "it is a folder" if stat.S_ISDIR(mode) else "it is a pipe or a device",
            "put the model's file in its place",
        )


def listing(folder: Path, limit: int = 10) -> str:
    """The names in a folder, for error messages."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return name_some(names, limit) if names else "nothing"


def name_some(names: list[str], limit: int = 5) -> str:
    """The first few names and how many more there are."""
    shown = ", ".join(f"{name!s:.120}" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _bad_json(path: Path, why: str) -> FileError:
    hint = "restore the file from where the model came from"
    return FileError(f"{path} is not a valid settings file", f"{why:.300}", hint)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.120} is given twice")
    return result


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is not a number JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value
