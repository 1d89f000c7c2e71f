"""Parquet files whose rows hold the bytes of a picture and its caption."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdcore.errors import FileError, UsageError
from sdcore.files.opening import require_file
from sdcore.training.data.columns import IMAGE, TEXT, as_caption, choose_column
from sdcore.training.data.extras import extra
from sdcore.training.data.items import (
    Blob,
    Fault,
    FileBlob,
    Found,
    Item,
    Stamp,
    file_stamp,
    too_large,
)
from sdcore.training.data.settings import DataSettings
from sdcore.training.data.subset import Subset


@dataclass(frozen=True)
class ParquetBlob:
    """The bytes in one row of a Parquet file: a column of bytes, or the hub's {bytes, path}."""

    path: Path
    row: int
    column: str

    def read(self, limit: int) -> bytes:
        group, first = _group_of(self.path, file_stamp(self.path), self.row)
        rows = _column(self.path, file_stamp(self.path), group, self.column)
        return cell_bytes(rows[self.row - first].as_py(), limit, f"{self.path} row {self.row}")

    def place(self) -> str:
        return f"{self.path.absolute()}:{self.column}:{self.row}"

    def stamp(self) -> Stamp | None:
        return file_stamp(self.path)


def cell_bytes(value: Any, limit: int, name: str) -> bytes:
    """The bytes of a picture in a cell of a table. FileError where there are none."""
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")  # pyright: ignore
    if value is None and isinstance(path, str) and Path(path).is_file():
        return FileBlob(Path(path)).read(limit)
    if not isinstance(value, bytes):
        why = f"It names {path!r}, which is not here." if path else "The row holds no bytes."
        raise FileError(f"{name} is missing.", why, "Write the bytes of pictures into the table.")
    if len(value) > limit:
        raise too_large(name, limit)
    return value


def read_parquet(source: Path, settings: DataSettings, subset: Subset) -> Found:
    """The items of a Parquet file, or of all in a folder; pictures are not read yet.

    Raises:
        FileError: a file is damaged, or there is none.
        UsageError: its columns do not fit; or pyarrow is not installed.
    """
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files:
        raise FileError(f"{source} holds no Parquet file.", "None ends in .parquet.", "Name one.")
    found = Found()
    for path in files:
        found = found + _read_file(path, settings, subset)
    return found


def _read_file(path: Path, settings: DataSettings, subset: Subset) -> Found:
    arrow = extra("pyarrow", "Parquet files")
    try:
        schema = _opened(path, file_stamp(path)).schema_arrow
    except (OSError, arrow.ArrowException) as error:
        raise _damaged(path, error) from error
    types = {field.name: field.type for field in schema}
    table = str(path)
    image = choose_column(
        settings.image_column,
        [n for n, kind in types.items() if _holds_bytes(arrow, kind)],
        IMAGE,
        "data.image_column",
        table,
    )
    captions: list[Any]
    if subset.captions == "name":
        raise no_names(table)
    if subset.captions == "none":
        captions = [subset.fallback or ""] * _opened(path, file_stamp(path)).metadata.num_rows
    else:
        texts = [n for n, kind in types.items() if _is_text(arrow, kind)]
        text = choose_column(settings.text_column, texts, TEXT, "data.text_column", table)
        try:
            captions = _opened(path, file_stamp(path)).read(columns=[text])[text].to_pylist()
        except (OSError, arrow.ArrowException) as error:
            raise _damaged(path, error) from error
    return row_items(captions, subset, path.stem, lambda row: ParquetBlob(path, row, image))


def row_items(
    captions: list[Any], subset: Subset, name: str, blob_of: Callable[[int], Blob]
) -> Found:
    """An item for each row of a table, by the captions of all."""
    width = len(str(max(0, len(captions) - 1)))
    items: list[Item] = []
    faults: list[Fault] = []
    for row, value in enumerate(captions):
        label = f"{subset.prefix}{name} row {row:0{width}d}"
        caption, wrong = as_caption(value)
        if wrong:
            faults.append(Fault(label, "caption undecodable", wrong))
        items.append(subset.item(label, blob_of(row), caption))
    return Found(tuple(items), tuple(faults))


def no_names(table: str) -> UsageError:
    """The error where captions shall be names of files that a table does not have."""
    return UsageError(
        f"Pictures in {table} have no names.",
        "The setting data.captions is name.",
        "Set it to auto, and data.text_column to a column of captions.",
    )


@lru_cache(maxsize=16)
def _opened(path: Path, stamp: Stamp) -> Any:
    require_file(path)
    return extra("pyarrow.parquet", "Parquet files").ParquetFile(path)


@lru_cache(maxsize=16)
def _starts(path: Path, stamp: Stamp) -> list[int]:
    """The first row of each row group."""
    metadata = _opened(path, stamp).metadata
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


def _group_of(path: Path, stamp: Stamp, row: int) -> tuple[int, int]:
    """(row group, its first row) of a row."""
    starts = _starts(path, stamp)
    group = bisect_right(starts, row) - 1
    return group, starts[group]


@lru_cache(maxsize=4)
def _column(path: Path, stamp: Stamp, group: int, column: str) -> Any:
    """A column of a row group, which is the least that Parquet reads at once."""
    arrow = extra("pyarrow", "Parquet files")
    try:
        # A file of its own for each read: one that is shared between threads has one position.
        file = extra("pyarrow.parquet", "Parquet files").ParquetFile(path)
        return file.read_row_group(group, columns=[column])[column]
    except (OSError, arrow.ArrowException) as error:
        raise _damaged(path, error) from error


def _holds_bytes(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    ours = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in (*ours, getattr(types, "is_binary_view", types.is_binary)))


def _is_text(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_dictionary(kind):  # categories of pandas
        kind = kind.value_type
    ours = (types.is_string, types.is_large_string)
    return any(test(kind) for test in (*ours, getattr(types, "is_string_view", types.is_string)))


def _damaged(path: Path, error: Exception) -> FileError:
    why = f"{type(error).__name__}: {error!s:.300}".rstrip(".") + "."
    return FileError(f"{path} cannot be read as Parquet.", why, "Get the file again.")
