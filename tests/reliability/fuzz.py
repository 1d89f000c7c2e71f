"""A search of inputs for each reader of texts, guided by the time, the memory and the lines that an
input reaches; what it finds becomes a case of the corpus.

Texts change by pieces of other texts, as hypothesis or atheris would do it; an input that reaches a
line of sdcore that none before it did, or takes longer for its length, is kept and changed further.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import sdcore
from sdcore.errors import SdcoreError
from tests.reliability.corpus.requests import PIECES
from tests.reliability.test_linear import READERS

HOME = str(Path(sdcore.__file__).parent)
LONGEST = 3000  # letters
SECONDS_A_LETTER = 2e-4
SIGNS = (*PIECES, *'{}[]()<>:,|"\\', "\n", "Steps: 20, ", "Size: 64x64", "Negative prompt:", "0.5")


def fuzz(minutes: float, only: list[str] | None = None) -> int:
    """Search, so long for each reader, and print what was found; 1 where something was."""
    warnings.simplefilter("ignore")
    bad = 0
    for name in only or READERS:
        tried, lines, found = search(READERS[name], minutes * 60, random.Random(name))
        print(f"{name}: {tried:,} inputs, {lines:,} lines reached, {len(found)} findings")
        for text, why in found.items():
            print(f"  {why}: {text!r:.300}")
        bad += len(found)
    return int(bool(bad))


def search(
    read: Callable[[str], Any], seconds: float, rng: random.Random
) -> tuple[int, int, dict[str, str]]:
    """How many texts were tried and lines reached; text -> what was wrong with it."""
    kept, seen, found, slowest = ["a fox"], set[Any](), dict[str, str](), 0.0
    tried, until = 0, time.monotonic() + seconds
    while time.monotonic() < until and len(found) < 20:
        text = changed(rng.choice(kept), kept, rng)
        new, took, error = reached(read, text, seen)
        tried += 1
        pace = took / (len(text) + 50)
        if error is not None and not isinstance(error, SdcoreError | ValueError):
            found.setdefault(f"{text}", f"{type(error).__name__}: {error!s:.100}")
        if took > 1 and took > SECONDS_A_LETTER * 10 * len(text):
            found[text] = f"{took:.1f} s"
        if new or pace > slowest:
            slowest = max(slowest, pace)
            kept.append(text)
    return tried, len(seen), found


def changed(text: str, others: list[str], rng: random.Random) -> str:
    for _ in range(rng.choice([1, 1, 2, 5])):
        place, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        piece = rng.choice([rng.choice(SIGNS), text[place:end], rng.choice(others)])
        end = rng.choice([place, place, end])
        text = text[:place] + piece * rng.choice([1, 1, 1, 2, 30]) + text[end:]
    return text[:LONGEST]


def reached(
    read: Callable[[str], Any], text: str, seen: set[Any]
) -> tuple[bool, float, BaseException | None]:
    """Whether a line of sdcore was new, seconds, and the error."""
    before, error = len(seen), None

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen.add((frame.f_code, frame.f_lineno))
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(HOME) else None

    start = time.thread_time()
    sys.settrace(call)
    try:
        read(text)
    except Exception as raised:
        error = raised
    finally:
        sys.settrace(None)
    return len(seen) > before, time.thread_time() - start, error
