"""Page 3: how large the latents of Stable Diffusion 1.5 are, and what attention costs there."""

from __future__ import annotations

from docs.book.checking import Exercise

CASES = ((768, 1024), (512, 512), (640, 448))


def _right(height: int, width: int, factor: int = 8, channels: int = 4):
    h, w = height // factor, width // factor
    return (channels, h, w), (height * width) ** 2, (h * w) ** 2


def check(sizes) -> str | None:
    answers = []
    for case in CASES:
        shape, pixels, latents = sizes(*case)
        answers.append((tuple(shape), pixels, latents))
    wrong = {
        None: [_right(*case) for case in CASES],
        "turned": [_right(w, h) for h, w in CASES],
        "colors": [_right(*case, channels=3) for case in CASES],
        "four": [_right(*case, factor=4) for case in CASES],
    }
    return next((hint for hint, each in wrong.items() if answers == each), "other")


EXERCISE = Exercise("def sizes(height, width):", check)
