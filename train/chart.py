"""Line charts with error bars, written as SVG: readable in a browser and in a page of docs/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from sdcore.files.atomic import replace_file, text_writer

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#222222", "#e69f00", "#56b4e9")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 62, 190, 44, 50  # pixels
DASHES = ("", "6 3", "2 3", "8 3 2 3", "", "10 4", "4 4")  # told apart without colour, too


@dataclass(frozen=True)
class Point:
    """One mean and the ends of its error bar."""

    x: float
    y: float
    low: float
    high: float


def line_chart(
    path: str | Path,
    lines: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_ticks: Sequence[float],
    marked: tuple[float, float, str] | None = None,
) -> None:
    """Write a chart: one line for each name, x evenly spaced by its distinct values.

    Args:
        y_ticks: the axis, its ends included.
        marked: (from x, to x, what it is): a band behind the lines.
    """
    xs = sorted({point.x for points in lines.values() for point in points})
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float) -> float:
        return LEFT + across * (xs.index(x) + 0.5) / len(xs)

    def level(y: float) -> float:
        return TOP + up * (1 - (y - low) / (high - low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, title, "start", size=16),
    ]
    if marked:
        half = across / len(xs) / 2
        start, end = place(marked[0]) - half, place(marked[1]) + half
        parts.append(
            f'<rect x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{up}" '
            'fill="#eef2f5"/>'
        )
        parts.append(_text((start + end) / 2, HEIGHT - BOTTOM - 8, marked[2], color="#667"))
    for tick in y_ticks:
        y = level(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{across}" stroke="#d5d9dd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    parts += [_text(place(x), HEIGHT - BOTTOM + 18, f"{x:g}") for x in xs]
    parts.append(_text(LEFT + across / 2, HEIGHT - 10, x_label))
    middle = TOP + up / 2
    parts.append(f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, y_label)}</g>')
    for number, (name, points) in enumerate(lines.items()):
        color, dash = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
        # Side by side within 12 pixels, so that equal lines and their bars can all be seen.
        aside = (number - (len(lines) - 1) / 2) * 12 / max(1, len(lines))
        spots = [(place(p.x) + aside, p) for p in points]
        route = " ".join(f"{x:.1f},{level(p.y):.1f}" for x, p in spots)
        style = f'stroke="{color}" stroke-width="2" fill="none" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{route}" {style}/>')
        for x, p in spots:
            bar = f"M{x:.1f} {level(p.low):.1f}V{level(p.high):.1f}"
            parts.append(f'<path d="{bar}" stroke="{color}" stroke-width="1.5"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{level(p.y):.1f}" r="3.2" fill="{color}"/>')
        y = TOP + 12 + 22 * number
        x = WIDTH - RIGHT + 14
        parts.append(f'<path d="M{x} {y}h26" {style}/>')
        parts.append(_text(x + 34, y + 4, name, "start"))
    replace_file(Path(path), text_writer("\n".join([*parts, "</svg>"]) + "\n"))


def _text(
    x: float, y: float, text: str, anchor: str = "middle", size: int = 13, color: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(text)}</text>'
    )
