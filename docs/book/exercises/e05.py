"""Page 5: a key that gets a given share of a query's attention."""

from __future__ import annotations

import torch

from docs.book.checking import Exercise


def check(key) -> str | None:
    hints = set()
    for width, share in ((4, 0.9), (9, 0.5), (16, 0.75)):
        q, others = torch.randn(width).double(), torch.randn(3, width).double()
        made = torch.as_tensor(key(q, others, share)).double()
        score, rest = float(made @ q) / width**0.5, (others @ q / width**0.5).logsumexp(0)
        wanted = float(torch.logit(torch.tensor(share).double()) + rest)
        alone = wanted - float(rest)

        def near(value: float, score=score) -> bool:
            return abs(score - value) < 1e-5 * max(1.0, abs(value))

        if near(wanted):
            continue
        if near(wanted / width**0.5):
            hints.add("unscaled")
        elif near(alone):
            hints.add("others")
        elif near(wanted * float(q @ q)):
            hints.add("length")
        else:
            hints.add("other")
    return None if not hints else hints.pop() if len(hints) == 1 else _likely(hints)


def _likely(hints: set[str]) -> str:
    """Without a score of its own, 0.5 alone is 0: then the others were forgotten."""
    return "others" if "others" in hints else "other"


EXERCISE = Exercise("def key(q, others, share):", check)
