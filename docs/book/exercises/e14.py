"""Page 14: a control under which the two animals change sides; the checker paints."""

from __future__ import annotations

import torch

from docs.book.book import PROMPTS
from docs.book.checking import Exercise
from docs.book.figures.f14 import changed_sides
from sdcore import BACKENDS, Site

GRID = (4, 6)
SITES = (Site("up", 1, kind="cross"), Site("up", 1, kind="self"))


def check(control) -> str | None:
    attend = BACKENDS["reference"]
    q, k, v = torch.randn(3, 1, 2, 24, 8)
    cross, own = SITES

    def asked(function, site=cross):
        return function(site, GRID, q, k, v, attend)

    plain = attend(q, k, v)
    if not torch.allclose(asked(control, own), plain):
        return "self"
    if torch.allclose(asked(control), plain):
        return "nothing"
    upside_down = q.unflatten(2, GRID).flip(2).flatten(2, 3)
    if torch.allclose(asked(control), attend(upside_down, k, v)):
        return "rows"
    return None if changed_sides(PROMPTS["en"][0][0], control, (1, 2, 3, 4)) else "other"


EXERCISE = Exercise("def control(site, grid, q, k, v, attend):", check)
