"""Page 12: which blocks can be cut; the checker paints."""

from __future__ import annotations

from docs.book.book import PROMPTS
from docs.book.checking import Exercise
from docs.book.figures.f12 import VISIBLE, change, sites


def check(cut) -> str | None:
    names = tuple(sorted(set(cut())))
    if set(names) - set(sites()):
        return "unknown"
    if len(names) < 3:
        return "few"
    return "visible" if change(PROMPTS["en"][0][0], names) >= VISIBLE else None


EXERCISE = Exercise("def cut():", check)
