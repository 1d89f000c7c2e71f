"""Word heatmaps of a picture that was not painted: noised to some times, and looked at by the UNet.

Shapes: K times, C latent channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sdcore.checks import as_int
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.diffusion.noise import add_noise, alphas_cumprod_from_config
from sdcore.diffusion.steps import Step
from sdcore.errors import UsageError
from sdcore.image.canvas import make_canvases
from sdcore.prompt.text import Steps
from sdcore.prompt.tokens import read_tokens
from sdcore.sampling.begin import begin_run
from sdcore.sampling.calls import RunCall
from sdcore.sampling.conditioning import plan_prompts
from sdcore.sampling.guidance import Guidance, guided_prediction
from sdcore.sampling.sizes import choose_sizes
from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.pipeline.text_to_image import TextToImage


@with_own_torch_state
def heatmaps_of_image(
    pipe: TextToImage,
    image: Image,
    prompt: str,
    times: Sequence[int] = (100, 300, 500, 700),
    *,
    seed: int = 0,
    dialect: str = "plain",
    clip_skip: int = 0,
) -> WordHeatmaps:
    """Where the words of a prompt are read in a real picture: one call of the UNet for each time.

    Args:
        image: of any size; its sides are rounded down to multiples of 8.
        times: training steps, 0 (no noise) to 999, from the noisiest on a window each: `steps=(0,
            0.25)` of the heatmaps is the largest of four.
        seed: of the noise, the same for all times.
        dialect, clip_skip: as for `TextToImage.__call__`; of an AND, the first prompt is looked at.

    Raises:
        UsageError: a time out of range, or a picture or model that cannot be used.
    """
    kind = pipe.kind
    alphas = alphas_cumprod_from_config(pipe.scheduler.config).to(pipe.device)
    for time in times:
        if as_int(time, 0, len(alphas) - 1) is None:
            why = f"The model was trained with the times 0 to {len(alphas) - 1}."
            raise UsageError(f"The time is {time!r}.", why, "Use whole numbers such as 500.")
    if not times or kind.channels != kind.latent_channels:
        raise UsageError(
            "The heatmaps of this picture cannot be read.",
            "There is no time." if not times else "The UNet reads a mask besides the picture.",
            "Give at least one time." if not times else "Use a text-to-image model.",
        )
    (canvas,) = make_canvases([image], None, model_size=pipe.native_size)
    pixels = canvas.pixels()[None].to(pipe.device)
    size, _ = choose_sizes(kind, canvas.size)
    plan = plan_prompts(
        pipe.readers,
        kind,
        [prompt],
        [None],
        Steps(len(times)),
        guided=False,
        dialect=dialect,
        clip_skip=clip_skip,
        size=size,
    )
    readings = [
        read_tokens(prompt, tokenizer, dialect, steps=len(times)) for tokenizer, _ in pipe.readers
    ]

    clean = pipe.autoencoder.encode(pixels)
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    heatmaps = WordHeatmaps(readings, windows=len(times))
    ready, call = begin_run(heatmaps, pipe.unet, clean, plan), RunCall(pipe.unet)
    for index, time in enumerate(sorted(times, reverse=True)):
        step = Step(index, len(times), float(time))
        noisy = add_noise(clean, noise.to(clean), time, alphas).to(pipe.dtype)
        at = torch.tensor(float(time), device=pipe.device)
        guided_prediction(call, noisy, at, plan.at(step), Guidance(1.0), ready.at(step))
    return heatmaps
