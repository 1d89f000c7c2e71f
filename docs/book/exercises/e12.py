"""Page 12: which blocks can be cut; the checker paints."""

from __future__ import annotations

from docs.book.book import PROMPTS, SEED
from docs.book.checking import Exercise
from docs.book.figures.f12 import VISIBLE, change, sites, without


def check(cut) -> str | None:
    names = tuple(sorted(set(cut())))
    if set(names) - set(sites()):
        return "unknown"
    if len(names) < 3:
        return "few"
    before, after = without([PROMPTS["en"][0][0]] * 2, [SEED] * 2, [(), names])
    return "visible" if change(before, after) >= VISIBLE else None


EXERCISE = Exercise("def cut():", check)
