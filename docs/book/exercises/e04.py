"""Page 4: a forget gate that keeps a share over many steps."""

from __future__ import annotations

import math

from docs.book.checking import Exercise

CASES = ((12, 0.9), (5, 0.5), (30, 0.25), (2, 0.8))


def check(forget_bias) -> str | None:
    answers = [float(forget_bias(*case)) for case in CASES]
    wrong = {
        None: lambda steps, keep: _logit(keep ** (1 / steps)),
        "once": lambda steps, keep: _logit(keep),
        "gate": lambda steps, keep: keep ** (1 / steps),
        "one_less": lambda steps, keep: _logit(keep ** (1 / (steps - 1))),
    }
    for hint, formula in wrong.items():
        pairs = zip(answers, CASES, strict=True)
        if all(math.isclose(answer, formula(*case), rel_tol=1e-3) for answer, case in pairs):
            return hint
    return "other"


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


EXERCISE = Exercise("def forget_bias(steps, keep):", check)
