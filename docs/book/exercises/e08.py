"""Page 8: one step of a decoder's self-attention with kept keys and values."""

from __future__ import annotations

import torch

from docs.book.checking import Exercise
from sdcore import BACKENDS, causal_mask


def check(step) -> str | None:
    q, k, v = torch.randn(3, 6, 16).double()
    wanted = BACKENDS["reference"](q, k, v, causal_mask(6))
    rows, kept = [], None
    for n in range(6):
        out, kept = step(q[n : n + 1], k[n : n + 1], v[n : n + 1], kept)
        rows.append(out)
    made = torch.cat(rows)

    def same(other) -> bool:
        return made.shape == other.shape and torch.allclose(made, other, atol=1e-9)

    if same(wanted):
        return None
    if same(v):  # each read itself alone
        return "forgets"
    if same(BACKENDS["reference"](q, q, v, causal_mask(6))):
        return "query"
    return "unscaled" if same(BACKENDS["reference"](4 * q, k, v, causal_mask(6))) else "other"


EXERCISE = Exercise("def step(q, k, v, kept):", check)
