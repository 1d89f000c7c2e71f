"""Where a run begins: what its jobs begin from, put together and made ready for the model.

    jobs -> BatchSource (pictures, latents or noise) -> Start: the latents that the first step sees

Every draw is made in the order in which diffusers' pipelines make it, from each image's own
generator, so that one seed gives one picture in both.

Shapes: B images, P pictures given (B is a multiple of P: picture by picture), C latent channels,
h w latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sdcore.checkpoint.kind import ModelKind
from sdcore.errors import UsageError
from sdcore.image.autoencoder import Autoencoder
from sdcore.image.canvas import Canvas, make_canvases, size_to_paint
from sdcore.job.job import Job
from sdcore.job.sources import Handover, Latents, Noise, Picture, Source
from sdcore.sampling.loop import Kept, Sampler, Start
from sdcore.size import Size, check_side


def complete_size(
    width: int | None, height: int | None, source: Source, native: Size, factor: int
) -> Size | None:
    """The size of a job of which one side is known; None where none is.

    Args:
        native: the model's own size.
        factor: how many pixels a latent covers in each direction.

    Raises:
        UsageError: a side of which no picture can be painted.
    """
    if width is None and height is None:
        return None
    size = native
    if isinstance(source, Picture):
        if source.only_masked is None:
            size = size_to_paint(Size(*source.image.size), native)
    elif not isinstance(source, Noise) or source.latents is not None:
        assert source.latents is not None
        rows, columns = source.latents.shape[-2:]
        size = Size(columns * factor, rows * factor)
    return Size(
        width=size.width if width is None else check_side(width, "width"),
        height=size.height if height is None else check_side(height, "height"),
    )


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
        own = [latents for latents in noise if latents is not None]
        if not own:
            return BatchSource()
        if len(own) < len(noise):
            raise _mixed("noise of their own")
        return BatchSource(noise=_stack([own[i * len(own) // len(jobs)] for i in range(len(jobs))]))
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
        same = (other.strength, other.only_masked, other.mask is None, other.mask_cells)
        if same != (first.strength, first.only_masked, first.mask is None, first.mask_cells):
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
        cells=first.mask_cells,
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


def make_start(
    source: BatchSource,
    sampler: Sampler,
    autoencoder: Autoencoder,
    grid: tuple[int, int],
    *,
    reads_mask: bool = False,
    tiled: bool = False,
) -> Start:
    """The latents that the first step sees, as noisy as its time.

    Image to image is Meng et al. 2021 (SDEdit, arXiv 2108.01073).

    Args:
        grid: (h, w).
        reads_mask: the UNet was trained to inpaint (9 channels, Rombach et al. 2022); around the
            mask of any other one the picture is put back after each step.
        tiled: encode pictures in tiles.
    """
    device, images = next(autoencoder.parameters()).device, len(sampler.generators)
    shape = (autoencoder.latent_channels, *grid)
    noise = source.noise
    if noise is not None and tuple(noise.shape) != (images, *shape):
        raise UsageError(
            f"The latents have the shape {tuple(noise.shape)}.",
            f"These prompts and this size need {(images, *shape)}.",
            "Leave width and height out to follow the latents.",
        )
    from_noise = source.is_noise or (source.masked and source.strength == 1)

    pixels = picture = None
    if source.canvases:
        pixels = torch.stack([canvas.pixels() for canvas in source.canvases]).to(device)
        if not (from_noise and reads_mask):
            picture = autoencoder.encode(pixels, sampler.generators, tiled=tiled)
    elif source.latents is not None:
        picture = _for_each(source.latents.to(device, torch.float32), images)
        if source.denoising_start is not None:
            return Start(picture)

    noise = sampler.draw(shape) if noise is None else noise
    noise = noise.to(device, torch.float32)
    if from_noise:
        latents = noise * sampler.scheduler.init_noise_sigma
    else:
        assert picture is not None
        latents = sampler.add_noise(picture, noise, sampler.times[0])
    if not source.masked:
        return Start(latents)

    assert pixels is not None
    cells = torch.stack([canvas.mask_cells(grid) for canvas in source.canvases])
    _check_cells(cells)
    mask = _for_each(cells.to(device), images)  #                        (B, 1, h, w)
    if reads_mask:
        mask_pixels = torch.stack([canvas.mask_pixels() for canvas in source.canvases])
        masked = pixels * (1 - mask_pixels.to(device))
        masked = autoencoder.encode(masked, sampler.generators, tiled=tiled)
        return Start(latents, mask_channels=torch.cat([mask, masked], dim=1))
    # diffusers encodes the masked picture here too and does not use it: its draws are made, so that
    # those of a stochastic scheduler after them are the same.
    sampler.draw(shape)
    assert picture is not None
    return Start(latents, kept=Kept(picture, noise, mask))


def _for_each(tensor: Tensor, images: int) -> Tensor:
    return tensor.repeat_interleave(images // len(tensor), dim=0)


def _check_cells(mask: Tensor) -> None:
    """Refuse masks (P, 1, h, w) of which one lets the model paint nowhere."""
    for number, one in enumerate(mask, start=1):
        if not one.any():
            raise UsageError(
                "The mask is too small or too dark to repaint anything.",
                f"None of the {one.numel()} positions of the latent grid is at least half white"
                + (f" in mask number {number}." if len(mask) > 1 else "."),
                "Make it larger or brighter, or paint only the part around it (only_masked).",
            )
