"""Page 14: a control under which the two animals change sides; the checker paints."""

from __future__ import annotations

import torch

from docs.book.book import PROMPTS, STEPS, model
from docs.book.checking import Exercise
from docs.book.figures.f14 import change_sides, turned_round
from sdcore import BACKENDS, Site

GRID, SEEDS = (4, 6), (1, 2, 3, 4)
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
    prompts, pipe = [PROMPTS["en"][0][0]] * len(SEEDS), model()
    before = pipe(prompts, seed=SEEDS, steps=STEPS).images
    after = pipe(prompts, seed=SEEDS, steps=STEPS, control=control).images
    turned = pipe([turned_round(each) for each in prompts], seed=SEEDS, steps=STEPS).images
    return None if change_sides(before, after, turned) else "other"


EXERCISE = Exercise("def control(site, grid, q, k, v, attend):", check)
