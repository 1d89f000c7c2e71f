"""Shares of pictures that are right, their 95 % intervals, and how tables show them."""

from __future__ import annotations

import math

Tally = tuple[int, int]  # hits, and how many there could have been


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
    if count == 0:
        return 0.0, 1.0
    share, scale = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def difference(a: Tally, b: Tally) -> tuple[float, float, float]:
    """Share a minus share b and its 95 % interval (Newcombe 1998, Stat. Med. 17:873, method 10)."""
    (low_a, high_a), (low_b, high_b) = wilson(*a), wilson(*b)
    first, second = a[0] / a[1], b[0] / b[1]
    below = math.hypot(first - low_a, high_b - second)
    above = math.hypot(high_a - first, second - low_b)
    return first - second, first - second - below, first - second + above


def percent(tally: Tally, digits: int = 1) -> str:
    """Percent, its 95 % interval and the count: 80.0 (71-87, n 90); "-" where the count is 0."""
    hits, count = tally
    if count == 0:
        return "-"
    low, high = wilson(hits, count)
    return f"{100 * hits / count:.{digits}f} ({100 * low:.0f}-{100 * high:.0f}, n {count})"


def points(a: Tally, b: Tally) -> str:
    """`difference` in points of percent: +3.1 (-2 to +8); "-" where one count is 0."""
    if not a[1] or not b[1]:
        return "-"
    middle, low, high = (100 * share for share in difference(a, b))
    return f"{middle:+.1f} ({low:+.0f} to {high:+.0f})"
