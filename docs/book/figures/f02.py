"""Page 2: latents, the expected clean picture, and the difference, over the steps."""

from __future__ import annotations

import itertools

from docs.book.book import STEPS, Measured, model, run, runs, term
from docs.book.drawing import FAINT, Svg
from sdcore import to_images

SHOWN = (0, 1, 2, 4, 5, STEPS - 1)


def measure(language: str) -> Measured:
    shown, decode = run(language), model().autoencoder.decode
    side, left, top = 104, 128, 26
    sheet = Svg(left + 6 * (side + 8), top + 3 * (side + 8))
    for column, index in enumerate(SHOWN):
        x = left + column * (side + 8)
        name = term("figure.after_step", language, step=index + 1)
        sheet.text(x + side / 2, 12, name, "middle", 12, FAINT)
        latents, guess = shown.latents[index], shown.guesses[index]
        for row, each in enumerate((latents, guess, latents - guess)):
            # Noise does not compress: smaller, so that the page stays light.
            small = to_images(decode(each))[0].resize((64, 64))
            sheet.picture(small, x, top + row * (side + 8), side)
    for row, name in enumerate(("latents", "expected", "difference")):
        y, words = top + row * (side + 8) + side / 2, term(f"figure.{name}", language)
        for number, part in enumerate(_lines(words)):
            sheet.text(left - 8, y + 16 * number - 4, part, "end", 13)
    every = [each for _, _, each in runs(language)]
    return Measured(
        sheet,
        {},
        {
            "2.guess_first": all(
                _off(e.guesses[0], e) < 0.9 * _off(e.latents[0], e) for e in every
            ),
            "2.nearer": all(_nearer_and_nearer(e) for e in every),
        },
    )


def _nearer_and_nearer(painted) -> bool:
    """Whether from the middle on each guess is nearer to the end than the one before."""
    off = [_off(guess, painted) for guess in painted.guesses[len(painted.guesses) // 2 - 1 :]]
    return all(later < earlier for earlier, later in itertools.pairwise(off))


def _off(latents, painted) -> float:
    """How far latents are from the end of the run, root mean square."""
    return float((latents - painted.latents[-1]).square().mean().sqrt())


def _lines(words: str) -> list[str]:
    """Long labels in two lines."""
    if len(words) < 14:
        return [words]
    first, _, rest = words.partition(" ")
    return [first, rest]
