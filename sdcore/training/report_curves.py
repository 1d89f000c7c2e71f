"""Curves of a run's numbers as SVG, and the data that a page's script reads values from.

A curve is complete without a script: the script adds values under the pointer and the log scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sdcore.training.report_data import Column

MOST_POINTS = 1200  # of a curve; of more, the least and the greatest of each stretch are kept
MOST_CURVES = 40
_WIDTH, _HEIGHT = 1000, 300  # of the drawing, which is stretched to the page
_EDGE = 4  # above and below it, so that a line at the very top is seen whole
_TITLES = {
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "images_per_second": "Images per second",
    "memory": "Memory",
}
_FIRST = ("loss", "validation_loss", "grad_norm", "lr")
_CLOCKS = ("seconds", "seconds_left")  # say how far the run is, and are no curve
_SMOOTH = ("lr", "learning_rate", "epoch")  # by themselves
_NOISY = 20  # points from which on a smoothed curve is drawn too


@dataclass(frozen=True)
class Curve:
    """One number over the steps, thinned out for a page.

    Attributes:
        steps, values: of the points that are drawn, values as in the file.
        smoothed: of all points, at those; empty where there are few.
        count: points in the file.
        dotted: every point is marked.
    """

    name: str
    steps: list[int]
    values: list[float]
    smoothed: list[float]
    count: int
    dotted: bool

    @property
    def title(self) -> str:
        plain = self.name.replace("_", " ").replace("/", ", ")
        return _TITLES.get(self.name, plain[:1].upper() + plain[1:])

    @property
    def has_log(self) -> bool:
        """Whether a logarithmic scale says more, as of a loss."""
        drawn = _finite(self.values)
        falls = any(word in self.name for word in ("loss", "grad", "error"))
        return falls and bool(drawn) and min(drawn) > 0


def make_curves(metrics: Sequence[Column], evaluation: Sequence[Column]) -> list[Curve]:
    """The curves of a page, the loss first."""
    curves = [_curve(column, dotted=False) for column in metrics]
    curves += [_curve(column, dotted=True) for column in evaluation]
    order = {name: number for number, name in enumerate(_FIRST)}
    curves = [c for c in curves if _finite(c.values) and c.name not in _CLOCKS]
    return sorted(curves, key=lambda curve: order.get(curve.name, len(order)))[:MOST_CURVES]


def curve_data(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """What the script shows under the pointer; null where a number was not finite."""

    def plain(values: Sequence[float]) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values]

    return [
        {"steps": c.steps, "values": plain(c.values), "smoothed": plain(c.smoothed)} for c in curves
    ]


def figure(curve: Curve, number: int, last_step: int) -> str:
    """A curve as HTML: its scales, and a line for the pointer."""
    name = escape(curve.title)
    scales = [_scale(curve, log=False)] + ([_scale(curve, log=True)] if curve.has_log else [])
    labels = "".join(_labels(scale) for scale in scales)
    switch = ""
    if curve.has_log:
        box = f'<input type="checkbox" data-log="{number}"> log'
        switch = f'<label class="check js" hidden>{box}</label>'
    drawn = _finite(curve.values)
    newest = f"{short(drawn[-1])} <small>at step {curve.steps[-1]:,}</small>"
    steps = "".join(f"<span>{step:,}</span>" for step in (0, last_step // 2, last_step))
    said = f"{name} over the steps, from {short(drawn[0])} to {short(drawn[-1])}"
    return (
        f'<figure class="curve" data-curve="{number}"><figcaption><b>{name}</b>{switch}'
        f'<output aria-live="polite">{newest}</output></figcaption><div class="plot">{labels}'
        f'<svg viewBox="0 {-_EDGE} {_WIDTH} {_HEIGHT + 2 * _EDGE}" preserveAspectRatio="none" '
        f'tabindex="0" role="img" aria-label="{said}">'
        + "".join(_plot(curve, scale, last_step) for scale in scales)
        + f'<line class="cursor" y1="0" y2="{_HEIGHT}" x1="-9" x2="-9"></line></svg>'
        f'<div class="steps" aria-hidden="true">{steps}</div></div>'
        f"{_beyond(curve, scales[0])}</figure>"
    )


# --- scales ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """From low to high, in `parts` even parts; of a log scale both are logarithms."""

    low: float
    high: float
    parts: int
    log: bool

    def height(self, value: float) -> float:
        place = (math.log10(value) if self.log else value) - self.low
        return round(_HEIGHT * (1 - place / (self.high - self.low)), 1)

    def marks(self) -> Iterator[float]:
        """The numbers at the lines, from the top down."""
        for number in range(self.parts, -1, -1):
            place = self.low + (self.high - self.low) * number / self.parts
            yield 10**place if self.log else place


def _scale(curve: Curve, *, log: bool) -> _Scale:
    """Lines at round numbers; of many points a few far out are left outside."""
    drawn = sorted(_finite(curve.values))
    low, high = drawn[0], drawn[-1]
    if len(drawn) >= 100:
        edge = len(drawn) // 100
        smooth = _finite(curve.smoothed)
        low = min([drawn[edge], *smooth])
        high = max([drawn[-1 - edge], *smooth])
    if log:
        bottom, top = math.log10(low), math.log10(high)
        room = max(0.02, 0.04 * (top - bottom))
        return _Scale(bottom - room, top + room, 4, log=True)
    if high - low <= 1e-12 * max(abs(high), 1e-300):
        room = abs(high) / 2 or 1.0
        low, high = low - room, high + room
    unit = _round_up((high - low) / 4)
    first, last = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return _Scale(first * unit, last * unit, max(last - first, 1), log=False)


def _round_up(width: float) -> float:
    size = 10 ** math.floor(math.log10(width))
    return size * next(n for n in (1, 2, 2.5, 5, 10) if n * size >= width * (1 - 1e-9))


def _beyond(curve: Curve, scale: _Scale) -> str:
    outside = [v for v in _finite(curve.values) if not scale.low <= v <= scale.high]
    if not outside:
        return ""
    most = max(outside, key=abs)
    many = "1 point lies" if len(outside) == 1 else f"{len(outside)} points lie"
    return f'<p class="hint">{many} outside the drawing, the farthest at {short(most)}.</p>'


# --- drawing -----------------------------------------------------------------------------------


def _plot(curve: Curve, scale: _Scale, last_step: int) -> str:
    heights = [_HEIGHT * number / scale.parts for number in range(1, scale.parts)]
    lines = "".join(f"M0 {height:.1f}H{_WIDTH}" for height in heights)
    raw = _line(curve.steps, curve.values, scale, last_step)
    parts = [f'<path class="lines" d="{lines}"></path>' if lines else ""]
    parts.append(f'<path class="raw{" faint" * bool(curve.smoothed)}" d="{raw}"></path>')
    if curve.smoothed:
        smooth = _line(curve.steps, curve.smoothed, scale, last_step)
        parts.append(f'<path class="smooth" d="{smooth}"></path>')
    if curve.dotted or len(_finite(curve.values)) == 1:
        dots = "".join(
            f"M{_x(step, last_step)} {scale.height(value)}h0"
            for step, value in zip(curve.steps, curve.values, strict=True)
            if math.isfinite(value)
        )
        parts.append(f'<path class="dots" d="{dots}"></path>')
    return f'<g class="{"log" if scale.log else "linear"}">{"".join(parts)}</g>'


def _line(steps: Sequence[int], values: Sequence[float], scale: _Scale, last_step: int) -> str:
    """A path through the points, interrupted where a number is not finite."""
    parts: list[str] = []
    pen = "M"
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value) or (scale.log and value <= 0):
            pen = "M"
            continue
        # far outside is as good as outside, and renderers have their limits
        y = min(max(scale.height(value), -_HEIGHT), 2 * _HEIGHT)
        parts.append(f"{pen}{_x(step, last_step)} {y}")
        pen = "L"
    return "".join(parts)


def _x(step: int, last_step: int) -> float:
    return round(_WIDTH * step / max(last_step, 1), 1)


def _labels(scale: _Scale) -> str:
    exact = 2 if scale.log else 4
    marks = "".join(f"<span>{short(mark, exact)}</span>" for mark in scale.marks())
    kind = "log" if scale.log else "linear"
    return f'<div class="marks {kind}" aria-hidden="true">{marks}</div>'


def short(value: float, digits: int = 4) -> str:
    """A number in few digits."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


# --- thinning and smoothing --------------------------------------------------------------------


def _curve(column: Column, *, dotted: bool) -> Curve:
    kept = _thin(column.values)
    many = len(column.values) >= _NOISY and column.name not in _SMOOTH and not dotted
    smooth = _smoothed(column.values) if many else []
    return Curve(
        column.name,
        [column.steps[at] for at in kept],
        [column.values[at] for at in kept],
        [smooth[at] for at in kept] if smooth else [],
        len(column.values),
        dotted and len(kept) <= 200,
    )


def _thin(values: Sequence[float]) -> list[int]:
    """Which points are drawn: all, or of each stretch the least and the greatest, and the ends."""
    if len(values) <= MOST_POINTS:
        return list(range(len(values)))
    stretches = MOST_POINTS // 2 - 1
    kept = {0, len(values) - 1}
    for number in range(stretches):
        start, end = (len(values) * n // stretches for n in (number, number + 1))
        finite = [at for at in range(start, end) if math.isfinite(values[at])] or [start]
        kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return sorted(kept)


def _smoothed(values: Sequence[float]) -> list[float]:
    """A moving average of about a twentieth of the points, without the pull of its start."""
    keep = 1 - 2 / (min(max(len(values) / 20, 5), 200) + 1)
    total, weight = 0.0, 0.0
    smooth: list[float] = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(total / weight if weight else math.nan)
    return smooth


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
