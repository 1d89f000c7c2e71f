"""Sheets with matrices, grids and pictures on white, drawn with Pillow alone.

Shapes: R rows, K columns, C channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, FAINT, MASKED = "#222222", "#8a8f94", (232, 234, 236)
_LIGHT, _DARK = torch.tensor([255.0, 255.0, 255.0]), torch.tensor([16.0, 78.0, 139.0])
_HOT = torch.tensor([[255.0, 255, 255], [253, 187, 99], [215, 60, 40], [90, 10, 40]])


class Sheet:
    """A white page of pixels to write and paste on."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, anchor: str = "lm", size: int = 15, color: str = INK
    ) -> None:
        """`anchor` as Pillow has it: l m r across, a m s down."""
        self.draw.text((x, y), text, color, ImageFont.load_default(size), anchor=anchor)

    def upright(self, x: float, y: float, text: str, size: int = 15) -> None:
        """Text that reads upwards and ends above (x, y), its middle at x."""
        font = ImageFont.load_default(size)
        length = round(font.getlength(text)) + 2
        strip = Image.new("RGB", (length, size + 6), "white")
        ImageDraw.Draw(strip).text((0, (size + 6) / 2), text, INK, font, anchor="lm")
        strip = strip.rotate(90, expand=True)
        self.image.paste(strip, (round(x - strip.width / 2), round(y - strip.height)))

    def paste(self, picture: Image.Image, x: int, y: int, width: int, height: int = 0) -> None:
        """A picture, enlarged smoothly, with a thin frame."""
        size = (width, height or width)
        self.image.paste(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), (x, y))
        self.frame(x, y, *size)

    def frame(
        self, x: int, y: int, width: int, height: int, color: str = FAINT, wide: int = 1
    ) -> None:
        self.draw.rectangle((x - 1, y - 1, x + width, y + height), outline=color, width=wide)

    def cells(self, colors: Tensor, x: int, y: int, cell: int) -> None:
        """Colours (R, K, 3), 0 to 255, as squares."""
        picture = Image.fromarray(colors.round().clamp(0, 255).to(torch.uint8).numpy())
        size = (colors.shape[1] * cell, colors.shape[0] * cell)
        self.image.paste(picture.resize(size, Image.Resampling.NEAREST), (x, y))
        self.frame(x, y, *size)

    def matrix(
        self,
        shares: Tensor,
        x: int,
        y: int,
        cell: int,
        *,
        rows: Sequence[str] = (),
        columns: Sequence[str] = (),
        numbers: bool = False,
        size: int = 14,
        causal: bool = False,
    ) -> None:
        """Shares (R, K), white at 0 and dark at 1, with names, and with per cent in each cell.

        causal: what lies right of the diagonal is grey: it cannot be read.
        """
        colors = _LIGHT + shares[..., None].clamp(0, 1) * (_DARK - _LIGHT)
        if causal:
            colors[torch.ones(shares.shape).triu(1).bool()] = torch.tensor(MASKED).float()
        self.cells(colors, x, y, cell)
        for row, name in enumerate(rows):
            self.text(x - 6, y + (row + 0.5) * cell, name, "rm", size)
        for column, name in enumerate(columns):
            self.upright(x + (column + 0.5) * cell, y - 5, name, size)
        if numbers:
            for row, column in (shares >= 0.05).nonzero().tolist():
                share = float(shares[row, column])
                at = x + (column + 0.5) * cell, y + (row + 0.5) * cell
                self.text(*at, f"{100 * share:.0f}", "mm", 12, "white" if share > 0.5 else INK)


def hot(values: Tensor, low: float, high: float) -> Tensor:
    """A map (h, w) as colours (h, w, 3): white at `low`, then orange, red, dark at `high`."""
    at = ((values - low) / max(high - low, 1e-12)).clamp(0, 1) * (len(_HOT) - 1)
    below = at.floor().long().clamp(max=len(_HOT) - 2)
    part = (at - below)[..., None]
    return _HOT[below] * (1 - part) + _HOT[below + 1] * part


def colored(tokens: Tensor) -> Tensor:
    """Vectors (N, C) as colours (N, 3): places with like vectors have like colours.

    Red, green and blue are the three directions in which the vectors differ most.
    """
    centred = (tokens - tokens.mean(dim=0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    largest = directions[:3].abs().argmax(dim=1)
    signs = directions[:3].gather(1, largest[:, None]).sign()  # the same colours on every machine
    along = centred @ (directions[:3] * signs).T
    low, high = along.amin(dim=0), along.amax(dim=0)
    return (40 + 200 * (along - low) / (high - low).clamp(min=1e-9)).float()


def colored_map(features: Tensor) -> Tensor:
    """A feature map (C, h, w) as colours (h, w, 3); see `colored`."""
    return colored(features.flatten(1).T).unflatten(0, features.shape[1:])
