"""TOML settings files, read without trust: a bad one is a FileError that names the file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from sdcore.errors import FileError
from sdcore.files.limits import KEY_PARTS, TOML_BYTES
from sdcore.files.opening import read_bytes

_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:{_PART}\.[ \t]*+){{{KEY_PARTS}}}")


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        FileError: no such file, over 1 MiB, not UTF-8, not TOML, or nested too deeply.
    """
    data = read_bytes(path, TOML_BYTES)
    try:
        text = data.decode("utf-8-sig")
        if _DEEP_KEY.search(text):
            raise ValueError(f"A key has more than {KEY_PARTS} parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        why = f"{error}" if isinstance(error, ValueError) else "It is nested too deeply"
        raise FileError(
            f"{path} is not valid TOML.", f"{why:.300}.", "Correct the file."
        ) from error
