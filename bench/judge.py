"""The judge: what a picture of an emoji scene shows, read from its pixels.

It knows the real drawings and nothing else: no weights, and no generated picture had a part in any
choice. The background is the median of the border. What differs from it is compared with every
drawing, in every size, at every place, composed on that background; the drawing that points in the
same direction (normalised correlation) names the concept and the style, so a pale or soft picture
is judged as well as a strong one. Compared at a resolution of 16x16: on real scenes moved, resized,
warped, blurred and noisy it names as many concepts as 32x32 does, in a quarter of the time.

Its limits: it always names some drawing, also for a blob, so chance is shown beside its figures;
and it holds the very drawings that a picture is asked for, those of held-out pairs included. With
that one drawing taken away, the concept's other styles name it in two scenes of three.

Shapes: B pictures, K drawings times sizes, r = RESOLUTION, F = r * (r // 2 + 1) frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

RESOLUTION = 16
BORDER = 3  # of 64 pixels: the ring that is taken for background
DIFFERENT = 30.0  # levels (of 255) by which a pixel of an object differs from the background
SMALL = 0.55  # of the picture's side: objects that can stand in one half of it
CHUNK = 16  # pictures compared at a time; bounds the memory
HALVES = {"left": (0, 0, 1, 2), "right": (0, 1, 1, 2), "top": (0, 0, 2, 1), "bottom": (1, 0, 2, 1)}


@dataclass(frozen=True)
class Reading:
    """What one picture shows.

    Attributes:
        center: (x, y), middle of what differs from the background, in pixels from the picture's
            middle; (0, 0) where nothing does.
        halves: the concept seen in the left, right, top and bottom half taken alone.
    """

    concept: str
    style: str
    background: str
    center: tuple[float, float]
    halves: dict[str, str]


class Judge:
    """Reads pictures against a bank of drawings.

    Args:
        drawings: (style, concept) -> RGBA picture (S, S, 4), uint8, straight alpha.
        backgrounds: name -> RGB, 0-255.
        side: width and height of the pictures, in pixels.
    """

    def __init__(
        self,
        drawings: Mapping[tuple[str, str], np.ndarray],
        backgrounds: Mapping[str, tuple[int, int, int]],
        side: int = 64,
    ) -> None:
        self.names, self.side = list(drawings), side
        self.backgrounds = list(backgrounds)
        self._colors = torch.tensor([backgrounds[name] for name in self.backgrounds]).float()
        self.sizes = list(range(side * 22 // 64, side - 1, max(side // 16, 1)))
        bank = torch.cat([self._sized(drawings, size) for size in self.sizes])  # (K, 4, r, r)
        self._bank = torch.fft.rfft2(bank).conj().permute(2, 3, 0, 1).flatten(0, 1)  # (F, K, 4)
        color, alpha = bank[:, :3].flatten(2), bank[:, 3:].flatten(2)
        # Squared length of color - alpha * background, taken apart so that any background will do.
        self._color_color = color.square().sum((1, 2))
        self._color_alpha = (color * alpha).sum(2)
        self._alpha_alpha = alpha.square().sum((1, 2))

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """One reading for each picture, in order."""
        parts = [self._read(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return [reading for part in parts for reading in part]

    @torch.no_grad()
    def _read(self, images: Sequence[Image.Image]) -> list[Reading]:
        pixels = torch.stack([self._pixels(image) for image in images])  # (B, 3, side, side)
        background = self._background(pixels)  # (B, 3)
        difference = pixels - background[:, :, None, None]
        whole = self._nearest(difference, background)
        halves = {name: self._half(difference, background, name) for name in HALVES}
        named = torch.cdist(background, self._colors).argmin(1).tolist()
        centers = _centers(difference).tolist()
        return [
            Reading(
                concept=self.names[whole[i]][1],
                style=self.names[whole[i]][0],
                background=self.backgrounds[named[i]],
                center=(centers[i][0], centers[i][1]),
                halves={name: self.names[found[i]][1] for name, found in halves.items()},
            )
            for i in range(len(images))
        ]

    def _half(self, difference: Tensor, background: Tensor, name: str) -> list[int]:
        """Index of the nearest drawing in one half, as if the other showed background alone."""
        row, column, rows, columns = HALVES[name]
        height, width = self.side // rows, self.side // columns
        y, x = row * height, column * width
        masked = torch.zeros_like(difference)
        masked[..., y : y + height, x : x + width] = difference[..., y : y + height, x : x + width]
        small = sum(size <= SMALL * self.side for size in self.sizes)
        return self._nearest(masked, background, small)

    def _nearest(
        self, difference: Tensor, background: Tensor, sizes: int | None = None
    ) -> list[int]:
        """Index of the drawing with the largest normalised correlation, over sizes and places.

        `difference` is (B, 3, side, side); only the `sizes` smallest sizes are tried.
        """
        sizes, count, r = sizes or len(self.sizes), len(self.names), RESOLUTION
        seen = adaptive_avg_pool2d(difference, r)
        # <seen, color - alpha * background> is one sum over four channels.
        shade = -(seen * background[:, :, None, None]).sum(1, keepdim=True)
        seen = torch.fft.rfft2(torch.cat([seen, shade], 1))  # (B, 4, r, r//2+1)
        seen = seen.permute(2, 3, 1, 0).flatten(0, 1)  # (F, 4, B)
        product = self._bank[:, : sizes * count] @ seen  # (F, K, B)
        product = product.unflatten(0, (r, -1)).permute(2, 3, 0, 1)
        match = torch.fft.irfft2(product, s=(r, r))  # (K, B, r, r): drawing moved by (y, x)
        best = []
        for i, size in enumerate(self.sizes[:sizes]):
            inside = r - size * r // self.side + 1  # further on, it would leave the picture
            best.append(match[i * count : (i + 1) * count, :, :inside, :inside].amax((2, 3)))
        score = torch.cat(best).T / self._lengths(background)[:, : sizes * count]  # (B, K)
        return score.unflatten(1, (sizes, count)).amax(1).argmax(1).tolist()

    def _lengths(self, background: Tensor) -> Tensor:
        """Length of every drawing's difference from each background, (B, K)."""
        square = background.square().sum(1, keepdim=True) * self._alpha_alpha
        square = square - 2 * background @ self._color_alpha.T + self._color_color
        return square.clamp(min=1.0).sqrt()

    def _background(self, pixels: Tensor) -> Tensor:
        """Median colour of the picture's border, (B, 3)."""
        width = max(self.side * BORDER // 64, 1)
        ring = torch.ones(self.side, self.side, dtype=torch.bool)
        ring[width:-width, width:-width] = False
        return pixels[:, :, ring].median(2).values

    def _pixels(self, image: Image.Image) -> Tensor:
        size = (self.side, self.side)
        image = image if image.size == size else image.resize(size, Image.Resampling.BOX)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()

    def _sized(self, drawings: Mapping[tuple[str, str], np.ndarray], size: int) -> Tensor:
        """All drawings, `size` pixels wide, in the upper left corner: (count, 4, r, r).

        The colours are 0-255 and multiplied by alpha, which is 0-1.
        """
        layers = torch.stack([torch.from_numpy(drawings[name]) for name in self.names]).float()
        layers = layers.permute(0, 3, 1, 2) / 255
        layers = torch.cat([layers[:, :3] * layers[:, 3:] * 255, layers[:, 3:]], 1)
        canvas = torch.zeros(len(layers), 4, self.side, self.side)
        canvas[:, :, :size, :size] = adaptive_avg_pool2d(layers, size)
        return adaptive_avg_pool2d(canvas, RESOLUTION)


def _centers(difference: Tensor) -> Tensor:
    """Centroid (x, y) of the pixels that differ from the background, (B, 2), from the middle."""
    mask = (difference.square().sum(1).sqrt() > DIFFERENT).float()  # (B, side, side)
    side = mask.shape[-1]
    axis = torch.arange(side) + 0.5 - side / 2
    weight = mask.sum((1, 2)).clamp(min=1.0)
    x, y = (mask.sum(1) * axis).sum(1) / weight, (mask.sum(2) * axis).sum(1) / weight
    return torch.stack([x, y], 1)
