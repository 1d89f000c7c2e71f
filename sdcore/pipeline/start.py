"""Where a run begins: noise, latents, a noisy picture, or a noisy picture and a mask.

Every draw is made in the order in which diffusers' pipelines make it, from each image's own
generator, so that one seed gives one picture in both.

Shapes: B images, P pictures given (B is a multiple of P: picture by picture), C latent channels,
h w latent grid, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcore.errors import UsageError
from sdcore.image.autoencoder import Autoencoder
from sdcore.pipeline.batch_source import BatchSource
from sdcore.sampling.loop import Kept, Sampler, Start


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
    mask_pixels = torch.stack([canvas.mask_pixels() for canvas in source.canvases]).to(device)
    mask = _for_each(_on_grid(mask_pixels, grid), images)  #            (B, 1, h, w)
    if reads_mask:
        masked = pixels * (1 - mask_pixels)
        masked = autoencoder.encode(masked, sampler.generators, tiled=tiled)
        return Start(latents, beside=torch.cat([mask, masked], dim=1))
    # diffusers encodes the masked picture here too and does not use it: its draws are made, so that
    # those of a stochastic scheduler after them are the same.
    sampler.draw(shape)
    assert picture is not None
    return Start(latents, kept=Kept(picture, noise, mask))


def _for_each(given: Tensor, images: int) -> Tensor:
    return given.repeat_interleave(images // len(given), dim=0)


def _on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mask (P, 1, H, W) on the latent grid: each position asks its top left pixel."""
    small = F.interpolate(mask, size=grid)
    for number, one in enumerate(small, start=1):
        if not one.any():
            raise UsageError(
                "The mask is too small or too dark to repaint anything.",
                f"None of the {one.numel()} positions of the latent grid is at least half white"
                + (f" in mask number {number}." if len(small) > 1 else "."),
                "Make it larger or brighter, or paint only the part around it (only_masked).",
            )
    return small
