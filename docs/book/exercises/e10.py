"""Page 10: the place that reads a word most."""

from __future__ import annotations

import torch

from docs.book.checking import Exercise

CASES = ((4, 6, 9, 2), (5, 3, 7, 4), (3, 8, 5, 0))


def check(place_of) -> str | None:
    answers: list[tuple[int, ...]] = []
    wrong: dict[str | None, list[tuple[int, ...]]] = {}
    for h, w, length, token in CASES:
        weights = torch.randn(h * w, length).double().softmax(-1)
        answers.append(tuple(int(n) for n in place_of(weights, (h, w), token)))
        best = int(weights[:, token].argmax())
        for hint, place in (
            (None, divmod(best, w)),
            ("turned", divmod(best, w)[::-1]),
            ("height", divmod(best, h)),
            ("row", divmod(int(weights[token].argmax()), w)),
        ):
            wrong.setdefault(hint, []).append(place)
    return next((hint for hint, places in wrong.items() if places == answers), "other")


EXERCISE = Exercise("def place_of(weights, grid, token):", check)
