"""What a painting gives: a moment after each step, and at last the result.

Shapes: B images, C latent channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sdcore.diffusion.steps import Step
from sdcore.job.job import Job
from sdcore.job.record import ImageSettings

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Moment:
    """A step that was taken, and the latents (B, C, h, w) after it; `rerun` in a second pass."""

    step: Step
    latents: Tensor
    rerun: bool = False


@dataclass(frozen=True)
class TextToImageResult:
    """What a call gives: one entry for each image, in order, prompt by prompt.

    images:   PIL pictures, RGB; none where the run stopped half way.
    latents:  (B, C, h, w), float32, as the autoencoder decoded them.
    jobs:     what was painted, with the model's defaults filled in.
    settings: what each image depends on; `sdcore.save_png` writes them into the file.
    steps_run: how often the UNet was called for each image, earlier passes included.
    """

    images: list[Image]
    latents: Tensor
    jobs: list[Job]
    settings: list[ImageSettings]
    steps_run: int = 0

    @property
    def seeds(self) -> list[int]:
        """The seed that paints each image alone."""
        return [job.seed for job in self.jobs if job.seed is not None]

    @property
    def stopped_at(self) -> float | None:
        """The jobs' `denoising_end`."""
        return self.jobs[0].denoising_end
