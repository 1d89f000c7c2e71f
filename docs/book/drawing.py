"""Figures as SVG: text stays text, tensors and pictures are small PNGs inside.

Shapes: R rows, K columns, C channels, h w grid.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

INK, FAINT, LINE, ACCENT = "#222222", "#5f666d", "#9aa0a6", "#b3261e"
BOLD = ' font-weight="bold"'
MASKED = torch.tensor([226.0, 228, 230])
_LIGHT, _DARK = torch.tensor([255.0, 255, 255]), torch.tensor([16.0, 78, 139])
_RED = torch.tensor([179.0, 38, 30])
_HOT = torch.tensor([[255.0, 255, 255], [253, 187, 99], [215, 60, 40], [90, 10, 40]])
TOLERANCE = 3.0  # mean difference of a picture's pixels, of 255, that another processor may make
_IMAGE = re.compile(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)")
_DATA = re.compile(r'(?<=id="data">)[^<]*')


class Svg:
    """A white sheet of `width` x `height`."""

    def __init__(self, width: int, height: int, title: str = "") -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: object,
        anchor: str = "start",
        size: float = 14,
        color: str = INK,
        bold: bool = False,
        upright: bool = False,
    ) -> None:
        """(x, y): the middle of its height; anchor: start, middle or end. Upright reads upwards."""
        more = BOLD if bold else ""
        more += f' transform="rotate(-90 {x:.0f} {y:.0f})"' if upright else ""
        self._parts.append(
            f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size:g}" '
            f'fill="{color}" dominant-baseline="central"{more}>{escape(str(text))}</text>'
        )

    def words(
        self, x: float, y: float, pieces: Sequence[tuple[str, str]], size: float = 14
    ) -> None:
        """A line of pieces (text, colour) around x; what is not in ink is bold."""
        spans = "".join(
            f'<tspan fill="{color}"{"" if color in (INK, FAINT) else BOLD}>{escape(text)}</tspan>'
            for text, color in pieces
        )
        self._parts.append(
            f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" font-size="{size:g}" '
            f'dominant-baseline="central" xml:space="preserve">{spans}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str = "none",
        stroke: str = LINE,
        wide: float = 1,
        round_by: float = 0,
    ) -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="{round_by:g}" fill="{fill}" stroke="{stroke}" stroke-width="{wide:g}"/>'
        )

    def line(self, *points: tuple[float, float], color: str = LINE, wide: float = 1.5) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{wide:g}"/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float, color: str = FAINT) -> None:
        self._parts.append(
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{color}" '
            'stroke-width="1.5" marker-end="url(#a)"/>'
        )

    def picture(self, image: Image.Image, x: float, y: float, width: float, sharp=False) -> None:
        """A picture with a thin frame; `sharp` keeps its pixels as squares."""
        height = width * image.height / image.width
        data = io.BytesIO()
        image.convert("RGB").save(data, "PNG", optimize=True)
        style = ' style="image-rendering:pixelated"' if sharp else ""
        self._parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{style} '
            f'href="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"/>'
        )
        self.box(x, y, width, height)

    def cells(self, colors: Tensor, x: float, y: float, width: float) -> None:
        """Colours (R, K, 3), 0 to 255, as squares."""
        self.picture(image_of(colors), x, y, width, sharp=True)

    def matrix(
        self,
        shares: Tensor,
        x: float,
        y: float,
        cell: float,
        *,
        rows: Sequence[str] = (),
        columns: Sequence[str] = (),
        numbers: bool = False,
        size: float = 13,
        causal: bool = False,
    ) -> None:
        """Shares (R, K), white at 0 and dark at 1; causal: what cannot be read is grey."""
        colors = _LIGHT + shares[..., None].clamp(0, 1) * (_DARK - _LIGHT)
        if causal:
            colors[torch.ones(shares.shape).triu(1).bool()] = MASKED
        self.cells(colors, x, y, cell * shares.shape[1])
        for row, name in enumerate(rows):
            self.text(x - 6, y + (row + 0.5) * cell, name, "end", size)
        for column, name in enumerate(columns):
            self.text(x + (column + 0.5) * cell, y - 6, name, "start", size, upright=True)
        if numbers:
            for row, column in (shares >= 0.05).nonzero().tolist():
                share = float(shares[row, column])
                at = x + (column + 0.5) * cell, y + (row + 0.5) * cell
                ink = "#ffffff" if share > 0.5 else INK
                self.text(*at, f"{100 * share:.0f}", "middle", 11, ink)

    def bars(self, x: float, y: float, shares: Sequence[float], names, long: float = 200) -> None:
        """Bars side by side: name, bar, and the share in per cent."""
        for row, (name, share) in enumerate(zip(names, shares, strict=True)):
            at = y + 20 * row
            self.text(x - 6, at, name, "end", 13)
            self.box(x, at - 7, max(long * share, 0.5), 14, "#104e8b", "none")
            self.text(x + long * share + 6, at, f"{100 * share:.0f} %", size=12, color=FAINT)

    def chart(
        self,
        lines: dict[str, Sequence[tuple[float, float]]],
        x: float,
        y: float,
        width: float,
        height: float,
        x_label: str,
        y_label: str,
        top: float = 100.0,
    ) -> None:
        """Lines of points (x, value from 0 to `top`), named at their ends."""
        values = [at for points in lines.values() for at, _ in points]
        low, high = min(values), max(values)
        for tick in range(0, 101, 25):
            level = y + height * (1 - tick / 100)
            self.line((x, level), (x + width, level), color="#e3e5e8", wide=1)
            self.text(x - 6, level, f"{top * tick / 100:g}", "end", 11, FAINT)
        colors = ("#104e8b", "#b3261e", "#2e7d32", "#8e24aa")
        for number, (name, points) in enumerate(lines.items()):
            color = colors[number % len(colors)]
            placed = [
                (x + width * (at - low) / max(high - low, 1e-9), y + height * (1 - value / top))
                for at, value in points
            ]
            self.line(*placed, color=color, wide=2)
            self.text(x + width + 8, y + 8 + 20 * number, name, size=13, color=color)
        for at in sorted(set(values)):
            place = x + width * (at - low) / max(high - low, 1e-9)
            self.text(place, y + height + 12, f"{at:g}", "middle", 11, FAINT)
        self.text(x + width / 2, y + height + 30, x_label, "middle", 13)
        self.text(x, y - 14, y_label, size=13)

    def __str__(self) -> str:
        marker = (
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{FAINT}"/></marker></defs>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" role="img" font-family="system-ui, sans-serif">'
            f"<title>{escape(self.title)}</title>"
        )
        paper = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, marker, paper, *self._parts, "</svg>\n"])


def image_of(colors: Tensor) -> Image.Image:
    """Colours (R, K, 3), 0 to 255, as a picture of one pixel each."""
    return Image.fromarray(colors.round().clamp(0, 255).to(torch.uint8).numpy())


def hot(values: Tensor, low: float, high: float) -> Tensor:
    """A map (h, w) as colours (h, w, 3): white at `low`, then orange, red, dark at `high`."""
    at = ((values - low) / max(high - low, 1e-12)).clamp(0, 1) * (len(_HOT) - 1)
    below = at.floor().long().clamp(max=len(_HOT) - 2)
    part = (at - below)[..., None]
    return _HOT[below] * (1 - part) + _HOT[below + 1] * part


def blue(values: Tensor) -> Tensor:
    """Shares (...) from 0 to 1 as colours (..., 3), white to dark blue."""
    return _LIGHT + values[..., None].clamp(0, 1) * (_DARK - _LIGHT)


def signed(values: Tensor) -> Tensor:
    """Numbers (...) as colours (..., 3): red below 0, white at 0, blue above, full at 1."""
    size = values.abs().clamp(max=1)[..., None]
    return _LIGHT + size * (torch.where(values[..., None] < 0, _RED, _DARK) - _LIGHT)


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


def alike(one: str, other: str) -> bool:
    """Whether two figures say the same, and their pictures differ by no more than TOLERANCE."""
    if _IMAGE.sub("", one) != _IMAGE.sub("", other):
        return False
    pairs = zip(_IMAGE.findall(one), _IMAGE.findall(other), strict=True)
    return all(_difference(*pair) <= TOLERANCE for pair in pairs)


def alike_pages(one: str, other: str) -> bool:
    """The same for pages that move: numbers of their data, 0 to 1000, may differ by two."""
    data = [json.loads(_DATA.findall(page)[0]) for page in (one, other)]
    return alike(*(_DATA.sub("", page) for page in (one, other))) and _near(*data)


def _near(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_near, one, other))
    if isinstance(one, str) and isinstance(other, str):
        return alike(one, other)
    return isinstance(one, int | float) and isinstance(other, int | float) and abs(one - other) <= 2


def _difference(one: str, other: str) -> float:
    first, second = (
        Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in (one, other)
    )
    if first.size != second.size:
        return 255.0
    return max(ImageStat.Stat(ImageChops.difference(first, second)).mean)
