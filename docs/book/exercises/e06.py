"""Page 6: two heads, one for the left neighbour and one for the noun."""

from __future__ import annotations

import torch

from docs.book.checking import Exercise


def check(scores) -> str | None:
    for length, noun in ((6, 4), (5, 1), (9, 3)):
        made = torch.as_tensor(scores(length, noun)).float()
        if made.shape != (2, length, length):
            return "other"
        weights = made.softmax(-1)
        rows = torch.arange(length)
        left, to = weights[0, rows, (rows - 1).clamp(min=0)], weights[1, :, noun]
        if (torch.cat([left, to]) >= 0.9).all():
            continue
        if (weights[0, rows[:-1], rows[1:]] >= 0.9).all():
            return "right"
        best = made.argmax(-1)
        if (best[0] == (rows - 1).clamp(min=0)).all() and (best[1] == noun).all():
            return "soft"
        return "row" if (made[1, noun] > made[1, noun - 1]).all() else "other"
    return None


EXERCISE = Exercise("def scores(length, noun):", check)
