"""The dialect of ComfyUI.

    (x)  (x:1.3)        weight times 1.1; weight 1.3, whatever is around it
    \\(  \\)              the character itself
    everything else     text

So ((x:1.1)) is 1.1, and ((x):1.1) is 1.1 * 1.1. Rules: comfy/sd1_clip.py of ComfyUI.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left

from sdcore.errors import UsageError
from sdcore.prompt.text import Clause, Excerpt, Fragment, Parsed, Slice, always

_MARKS = re.compile(r"\\[()]|[()]")
_LONGEST_NUMBER = 400


def parse(prompt: str, negative: bool = False) -> Parsed:
    """A prompt as ComfyUI reads it. UsageError on a weight that is not finite."""
    escapes = [m.start() for m in _MARKS.finditer(prompt) if m[0][0] == "\\"]
    fragments = [
        Fragment(Excerpt(prompt, _without(span, escapes)), weight)
        for span, weight in _weights(prompt)
        if span[0] < span[1]
    ]
    return Parsed((always((Clause((tuple(fragments),)),)),))


def _weights(prompt: str) -> list[tuple[Slice, float]]:
    """Slices with their weights.

    A closing bracket without an opening one makes the next opening one text, as in ComfyUI, where
    the depth is counted below zero.
    """
    marks = [(m.start(), m[0]) for m in _MARKS.finditer(prompt) if m[0][0] != "\\"]
    partner = _partners(marks)
    found: list[tuple[Slice, float]] = []
    # (first mark, past the last mark, start, end, weight) of what is still to be read
    waiting = [(0, len(marks), 0, len(prompt), 1.0)]
    while waiting:
        mark, last, start, end, weight = waiting.pop()
        depth = 0
        while mark < last:
            place, sign = marks[mark]
            if sign == "(" and depth == 0:
                break
            depth += 1 if sign == "(" else -1
            mark += 1
        if mark == last:
            found.append(((start, end), weight))
            continue
        found.append(((start, marks[mark][0]), weight))
        place, close = marks[mark][0], partner[mark]
        if close is not None and close < last:
            waiting.append((close + 1, last, marks[close][0] + 1, end, weight))
            inner = marks[close][0]
        else:  # never closed: what is left is one item, and a bracket if it ends like one
            close, inner = last - 1, end - 1
            if marks[close] != (inner, ")"):
                found.append(((place, end), weight))
                continue
        inner_end, inner_weight = _explicit(prompt, place + 1, inner, weight)
        waiting.append((mark + 1, close, place + 1, inner_end, inner_weight))
    return found


def _partners(marks: list[tuple[int, str]]) -> list[int | None]:
    """For each opening mark the number of the mark that closes it."""
    partner: list[int | None] = [None] * len(marks)
    opened: list[int] = []
    for number, (_, sign) in enumerate(marks):
        if sign == "(":
            opened.append(number)
        elif opened:
            partner[opened.pop()] = number
    return partner


def _explicit(prompt: str, start: int, end: int, weight: float) -> tuple[int, float]:
    """Where the text of a bracket ends, and its weight: the number after its last colon, or 1.1."""
    colon = prompt.rfind(":", max(start, end - _LONGEST_NUMBER), end)
    if colon <= start:
        return end, weight * 1.1
    try:
        number = float(prompt[colon + 1 : end])
    except ValueError:
        return end, weight * 1.1
    if not math.isfinite(number):
        raise UsageError(
            f"The weight {prompt[colon + 1 : end]!r:.40} in the prompt cannot be used.",
            "It is not a finite number.",
            "Use a number such as 1.2.",
        )
    return colon, number


def _without(span: Slice, drop: list[int]) -> tuple[Slice, ...]:
    """A slice without single characters."""
    slices: list[Slice] = []
    start, end = span
    for place in drop[bisect_left(drop, start) : bisect_left(drop, end)]:
        slices.append((start, place))
        start = place + 1
    slices.append((start, end))
    return tuple(piece for piece in slices if piece[0] < piece[1])
