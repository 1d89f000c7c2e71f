"""What a UNet that fills holes reads besides the latents: a mask, and the picture without it.

Masks are drawn at random, as a function of (seed, number of the batch, row): boxes, strokes, or all
of the picture, so that the model also paints without a picture (Rombach et al. 2022,
arXiv:2112.10752, section 4.5).

Shapes: B images, C latent channels, H W pixels, h w latent grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sdcore.image.autoencoder import Autoencoder
from sdcore.training.state import generator

_WHOLE = 0.1  # share of masks that hide everything
_BOXES = 0.5  # of the others: boxes; else strokes


def mask_channels(autoencoder: Autoencoder, pixels: Tensor, seed: int, number: int) -> Tensor:
    """(B, 1 + C, h, w) for pictures (B, 3, H, W) in [-1, 1]: mask, then the masked picture."""
    height, width = pixels.shape[2:]
    masks = [
        draw_mask(width, height, generator(seed, "mask", number, i)) for i in range(len(pixels))
    ]
    mask = torch.stack(masks).to(pixels)  #                              (B, 1, H, W)
    with torch.no_grad():
        masked = autoencoder.encode(pixels * (1 - mask))  #              (B, C, h, w)
    return torch.cat([F.interpolate(mask, masked.shape[2:], mode="nearest"), masked], dim=1)


def draw_mask(width: int, height: int, draw: torch.Generator) -> Tensor:
    """A mask (1, H, W): 1 where the model is to fill in."""

    def number(least: float, most: float) -> float:
        return least + (most - least) * float(torch.rand((), generator=draw))

    if number(0, 1) < _WHOLE:
        return torch.ones(1, height, width)
    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    side = min(width, height)
    if number(0, 1) < _BOXES:
        for _ in range(1 + int(number(0, 3))):
            wide, high = number(0.1, 0.7) * width, number(0.1, 0.7) * height
            x, y = number(0, width - wide), number(0, height - high)
            pen.rectangle((x, y, x + wide, y + high), fill=255)
    else:
        for _ in range(1 + int(number(0, 4))):
            points = [(number(0, width), number(0, height)) for _ in range(2 + int(number(0, 5)))]
            thick = max(1, int(number(0.05, 0.25) * side))
            pen.line(points, fill=255, width=thick, joint="curve")
    shown = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return (shown.view(1, height, width) > 127).float()
