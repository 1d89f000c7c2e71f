"""JSON settings files, read without trust: a bad one is a FileError that names the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from sdcore.errors import FileError
from sdcore.files.limits import JSON_BYTES, JSON_VALUES, MIB
from sdcore.files.opening import read_bytes

_MARKS = (b",", b"[", b"{")  # one of them stands before each value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileError: no such file, larger than files/limits.py allows, not UTF-8, not JSON, not an
            object, a key given twice, or a number that is not finite.
    """
    data = read_bytes(path, JSON_BYTES)
    try:
        return parse_json_object(data)
    except ValueError as error:
        raise FileError(
            f"{path} is not a valid settings file.",
            f"{error!s:.300}.",
            "Get the file again from where the model came from.",
        ) from error


def parse_json_object(data: bytes) -> dict[str, Any]:
    """One JSON object, strictly.

    Raises:
        ValueError: with the reason, in one line.
    """
    if len(data) > JSON_BYTES:
        raise ValueError(f"it has more than {JSON_BYTES // MIB} MiB")
    if sum(map(data.count, _MARKS)) > JSON_VALUES:
        raise ValueError(f"it holds more than {JSON_VALUES:,} values")
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
    if not is_object(value):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value out of a JSON file is an object, whose keys are strings."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether a value out of a JSON file is a list, of anything."""
    return isinstance(value, list)


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
