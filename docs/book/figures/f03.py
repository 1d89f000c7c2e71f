"""Page 3: pixels, latents and back; what attention would cost on either."""

from __future__ import annotations

import math

import numpy as np
import torch

from docs.book.book import Measured, model, run, runs, term
from docs.book.drawing import FAINT, Svg, colored_map
from sdcore import to_images


def measure(language: str) -> Measured:
    painted, pipe = run(language), model()
    pixels = _pixels(painted.picture)
    latents = pipe.autoencoder.encode(pixels)
    back = pipe.autoencoder.decode(latents)
    places = [x.shape[2] * x.shape[3] for x in (pixels, latents)]
    sheet, side = Svg(780, 300), 176

    def label(x: float, name: str, shape) -> None:
        sheet.text(x, 14, term(f"figure.{name}", language), "middle", 14, bold=True)
        sheet.text(x, 32, " x ".join(str(n) for n in shape), "middle", 12, FAINT)

    for x, name, shape in (
        (100, "pixels", (*pixels.shape[2:], 3)),
        (390, "latents", (*latents.shape[2:], latents.shape[1])),
        (680, "back", (*back.shape[2:], 3)),
    ):
        label(x, name, shape)
    sheet.picture(painted.picture, 12, 46, side)
    small = side * latents.shape[3] / pixels.shape[3]
    sheet.cells(colored_map(latents[0]), 390 - 1.5 * small, 134 - 1.5 * small, 3 * small)
    sheet.picture(to_images(back)[0], 592, 46, side)
    sheet.arrow(200, 134, 310, 134)
    sheet.arrow(470, 134, 580, 134)
    long = 400
    for row, (name, count) in enumerate(zip(("pixels", "latents"), places, strict=True)):
        y = 250 + 26 * row
        sheet.text(220, y, term(f"figure.scores_{name}", language), "end", 13)
        sheet.box(228, y - 8, max(long * (count / places[0]) ** 2, 1.5), 16, "#104e8b", "none")
        at = 236 + long * (count / places[0]) ** 2
        sheet.text(at, y, f"{count**2:,}", size=12, color=FAINT)
    decibels = min(_decibels(each.picture) for _, _, each in runs(language))
    return Measured(
        sheet,
        {
            "pixels": f"{pixels.numel():,}",
            "latents": f"{latents.numel():,}",
            "times": str(pixels.numel() // latents.numel()),
            "decibels": f"{_decibels(painted.picture):.0f}",
            "pixel_scores": f"{places[0] ** 2:,}",
            "latent_scores": f"{places[1] ** 2:,}",
        },
        {"3.back": decibels > 22, "3.scores": places[0] == pipe.autoencoder.factor**2 * places[1]},
    )


def _pixels(picture) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1


def _decibels(picture) -> float:
    """Peak signal to noise of a picture that went through the autoencoder."""
    pixels, autoencoder = _pixels(picture), model().autoencoder
    error = (autoencoder.decode(autoencoder.encode(pixels)) - pixels).square().mean()
    return 10 * math.log10(4 / float(error))
