"""One fixed validation set for models of one data set: the same prompts, seeds, scenes and noise.

Shapes: N scenes, C channels, h w latent grid, T text tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.judge import Judge
from bench.prompt_control import model_painter
from bench.prompts import compose
from bench.text_encoders import open_model, wrong_words
from bench.verdict import verdict
from sdcore.diffusion.noise import (
    add_noise,
    alphas_cumprod_from_config,
    prediction_to_x0,
    signal_to_noise,
)
from sdcore.training.objective import draw_noise
from train.emoji.data.drawings import load
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings

if TYPE_CHECKING:
    from sdcore.pipeline.text_to_image import TextToImage

MEASURES = ("concept", "style", "background", "place", "both objects")
WRONG = ("concept", "style", "place", "background", "order")  # kinds of words that are put wrong
TIMES = (980, 900, 700)  # of the diffusion, where the text decides what becomes of the noise
SERIES = 7  # of scenes; training draws from the series of its seed, 0
BATCH = 24


class Validation:
    """Prompts with their judge, and scenes with right and wrong captions, of one data set.

    Args:
        prompts: how many pictures are painted and judged.
        scenes: how many pictures noise is put on.

    Attributes:
        digest: of all that is asked; figures of another one cannot be compared.
    """

    def __init__(self, data: DataSettings, prompts: int, scenes: int) -> None:
        self.prompts = compose(data, prompts)
        self.judge = Judge(load(data), data.backgrounds, data.image_size)
        self._source = Scenes(data)
        self.scenes = [self._source.scene(SERIES, index) for index in range(scenes)]
        self.captions = wrong_words(data, self.scenes)
        asked = repr([self.prompts, self.scenes, self.captions]).encode()
        self.digest = hashlib.blake2b(asked, digest_size=8).hexdigest()

    def verdicts(self, model: Path, guidance: float | None = None) -> list[dict[str, bool]]:
        """For each prompt, what the model's picture got right of what it asks."""
        paint = model_painter(open_model(model, "cpu"), BATCH, 0, {"guidance_scale": guidance})
        readings = self.judge.read(paint(self.prompts))
        found = [
            verdict(*pair, self.judge.side) for pair in zip(self.prompts, readings, strict=True)
        ]
        return [{m: bool(one[m]) for m in MEASURES if m in one} for one in found]

    @torch.no_grad()
    def losses(self, model: Path) -> dict[str, float]:
        """The loss with right captions, and how much larger it is with a word of each kind wrong.

        Whatever the UNet predicts, its error is that of v, so that models can be compared; but
        only in the latents of one autoencoder.
        """
        pipe = open_model(model, "cpu")
        images = self._source.images(self.scenes, pipe.autoencoder.config.side)
        parts = [pipe.autoencoder.encode(part) for part in images.split(BATCH)]
        latents = torch.cat(parts)  #                                             (N, C, h, w)
        right = _losses(pipe, latents, self.captions["right"])
        row = {"right": sum(right.values()) / len(right)}
        for kind in WRONG:
            wrong = _losses(pipe, latents, self.captions.get(kind, []))
            if wrong:
                gaps = [loss - right[i] for i, loss in wrong.items()]
                row[f"wrong {kind}"] = sum(gaps) / len(gaps)
        return {name: round(value, 6) for name, value in row.items()}


def _losses(
    pipe: TextToImage, latents: Tensor, captions: Sequence[tuple[int, str]]
) -> dict[int, float]:
    """Scene -> its loss with a caption, the mean of `TIMES`."""
    assert pipe.tokenizer is not None and pipe.text_encoder is not None
    config = pipe.scheduler.config
    alphas, kind = alphas_cumprod_from_config(config), config["prediction_type"]
    noise, found = draw_noise(latents.shape, SERIES, 0), {}
    for start in range(0, len(captions), BATCH):
        rows = captions[start : start + BATCH]
        index = torch.tensor([i for i, _ in rows])
        ids = pipe.tokenizer([caption for _, caption in rows]).ids  #                   (B, T)
        text, total = pipe.text_encoder(ids).last_hidden_state, torch.zeros(len(rows))
        for time in TIMES:
            noisy = add_noise(latents[index], noise[index], time, alphas)
            clean = prediction_to_x0(kind, pipe.unet(noisy, time, text), noisy, time, alphas)
            error = (clean - latents[index]).square().mean((1, 2, 3))
            # An error of x0 is sigma times that of v, and sigma^2 = 1 / (SNR + 1).
            total += error * (signal_to_noise(alphas, time) + 1) / len(TIMES)
        found |= dict(zip(index.tolist(), total.tolist(), strict=True))
    return found
