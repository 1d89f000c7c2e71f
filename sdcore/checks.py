"""The one way in which values from outside are judged: no booleans, no NaN, NumPy's too."""

from __future__ import annotations

import math
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real

from sdcore.errors import UsageError


def as_int(value: object, least: int | None = None, most: int | None = None) -> int | None:
    """The whole number that `value` is, from `least` to `most`; None where it is no such number.

    NumPy's whole numbers count; booleans, 3.0 and digits in a text do not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    number = int(value)
    return number if _within(number, least, most) else None


def as_finite(
    value: object, least: float | None = None, most: float | None = None
) -> int | float | None:
    """The finite number that `value` is, from `least` to `most`; None where it is no such number.

    An int stays one. NumPy's numbers count; booleans, NaN, infinity and digits in a text do not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int of hundreds of digits
        return None
    number = value if isinstance(value, int | float) else number
    return number if math.isfinite(number) and _within(number, least, most) else None


def shown(value: object) -> str:
    """A value of any kind, cut; digits by the thousands are not written out at all."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no int of more than 4,300 digits
        return "a number of thousands of digits"


def has_type(value: object, *types: type) -> bool:
    """`isinstance` for what people pass in spite of an annotation, which type checkers trust."""
    return isinstance(value, types)


def check_int(name: str, value: object, least: int, most: int | None = None, *, hint: str) -> int:
    """`value` as an int.

    Args:
        name: of the value, as a sentence about it begins: "The seed".
        hint: what to try, as a sentence.

    Raises:
        UsageError: it is no whole number from `least` to `most`.
    """
    number = as_int(value, least, most)
    if number is None:
        span = f"from {least} to {most}" if most is not None else f"that is {least} or more"
        raise UsageError(f"{name} is {shown(value)}.", f"It must be a whole number {span}.", hint)
    return number


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Refuse what is none of the known names, with the nearest one. Raises UsageError."""
    if isinstance(value, str) and value in known:
        return
    near = get_close_matches(value, known, n=1) if isinstance(value, str) else []
    raise UsageError(
        f"{name} is {shown(value)}.",
        f"It may be {' or '.join(known)}.",
        f"Did you mean {near[0]!r}?" if near else "Use one of these.",
    )


def _within(number: float, least: float | None, most: float | None) -> bool:
    return (least is None or number >= least) and (most is None or number <= most)
