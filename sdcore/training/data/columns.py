"""Which columns of a table hold the pictures and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sdcore.errors import UsageError

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
    raise UsageError(what, why, f"Set {setting} to one of them.")


def as_caption(value: Any) -> tuple[str | None, str]:
    """(caption, what is wrong with it) of a value in a table; None where there is none."""
    if value is None:
        return None, ""
    if isinstance(value, str):
        return " ".join(value.split()), ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value), ""
    return None, f"Its caption is a {cast(type, type(value)).__name__}, not a text."
