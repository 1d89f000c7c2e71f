"""What pictures got right of what their prompts ask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.shares import Tally

if TYPE_CHECKING:  # torch is imported when something is painted
    from bench.judge import Reading
    from bench.prompts import Prompt

MEASURES = ("concept", "style", "background", "place", "both objects", "relation")
AXES = (("left", "right"), ("top", "bottom"))


def score(
    prompts: Sequence[Prompt], readings: Sequence[Reading], side: int = 64
) -> dict[str, Tally]:
    """Hits and number of prompts for each of `MEASURES`; a prompt counts only for what it asks.

    relation is asked only of pictures that show both objects.
    """
    verdicts = [verdict(*pair, side) for pair in zip(prompts, readings, strict=True)]
    tallies = {}
    for measure in MEASURES:
        asked = [v for v in verdicts if measure in v]
        if measure == "relation":
            asked = [v for v in asked if v["both objects"]]
        tallies[measure] = sum(v[measure] for v in asked), len(asked)
    return tallies


def verdict(prompt: Prompt, reading: Reading, side: int = 64) -> dict[str, bool]:
    """What the picture got right, of what the prompt asks.

    concept, style: the nearest drawing's (one object). background: the nearest named colour.
    place: the named place of an object of that size is the nearest to the middle of what is seen.
    both objects: one is seen in each half of the picture, left and right or top and bottom.
    relation: each is seen in its own half.
    """
    from bench.prompts import offset
    from train.emoji.data.layout import PLACES

    right = {"background": reading.background == prompt.background}
    if prompt.relation:
        seen = [[reading.halves[half] for half in ends] for ends in AXES]
        right["both objects"] = sorted(prompt.concepts) in map(sorted, seen)
        here, there = (reading.halves[half] for half in halves(prompt.relation))
        right["relation"] = (here, there) == prompt.concepts
        return right
    right["concept"] = reading.concept == prompt.concepts[0]
    right["style"] = reading.style == prompt.style
    if prompt.place:
        nearest = min(PLACES, key=lambda p: math.dist(offset(p, prompt.size, side), reading.center))
        right["place"] = nearest == prompt.place
    return right


def halves(relation: str) -> tuple[str, str]:
    """The half of the first object and that of the second."""
    return {
        "to the left of": ("left", "right"),
        "to the right of": ("right", "left"),
        "above": ("top", "bottom"),
        "below": ("bottom", "top"),
    }[relation]
