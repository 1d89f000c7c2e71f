"""Which columns of a table hold the pictures and their captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from sdcore.errors import UsageError
from sdcore.training.data.texts import fault_of, tidy

TEXT = ("text", "caption", "captions", "prompt", "description", "txt", "title", "label_text")
IMAGE = ("image", "img", "picture", "jpg", "png", "webp", "jpeg", "photo", "bytes")


def choose_column(
    wanted: str, columns: Sequence[str], usual: Sequence[str], setting: str, table: str
) -> str:
    """The column that is set, or the one of a usual name, or the only one there is.

    Args:
        columns: those that could be it.
        setting: that names it, for the error.
        table: the name of the table, for the error.

    Raises:
        UsageError: no such column, or it is not clear which; names those that there are.
    """
    found = [name for name in usual for column in columns if column.lower() == name]
    if wanted:
        if wanted in columns:
            return wanted
        what = f"{table} has no column {wanted!r}."
    elif found:
        return next(column for column in columns if column.lower() == found[0])
    elif len(columns) == 1:
        return columns[0]
    else:
        what = f"It is not clear which column of {table} is meant by {setting}."
    why = (
        f"The columns that could be it are {', '.join(columns)}."
        if columns
        else "It has none that could."
    )
    hint = f"Set {setting} to one of them."
    if not columns:
        hint = f"Write such a column, of {'texts' if usual is TEXT else 'bytes'}."
        hint += " Captions are left out by data.captions=none." if usual is TEXT else ""
    raise UsageError(what, why, hint)


def as_caption(value: Any) -> tuple[str | None, str]:
    """(caption, what is wrong with it) of a value in a table; None where there is none."""
    if value is None:
        return None, ""
    if isinstance(value, str):
        wrong = fault_of(value)
        return (None, f"Its caption: {wrong}") if wrong else (tidy(value), "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (str(value), "") if math.isfinite(value) else (None, "")  # pandas writes NaN
    return None, f"Its caption is a {cast(type, type(value)).__name__}, not a text."
