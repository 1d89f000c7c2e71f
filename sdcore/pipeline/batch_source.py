"""What the jobs of a batch begin from, put together and ready for the model.

Shapes: P pictures, B images painted (B is a multiple of P), C latent channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sdcore.checkpoint.kind import ModelKind
from sdcore.errors import UsageError
from sdcore.image.canvas import Canvas, make_canvases
from sdcore.job.job import Job
from sdcore.job.sources import Handover, Latents, Noise, Picture, Source
from sdcore.size import Size


@dataclass(frozen=True)
class BatchSource:
    """Pictures, latents, or noise.

    Attributes:
        canvases: P pictures, with their masks or all without.
        latents: (P, C, h, w): clean ones; with `denoising_start` those of a run that stopped there.
        noise: (B, C, h, w), in place of what the seeds give.
        strength: how much is painted anew; None for noise and where a run goes on.
    """

    canvases: Sequence[Canvas] = ()
    latents: Tensor | None = None
    noise: Tensor | None = None
    strength: float | None = None
    denoising_start: float | None = None

    @property
    def is_noise(self) -> bool:
        return not self.canvases and self.latents is None

    @property
    def masked(self) -> bool:
        return bool(self.canvases) and self.canvases[0].mask is not None

    def size(self, factor: int) -> Size | None:
        """The size to paint at, where it says any; `factor` is the autoencoder's."""
        if self.canvases:
            return self.canvases[0].size
        latents = self.noise if self.latents is None else self.latents
        if latents is None:
            return None
        return Size(latents.shape[3] * factor, latents.shape[2] * factor)

    def put_back(self, painted: Sequence[Image.Image]) -> list[Image.Image]:
        """The B pictures that were painted, each in its own where only a part was."""
        if not self.masked:
            return list(painted)
        each = len(painted) // len(self.canvases)
        return [self.canvases[i // each].put_back(image) for i, image in enumerate(painted)]


def batch_source(
    jobs: Sequence[Job], *, native_size: Size, strength: float, channels: int
) -> BatchSource:
    """The sources of jobs that are painted at once.

    Args:
        native_size: of the model, for a part of a picture.
        strength: the model's, where the jobs do not say.
        channels: of latents.

    Raises:
        UsageError: sources that do not fit the model, or not together.
    """
    sources = _distinct([job.source for job in jobs])
    first = sources[0]
    if isinstance(first, Noise):
        noise = [source.latents for source in sources if isinstance(source, Noise)]
        given = [latents for latents in noise if latents is not None]
        if not given:
            return BatchSource()
        if len(given) < len(noise):
            raise _mixed("noise of their own")
        return BatchSource(
            noise=_stack([given[i * len(given) // len(jobs)] for i in range(len(jobs))])
        )
    if isinstance(first, Picture):
        return _of_pictures(
            [s for s in sources if isinstance(s, Picture)], jobs[0].size, native_size, strength
        )
    latents = _stack([s.latents for s in sources if isinstance(s, Latents | Handover)])
    if latents.shape[1] != channels:
        raise UsageError(
            f"The latents to begin from have the shape {tuple(latents.shape[1:])}.",
            f"A tensor is taken for latents, which have {channels} channels: ({channels}, h, w).",
            "Pass pictures as PIL images.",
        )
    if isinstance(first, Handover):
        if any(isinstance(s, Handover) and s.start != first.start for s in sources):
            raise _mixed("another place to go on from")
        return BatchSource(latents=latents, denoising_start=first.start)
    assert isinstance(first, Latents)
    if any(isinstance(s, Latents) and s.strength != first.strength for s in sources):
        raise _mixed("another strength")
    return BatchSource(
        latents=latents, strength=strength if first.strength is None else first.strength
    )


def _of_pictures(
    pictures: Sequence[Picture], size: Size | None, native_size: Size, strength: float
) -> BatchSource:
    first = pictures[0]
    for other in pictures:
        same = (other.strength, other.only_masked, other.mask is None)
        if same != (first.strength, first.only_masked, first.mask is None):
            raise _mixed("another strength, padding or mask")
    masks = [picture.mask for picture in pictures if picture.mask is not None]
    images = [picture.image for picture in pictures]
    canvases = make_canvases(
        images,
        masks or None,
        width=size.width if size else None,
        height=size.height if size else None,
        model_size=native_size,
        only_masked=first.only_masked,
    )
    usual = 1.0 if masks else strength
    return BatchSource(canvases, strength=usual if first.strength is None else first.strength)


def check_channels(source: BatchSource, kind: ModelKind) -> None:
    """Refuse a UNet that reads something else than this source gives."""
    if kind.channels == kind.latent_channels or (kind.reads_mask and source.masked):
        return
    raise UsageError(
        f"This UNet reads {kind.channels} channels.",
        f"The latents have {kind.latent_channels}; the rest is for "
        + ("a mask and the masked picture." if kind.reads_mask else "something not known here."),
        "Pass image and mask, a white one to repaint everything, or use another model."
        if kind.reads_mask
        else "Use a text-to-image or an inpainting model.",
    )


def _distinct(sources: Sequence[Source]) -> list[Source]:
    """Each source once where all images in a row share it, equally many each; else one an image."""
    runs: list[list[Source]] = []
    for source in sources:
        if runs and runs[-1][0] is source:
            runs[-1].append(source)
        else:
            runs.append([source])
    even = len({len(run) for run in runs}) == 1
    return [run[0] for run in runs] if even else list(sources)


def _stack(latents: Sequence[Tensor]) -> Tensor:
    if len({tuple(each.shape) for each in latents}) > 1:
        raise _mixed("latents of another shape")
    return torch.stack(list(latents))


def _mixed(what: str) -> UsageError:
    return UsageError(
        f"Some of the jobs have {what}.",
        "Jobs that are painted at once begin in one way.",
        "Paint them one after the other.",
    )
