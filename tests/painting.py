"""Runs with any setting of a job, under the names of arguments: for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdcore import Handover, Job, TextToImage, TextToImageResult, make_jobs
from sdcore.diffusion.steps import Step
from sdcore.pipeline.start import complete_size


def jobs(
    pipe: TextToImage,
    prompt: str | Sequence[str],
    *,
    width: int | None = None,
    height: int | None = None,
    denoising_start: float | None = None,
    latents: Tensor | None = None,
    **settings: Any,
) -> list[Job]:
    """The jobs of a call. `denoising_start` goes on from `image`, latents (B, C, h, w)."""
    begun = settings.pop("image", None) if denoising_start is not None else None
    made = make_jobs(prompt, noise=latents, **settings)
    if begun is not None:
        each = zip(made, begun, strict=True)
        made = [replace(job, source=Handover(one, denoising_start)) for job, one in each]
    factor = pipe.autoencoder.factor
    size = complete_size(width, height, made[0].source, pipe.native_size, factor)
    return [replace(job, size=size) for job in made]


def paint(
    pipe: TextToImage,
    prompt: str | Sequence[str],
    *,
    control: Any = None,
    on_step: Callable[[Step, Tensor], object] | None = None,
    **settings: Any,
) -> TextToImageResult:
    """What `pipe.paint` gives; `on_step` is called after each step."""
    for happened in pipe.painting(jobs(pipe, prompt, **settings), control):
        if isinstance(happened, TextToImageResult):
            return happened
        if on_step is not None:
            on_step(happened.step, happened.latents)
    raise AssertionError("a painting ends with its result")
