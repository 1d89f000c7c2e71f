"""A chart of scores against scenes seen, on a logarithmic axis, with the curves fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from bench.curve_fit import FURTHEST, Score, fit
from bench.shares import wilson
from sdcore.files.atomic import replace_file, text_writer
from train.chart import COLORS

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 62, 20, 44, 50  # pixels


def draw(path: Path, lines: Mapping[str, Sequence[Score]], measure: str, aim: float) -> None:
    """Write an SVG: points with 95 % intervals; the curve dashed where nothing was seen."""
    seen = [score.images for found in lines.values() for score in found]
    low, high = math.log10(min(seen)) - 0.1, math.log10(max(seen) * FURTHEST) + 0.05

    def across(images: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(images) - low) / (high - low)

    def up(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, f"Pictures with the right {measure}, percent", "start", 16),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "scenes seen in training"),
    ]
    for percent in range(0, 101, 20):
        y = up(percent / 100)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#d5d9dd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{percent}", "end"))
    for images in _ticks(low, high):
        x = across(images)
        parts.append(f'<path d="M{x:.1f} {up(0)}v5" stroke="#222222"/>')
        parts.append(_text(x, up(0) + 18, _short(images)))
    aimed = f'stroke="#222222" stroke-dasharray="2 4" d="M{LEFT} {up(aim):.1f}H{WIDTH - RIGHT}"'
    parts += [f"<path {aimed}/>", _text(LEFT + 4, up(aim) - 5, f"aim {100 * aim:g}", "start")]
    for number, (name, found) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        curve, last = fit(found), max((score.images for score in found), default=1)
        if curve:
            first = math.log10(min(score.images for score in found))
            for start, end, dash in (
                (first, math.log10(last), ""),
                (math.log10(last), math.log10(last * FURTHEST), "6 4"),
            ):
                steps = [10 ** (start + (end - start) * i / 40) for i in range(41)]
                route = " ".join(f"{across(x):.1f},{up(curve.share(x)):.1f}" for x in steps)
                parts.append(
                    f'<polyline points="{route}" stroke="{color}" stroke-width="2" fill="none" '
                    f'stroke-dasharray="{dash}"/>'
                )
        for score in found:
            x, ends = across(score.images), wilson(score.hits, score.count)
            bar = f"M{x:.1f} {up(ends[0]):.1f}V{up(ends[1]):.1f}"
            y = up(score.hits / score.count)
            parts.append(f'<path d="{bar}" stroke="{color}" stroke-width="1.5"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{color}"/>')
        y = HEIGHT - BOTTOM - 10 - 18 * (len(lines) - 1 - number)
        parts.append(_text(WIDTH - RIGHT - 6, y, name, "end", color=color))
    replace_file(path, text_writer("\n".join([*parts, "</svg>"]) + "\n"))


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two powers."""
    found = [d * 10.0**p for p in range(int(low) - 1, int(high) + 1) for d in (1, 2, 5)]
    return [x for x in found if low <= math.log10(x) <= high]


def _short(images: float) -> str:
    return f"{images / 1e6:g} M" if images >= 1e6 else f"{images / 1e3:g} k"


def _text(
    x: float, y: float, text: str, anchor: str = "middle", size: int = 13, color: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(text)}</text>'
    )
