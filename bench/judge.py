"""The judge: what a picture of an emoji scene shows, read from its pixels.

It knows the real drawings and nothing else: no weights, and no generated picture had a part in any
choice. The background is the median of the border. What differs from it is compared with every
drawing, in every size, at every place, composed on that background; the drawing that points in the
same direction (normalised correlation) names the concept and the style, so a pale or soft picture
is judged as well as a strong one. All drawings are compared at 16x16, which tells concepts apart;
the best few of them once more at 32x32, which tells styles and small things apart and says where
the drawing lies. Each half of a picture is read in the same way, as if the other were empty.

Its limits: it always names some drawing, also for a blob, so chance is shown beside its figures;
and it holds the very drawings that a picture is asked for, those of held-out pairs included. With
that one drawing taken away, the concept's other styles name it in two scenes of three.

Shapes: B pictures, K drawings, P places, r x r cells of a picture, c x c cells of a drawing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from train.emoji.data.colors import main_color

COARSE, FINE = 16, 32  # cells along a picture's side: all drawings, and the best of them
BEST = 16  # drawings that are compared once more
BORDER = 3  # of 64 pixels: the ring that is taken for background
DIFFERENT = 30.0  # levels (of 255) by which a pixel of an object differs from the background
SMALL = 0.55  # of the picture's side: objects that can stand in one half of it
GAP = 1.0  # of 64 pixels, by which two things stand apart at least
SPECK = 0.2  # of the pixels of the largest thing: less is none
CHUNK = 16  # pictures compared at a time; bounds the memory
HALVES = {"left": (0, 0, 1, 2), "right": (0, 1, 1, 2), "top": (0, 0, 2, 1), "bottom": (1, 0, 2, 1)}


@dataclass(frozen=True)
class Reading:
    """What one picture shows.

    Attributes:
        center: (x, y), middle of the square that the nearest drawing fills, in pixels from the
            picture's middle; (0, 0) where nothing differs from the background.
        halves: the concept seen in the left, right, top and bottom half taken alone.
        color: that most pixels of what differs from the background have; empty: none differs.
        things: the concept of each thing that stands apart from the others, left to right.
    """

    concept: str
    style: str
    background: str
    center: tuple[float, float]
    halves: dict[str, str]
    color: str = ""
    things: tuple[str, ...] = ()


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
        sizes = range(side * 22 // 64, side - 1, max(side // 16, 1))
        pictures = list(drawings.values())
        self._coarse, self._fine = (
            [Templates.of(pictures, size, side, cells) for size in sizes]
            for cells in (COARSE, FINE)
        )

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """One reading for each picture, in order."""
        parts = [self._read(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return [reading for part in parts for reading in part]

    @torch.no_grad()
    def _read(self, images: Sequence[Image.Image]) -> list[Reading]:
        pixels = torch.stack([self._pixels(image) for image in images])  # (B, 3, side, side)
        background = self._background(pixels)  # (B, 3)
        difference = pixels - background[:, :, None, None]
        found = self._nearest(difference, background, self.side)
        halves = {
            name: self._nearest(_half(difference, name), background, SMALL * self.side)
            for name in HALVES
        }
        named = torch.cdist(background, self._colors).argmin(1).tolist()
        apart = difference.square().sum(1) > DIFFERENT**2  # (B, side, side)
        shown, seen = apart.any((1, 2)), apart.numpy()
        colors = pixels.permute(0, 2, 3, 1).numpy()
        return [
            Reading(
                concept=self.names[drawing][1],
                style=self.names[drawing][0],
                background=self.backgrounds[named[i]],
                center=center if shown[i] else (0.0, 0.0),
                halves={name: self.names[half[i][0]][1] for name, half in halves.items()},
                color=main_color(colors[i], seen[i]) if shown[i] else "",
                things=self._things(difference[i], background[i], seen[i]),
            )
            for i, (drawing, center) in enumerate(found)
        ]

    def _things(self, difference: Tensor, background: Tensor, seen: np.ndarray) -> tuple[str, ...]:
        """The concepts of what stands apart: difference (3, side, side), seen (side, side)."""
        masks = separate(seen)
        if not masks:
            return ()
        alone = torch.stack([difference * torch.from_numpy(mask) for mask in masks])
        found = self._nearest(alone, background.expand(len(masks), 3), self.side)
        return tuple(self.names[drawing][1] for drawing, _ in found)

    def _nearest(
        self, difference: Tensor, background: Tensor, largest: float
    ) -> list[tuple[int, tuple[float, float]]]:
        """The nearest drawing of at most `largest` pixels, and the middle of the square it fills.

        difference is (B, 3, side, side), background (B, 3); one answer for each picture.
        """
        coarse, fine = (
            [templates for templates in sizes if templates.size <= largest]
            for sizes in (self._coarse, self._fine)
        )
        best = _scores(coarse, _seen(difference, background, COARSE), background)
        best = best.topk(min(BEST, len(self.names))).indices  # (B, BEST)
        seen = _seen(difference, background, FINE)
        rows = zip(seen, background, best, strict=True)
        return [self._nearest_among(fine, *row) for row in rows]

    def _nearest_among(
        self, sizes: Sequence[Templates], seen: Tensor, background: Tensor, among: Tensor
    ) -> tuple[int, tuple[float, float]]:
        """The same among the drawings `among` (indices), for one picture.

        seen is (4, r, r), background (3,).
        """
        seen, background = seen[None], background[None]
        fits = [templates.take(among).fits(seen, background) for templates in sizes]
        score = torch.stack([values[0].amax(1) for values in fits])  # (sizes, BEST)
        size, one = divmod(int(score.argmax()), len(among))
        width = sizes[size].size
        free = int(fits[size].shape[2] ** 0.5)  # places along a side
        row, column = divmod(int(fits[size][0, one].argmax()), free)
        cell = self.side / FINE
        x, y = (place * cell + (width - self.side) / 2 for place in (column, row))
        return int(among[one]), (x, y)

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


@dataclass(frozen=True)
class Templates:
    """All drawings in one size, in the cells of a picture.

    Attributes:
        size: of a drawing, in pixels.
        layers: (K, 4, c, c); colours, 0-255 and multiplied by alpha, and alpha, 0-1.
        squares: (K, 5), from which the length of `color - alpha * background` follows for any
            background: |color|^2, <color, alpha> for each of three colours, |alpha|^2.
    """

    size: int
    layers: Tensor
    squares: Tensor

    @classmethod
    def of(cls, pictures: Sequence[np.ndarray], size: int, side: int, cells: int) -> Templates:
        """`pictures` are RGBA (S, S, 4), uint8; they lie in the upper left corner of the cells."""
        reduce = _area(pictures[0].shape[0], size, side / cells)  # (c, S)
        layers = torch.stack([_premultiplied(picture, reduce) for picture in pictures])
        color, alpha = layers[:, :3].flatten(2), layers[:, 3:].flatten(2)
        both = (color * alpha).sum(2)
        ends = [x.square().sum((1, 2))[:, None] for x in (color, alpha)]
        return cls(size, layers, torch.cat([ends[0], both, ends[1]], 1))

    def take(self, indices: Tensor) -> Templates:
        return Templates(self.size, self.layers[indices], self.squares[indices])

    def fits(self, seen: Tensor, background: Tensor) -> Tensor:
        """How well each drawing at each place points where the picture does: (B, K, P).

        seen is `_seen`'s (B, 4, r, r), background (B, 3).
        """
        one = torch.ones(len(background), 1)
        parts = torch.cat([one, -2 * background, background.square().sum(1, keepdim=True)], 1)
        length = (parts @ self.squares.T).clamp(min=1.0).sqrt()  # (B, K)
        return conv2d(seen, self.layers).flatten(2) / length[:, :, None]


def separate(seen: np.ndarray) -> list[np.ndarray]:
    """What stands apart of what differs from the background, as masks (side, side), left to right.

    Parts whose bounding boxes come within `GAP` of 64 pixels of each other are one thing; specks
    are none.
    """
    gap = GAP * len(seen) / 64
    parts = _pieces(seen)
    boxes = [[part[0].min(), part[1].min(), part[0].max(), part[1].max()] for part in parts]
    joined = True
    while joined:
        joined = False
        for i in range(len(boxes)):
            for j in range(i + 1, len(boxes)):
                a, b = boxes[i], boxes[j]
                if all(a[k] - gap <= b[k + 2] and b[k] - gap <= a[k + 2] for k in (0, 1)):
                    boxes[i] = [*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])]
                    parts[i] = np.concatenate([parts[i], parts[j]], 1)
                    del boxes[j], parts[j]
                    joined = True
                    break
            if joined:
                break
    largest = max((part.shape[1] for part in parts), default=0)
    masks = []
    for part in sorted(parts, key=lambda part: part[1].mean()):
        if part.shape[1] >= SPECK * largest:
            mask = np.zeros_like(seen)
            mask[part[0], part[1]] = True
            masks.append(mask)
    return masks


def _pieces(seen: np.ndarray) -> list[np.ndarray]:
    """Connected pixels (8 neighbours) of a mask: rows and columns (2, n) of each piece."""
    left, found = seen.copy(), []
    while left.any():
        first = np.unravel_index(int(left.argmax()), left.shape)
        piece = np.zeros_like(left)
        piece[first] = True
        size = 0
        while piece.sum() > size:
            size = piece.sum()
            wide = np.pad(piece, 1)
            around = [np.roll(wide, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
            piece = np.logical_or.reduce(around)[1:-1, 1:-1] & left
        left &= ~piece
        found.append(np.stack(piece.nonzero()))
    return found


def _half(difference: Tensor, name: str) -> Tensor:
    """One half of the pictures (B, 3, side, side), as if the other showed background alone."""
    row, column, rows, columns = HALVES[name]
    height, width = difference.shape[2] // rows, difference.shape[3] // columns
    y, x = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
    alone = torch.zeros_like(difference)
    alone[..., y, x] = difference[..., y, x]
    return alone


def _scores(sizes: Sequence[Templates], seen: Tensor, background: Tensor) -> Tensor:
    """The best fit of every drawing, over sizes and places: (B, K)."""
    fits = [templates.fits(seen, background).amax(2) for templates in sizes]
    return torch.stack(fits).amax(0)


def _seen(difference: Tensor, background: Tensor, cells: int) -> Tensor:
    """What differs from the background, (B, 4, r, r), so that its product with a drawing's four
    layers is <difference, color - alpha * background>."""
    color = adaptive_avg_pool2d(difference, cells)
    return torch.cat([color, -(color * background[:, :, None, None]).sum(1, keepdim=True)], 1)


def _premultiplied(picture: np.ndarray, reduce: Tensor) -> Tensor:
    """RGBA (S, S, 4), straight -> (4, c, c): colours times alpha, 0-255, and alpha, 0-1."""
    layer = torch.from_numpy(picture).permute(2, 0, 1).float()
    alpha = layer[3:] / 255
    return reduce @ torch.cat([layer[:3] * alpha, alpha]) @ reduce.T


def _area(pixels: int, size: int, cell: float) -> Tensor:
    """(c, pixels): means over cells of a line of `pixels` that is shown `size` wide."""
    edges = torch.arange(pixels + 1) * (size / pixels)
    start = torch.arange(math.ceil(size / cell))[:, None] * cell
    overlap = edges[1:].clamp(max=start + cell) - edges[:-1].clamp(min=start)
    return overlap.clamp(min=0) / cell
