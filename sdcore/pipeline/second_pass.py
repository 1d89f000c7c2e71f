"""A second run after a first one: larger, or with SDXL's refiner.

    small = pipe("a lighthouse", seed=7)
    large = enlarge(pipe, small, width=1024, height=1024)

    begun = base("a lighthouse", seed=7, denoising_end=0.8)
    refined = refine(refiner, begun)

Prompts, seeds, steps, guidance and scheduler are those of the first run, as its settings say.

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F

from sdcore.control.run_control import ControlLike
from sdcore.errors import UsageError
from sdcore.metadata.image_settings import (
    HiresSettings,
    ImageSettings,
    RefinerSettings,
    SizeSettings,
)
from sdcore.pipeline.request import SIZE_UNIT, check_size, whole
from sdcore.pipeline.text_to_image import TextToImage, TextToImageResult
from sdcore.sampling.loop import OnStep
from sdcore.sampling.sizes import SizeConditioning

# pixels: the decoded picture by Lanczos, which keeps its edges; latents: bilinear, which leaves it
# soft, so that the second run draws more anew (the web UI's "Latent").
UPSCALES = ("pixels", "latents")


def first_size(pipe: TextToImage, width: int, height: int) -> tuple[int, int]:
    """The width and height of a first pass: the aspect ratio asked for, the model's own area.

    Larger than that, a model repeats what it paints; smaller, it is as large as was asked for.
    """
    width, height = check_size(width, "width"), check_size(height, "height")
    native_width, native_height = pipe.native_size
    shrink = min(1.0, (native_width * native_height / (width * height)) ** 0.5)
    return _near(width * shrink), _near(height * shrink)


def enlarge(
    pipe: TextToImage,
    first: TextToImageResult,
    *,
    width: int,
    height: int,
    strength: float = 0.4,
    upscale: str = "pixels",
    steps: int | None = None,
    tiled: bool = False,
    control: ControlLike | None = None,
    on_step: OnStep | None = None,
) -> TextToImageResult:
    """The second pass at a higher resolution: what was painted, scaled up and painted over.

    A prompt that changes with the steps goes on, as in the web UI: [a:b:8] counts the steps of both
    passes, [a:b:0.4] is over with the first, and [a:b:1.4] changes in the second.

    Args:
        width, height: in pixels, multiples of 8.
        strength: how much is painted anew: 0.3 sharpens, 0.6 adds details, and a model far above
            its own size then paints things twice. Scaled latents need 0.5 to become sharp.
        upscale: one of `UPSCALES`.
        steps: None is as many as in the first pass; int(steps * strength) are run.
        tiled: the autoencoder works in tiles.
        control, on_step: as for `TextToImage.__call__`.

    Raises:
        UsageError: an argument that cannot be used, or a first run that stopped half way.
    """
    if upscale not in UPSCALES:
        raise UsageError(
            f"upscale is {upscale!r}.", f"It may be {' or '.join(UPSCALES)}.", "Use one of these."
        )
    if first.stopped_at is not None:
        raise UsageError(
            "The first run has no pictures.",
            f"It stopped at denoising_end = {first.stopped_at:g}.",
            "Run it to its end, or go on with refine().",
        )
    if any(settings.source and settings.source.mask for settings in first.settings):
        raise UsageError(
            "The first run had a mask.",
            "The second pass would paint over what the mask keeps.",
            "Pass its pictures as image to a run of their own, with a low strength.",
        )
    width, height = check_size(width, "width"), check_size(height, "height")
    image: Any = first.images
    if upscale == "latents":
        factor = pipe.autoencoder.factor
        grid = (height // factor, width // factor)
        image = F.interpolate(first.latents, size=grid, mode="bilinear")  #  (B, C, h, w)
    steps = whole(steps)
    same = _same(first)
    second = pipe(
        **{**same, "steps": same["steps"] if steps is None else steps},
        image=image,
        strength=strength,
        width=width,
        height=height,
        steps_before=first.steps_run,
        tiled=tiled,
        control=control,
        on_step=on_step,
    )
    hires = HiresSettings(width, height, strength, steps, upscale)
    settings = [
        replace(of_first, hires=hires, beyond=_beyond(of_first, control))
        for of_first in first.settings
    ]
    return replace(second, settings=settings, steps_run=first.steps_run + second.steps_run)


def refine(
    refiner: TextToImage,
    begun: TextToImageResult,
    *,
    tiled: bool = False,
    control: ControlLike | None = None,
    on_step: OnStep | None = None,
) -> TextToImageResult:
    """The steps that a run with `denoising_end` has left, with another model: SDXL's refiner.

    Podell et al. 2023 (arXiv 2307.01952), section 2.5. The refiner's latents are those of SDXL.

    Raises:
        UsageError: the first run went on to its end.
    """
    if begun.stopped_at is None:
        raise UsageError(
            "The first run has nothing left to refine.",
            "It went on to its end.",
            "Call it with denoising_end=0.8, or pass its picture to the refiner as image.",
        )
    refined = refiner(
        **_same(begun),
        image=begun.latents,
        denoising_start=begun.stopped_at,
        tiled=tiled,
        control=control,
        on_step=on_step,
    )
    switched = RefinerSettings(refiner.defaults.name, begun.stopped_at)
    settings = [
        replace(of_begun, refiner=switched, beyond=_beyond(of_begun, control))
        for of_begun in begun.settings
    ]
    return replace(refined, settings=settings, steps_run=begun.steps_run + refined.steps_run)


def _beyond(first: ImageSettings, control: ControlLike | None) -> tuple[str, ...]:
    """What the record of both passes cannot hold: the first's, and a control of the second."""
    names = (*first.beyond, "control") if control is not None else first.beyond
    return tuple(dict.fromkeys(names))


def _same(result: TextToImageResult) -> dict[str, Any]:
    """The arguments of the call that gave a result, apart from what it began from and its size."""
    one = result.settings[0]
    negatives = [settings.negative_prompt for settings in result.settings]
    return {
        "prompt": [settings.prompt for settings in result.settings],
        "negative_prompt": None if None in negatives else negatives,
        "seed": result.seeds,
        "steps": one.steps,
        "guidance_scale": one.guidance_scale,
        "guidance_rescale": one.guidance_rescale,
        "scheduler": None if one.own_scheduler else one.scheduler,
        "dialect": one.dialect,
        "clip_skip": one.clip_skip,
        "size_conditioning": _size(one.size),
        "negative_size_conditioning": _size(one.negative_size),
    }


def _size(settings: SizeSettings | None) -> SizeConditioning | None:
    return None if settings is None else SizeConditioning(**vars(settings))


def _near(size: float) -> int:
    return max(SIZE_UNIT, round(size / SIZE_UNIT) * SIZE_UNIT)
