"""The jobs of a second pass over a first run, and the result of both.

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F

from sdcore.checks import check_choice
from sdcore.errors import UsageError
from sdcore.job.adapters import HiresSettings
from sdcore.job.job import UPSCALES, Job
from sdcore.job.record import ImageSettings
from sdcore.job.sources import Latents, Picture, Source
from sdcore.pipeline.result import TextToImageResult
from sdcore.size import Size, check_side


def larger_jobs(first: TextToImageResult, hires: HiresSettings, factor: int) -> list[Job]:
    """The jobs of a second pass over a first run.

    Args:
        factor: how many pixels a latent covers in each direction.

    Raises:
        UsageError: a second pass of this kind, or over this run, there cannot be.
    """
    check_choice("upscale", hires.upscale, UPSCALES)
    if first.stopped_at is not None:
        raise UsageError(
            "The first run has no pictures.",
            f"It stopped at denoising_end = {first.stopped_at:g}.",
            "Run it to its end, or go on with refine().",
        )
    if any(isinstance(job.source, Picture) and job.source.mask for job in first.jobs):
        raise UsageError(
            "The first run had a mask.",
            "The second pass would paint over what the mask keeps.",
            "Pass its pictures as image to a run of their own, with a low strength.",
        )
    size = Size(width=check_side(hires.width, "width"), height=check_side(hires.height, "height"))
    sources: Sequence[Source] = [Picture(image, hires.strength) for image in first.images]
    if hires.upscale == "latents":
        grid = size.latent_grid(factor)
        larger = F.interpolate(first.latents, size=grid, mode="bilinear")  #  (B, C, h, w)
        sources = [Latents(latents, hires.strength) for latents in larger]
    return [
        replace(
            job,
            source=source,
            size=size,
            steps=job.steps if hires.steps is None else hires.steps,
            steps_before=first.steps_run,
            hires=None,
        )
        for job, source in zip(first.jobs, sources, strict=True)
    ]


def joined(
    first: TextToImageResult, second: TextToImageResult, hires: HiresSettings
) -> TextToImageResult:
    """The result of both passes: pictures of the second, recorded as the first with `hires`."""
    settings = [
        replace(one, job=replace(one.job, hires=hires), beyond=beyond_of(one, again))
        for one, again in zip(first.settings, second.settings, strict=True)
    ]
    jobs = [replace(job, hires=hires) for job in first.jobs]
    steps_run = first.steps_run + second.steps_run
    return replace(second, jobs=jobs, settings=settings, steps_run=steps_run)


def beyond_of(first: ImageSettings, second: ImageSettings) -> tuple[str, ...]:
    """What the record of both passes cannot hold: the first's, and a control of the second."""
    names = (*first.beyond, *(name for name in second.beyond if name == "control"))
    return tuple(dict.fromkeys(names))
