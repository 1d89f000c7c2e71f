"""Page 7: which encoders cannot tell left from right; the model is asked."""

from __future__ import annotations

from docs.book.checking import Exercise
from docs.book.figures.f07 import encoded

CASES = [(positions, mask) for positions in (True, False) for mask in (True, False)]
PAIR = ("a fox to the left of a cat", "a cat to the left of a fox")


def told(positions: bool, mask: bool) -> bool:
    """Whether the two prompts become different sets of vectors: a sum does not see their order."""
    one, other = (encoded(prompt, positions, mask)[-1].detach() for prompt in PAIR)
    return float((one.sum(0) - other.sum(0)).abs().max()) > 0.01 * float(one.abs().max())


def check(cannot_tell) -> str | None:
    answers = [cannot_tell(*case) for case in CASES]
    wrong = {
        None: [not told(*case) for case in CASES],
        "positions": [not positions for positions, _ in CASES],
        "mask": [not mask for _, mask in CASES],
        "either": [not (positions and mask) for positions, mask in CASES],
    }
    return next((hint for hint, each in wrong.items() if answers == each), "other")


EXERCISE = Exercise("def cannot_tell(positions, mask):", check)
