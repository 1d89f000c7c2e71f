"""Page 1: the shapes at each joint."""

from __future__ import annotations

from docs.book.book import model
from docs.book.checking import Exercise

CASES = ((96, 64, 2), (64, 64, 1), (128, 64, 3))


def _right(height: int, width: int, prompts: int, factor: int) -> dict[str, tuple[int, ...]]:
    pipe = model()
    encoder, channels = pipe.text_encoder.config, pipe.unet.config.in_channels
    length = encoder.max_position_embeddings
    return {
        "ids": (prompts, length),
        "text": (prompts, length, encoder.hidden_size),
        "latents": (prompts, channels, height // factor, width // factor),
        "pixels": (prompts, 3, height, width),
    }


def check(shapes) -> str | None:
    factor = model().autoencoder.factor
    answers = [{name: tuple(shape) for name, shape in shapes(*case).items()} for case in CASES]
    if answers == [_right(*case, factor) for case in CASES]:
        return None
    if answers == [_right(w, h, b, factor) for h, w, b in CASES]:
        return "turned"
    if answers == [_right(h, w, 1, factor) for h, w, _ in CASES]:
        return "one"
    if answers == [_right(*case, 4) for case in CASES]:
        return "four"
    return "other"


EXERCISE = Exercise("def shapes(height, width, prompts):", check)
