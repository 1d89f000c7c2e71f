"""Errors that a user sees: what happened, why, and what to try, each with its exit code."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Literal, TextIO

_FILTERS = RLock()
_PACKAGE = str(Path(__file__).parent)
_LONGEST_LINE = 1200  # letters
# Control characters but for line feed and tab, marks of direction, separators of lines.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class SdcoreError(Exception):
    """An error in three parts.

    Args:
        what: what failed, naming the file, argument or stage.
        why: the cause as far as it is known.
        hint: what the user can try.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, hint: str) -> None:
        what, why, hint = (visible(_cut(part)) for part in (what, why, hint))
        super().__init__(f"{what}\n  why: {why}\n  try: {hint}")
        self.what, self.why, self.hint = what, why, hint


class UsageError(SdcoreError, ValueError):
    """An argument or setting that cannot be used."""

    exit_code = 2


class NotHereError(UsageError, AttributeError):
    """A name that another library's object has and ours does not, so that `hasattr` says no."""


class FileError(SdcoreError, ValueError):
    """A file or folder that is missing, damaged or not what its name says."""

    exit_code = 3


class MemoryLimitError(SdcoreError, MemoryError):
    """Not enough memory for what was asked."""

    exit_code = 4


class NonFiniteError(SdcoreError, ArithmeticError):
    """NaN or infinity appeared; `what` names the stage."""

    exit_code = 5


@contextmanager
def exit_on_error() -> Generator[None]:
    """For commands: an SdcoreError ends the program with its message and its exit code."""
    try:
        yield
    except SdcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def warn(message: str) -> None:
    """Warn of what is painted otherwise than it may seem, at the caller's line outside sdcore."""
    level, frame = 1, sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(visible(message), stacklevel=level)


@contextmanager
def warning_filter(
    action: Literal["error", "ignore"], category: type[Warning] = Warning, module: str = ""
) -> Generator[None]:
    """A filter of warnings for a block, see `warnings.filterwarnings`.

    Filters belong to the whole process: two threads that change them in turn would leave one
    behind, so one waits for the other.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings(action, category=category, module=module)
        yield


def visible(text: str) -> str:
    """A text for people: what would steer their terminal, or turn the line round, is escaped.

    Names in files, paths and prompts come from anywhere. Line breaks and tabs stay, and what joins
    the parts of an emoji.
    """
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at it: a stream may also be closed, or not be there at all."""
    return stream is not None and not stream.closed and stream.isatty()


def _cut(text: str) -> str:
    """A part of an error without most of the foreign text that it quotes, where that is long.

    Each line by itself: a list that names every bad file stays whole.
    """
    lines = text.split("\n")
    return "\n".join(
        line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 300]} ... {line[-300:]}"
        for line in lines
    )


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names and how many more there are, for messages."""
    shown = ", ".join(f"{name!s:.120}" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
