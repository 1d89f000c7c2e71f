"""A second run after a first one: larger, or with SDXL's refiner.

    small = pipe("a lighthouse", seed=7)
    large = enlarge(pipe, small, width=1024, height=1024)

    begun = base.paint(Job("a lighthouse", seed=7, denoising_end=0.8))
    refined = refine(refiner, begun)

Prompts, seeds, steps, guidance and scheduler are those of the first run's jobs.

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import replace

from sdcore.control.run_control import ControlLike
from sdcore.errors import UsageError
from sdcore.job.adapters import HiresSettings
from sdcore.job.record import RefinerSettings
from sdcore.job.sources import Handover
from sdcore.pipeline.larger import beyond_of, joined, larger_jobs
from sdcore.pipeline.result import TextToImageResult
from sdcore.pipeline.text_to_image import TextToImage
from sdcore.size import SIZE_UNIT, Size
from sdcore.torch_state import with_own_torch_state


def first_size(pipe: TextToImage, size: Size) -> Size:
    """The size of a first pass: the aspect ratio asked for, the model's own area.

    Larger than that, a model repeats what it paints; smaller, it is as large as was asked for.
    """
    size = size.paintable()
    shrink = min(1.0, (pipe.native_size.area / size.area) ** 0.5)
    return Size(_near(size.width * shrink), _near(size.height * shrink))


@with_own_torch_state
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
) -> TextToImageResult:
    """The second pass at a higher resolution: what was painted, scaled up and painted over.

    A prompt that changes with the steps goes on, as in the web UI: [a:b:8] counts the steps of both
    passes, [a:b:0.4] is over with the first, and [a:b:1.4] changes in the second.

    Args:
        width, height: in pixels, multiples of 8.
        strength: how much is painted anew: 0.3 sharpens, 0.6 adds details, and a model far above
            its own size then paints things twice. Scaled latents need 0.5 to become sharp.
        upscale: `pixels` or `latents`.
        steps: None is as many as in the first pass; int(steps * strength) are run.
        tiled: the autoencoder works in tiles.
        control: as for `TextToImage.paint`.

    Raises:
        UsageError: an argument that cannot be used, or a first run that stopped half way.
    """
    hires = HiresSettings(width, height, strength, steps, upscale)
    jobs = [replace(job, tiled=tiled) for job in larger_jobs(first, hires, pipe.autoencoder.factor)]
    return joined(first, pipe.paint(jobs, control), hires)


def refine(
    refiner: TextToImage,
    begun: TextToImageResult,
    *,
    tiled: bool = False,
    control: ControlLike | None = None,
) -> TextToImageResult:
    """The steps that a run with `denoising_end` has left, with another model: SDXL's refiner.

    Podell et al. 2023 (arXiv 2307.01952), section 2.5. The refiner's latents are those of SDXL.

    Raises:
        UsageError: the first run went on to its end.
    """
    start = begun.stopped_at
    if start is None:
        raise UsageError(
            "The first run has nothing left to refine.",
            "It went on to its end.",
            "Paint it with denoising_end=0.8, or pass its picture to the refiner as image.",
        )
    jobs = [
        replace(job, source=Handover(latents, start), size=None, denoising_end=None, tiled=tiled)
        for job, latents in zip(begun.jobs, begun.latents, strict=True)
    ]
    refined = refiner.paint(jobs, control)
    switched = RefinerSettings(refiner.defaults.name, start)
    settings = [
        replace(one, refiner=switched, beyond=beyond_of(one, again))
        for one, again in zip(begun.settings, refined.settings, strict=True)
    ]
    return replace(refined, settings=settings, steps_run=begun.steps_run + refined.steps_run)


def _near(size: float) -> int:
    return max(SIZE_UNIT, round(size / SIZE_UNIT) * SIZE_UNIT)
