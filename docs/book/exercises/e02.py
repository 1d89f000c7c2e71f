"""Page 2: one Euler step."""

from __future__ import annotations

import torch

from docs.book.checking import Exercise


def check(step) -> str | None:
    x, clean = torch.randn(2, 1, 4, 6, 6, dtype=torch.float64)
    for sigma, then in ((10.0, 4.0), (2.0, 0.0), (1.5, 1.5), (0.7, 0.1)):
        answer = step(x, clean, sigma, then)
        way = x - clean

        def same(other, answer=answer) -> bool:
            return torch.allclose(answer, other, atol=1e-6)

        if same(x + (then - sigma) / sigma * way):
            continue
        if same(x - (then - sigma) / sigma * way):
            return "away"
        if same(x + (then - sigma) * way):
            return "undivided"
        return "jump" if same(clean) else "other"
    return None


EXERCISE = Exercise("def step(x, clean, sigma, sigma_next):", check)
