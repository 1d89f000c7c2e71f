"""Folders with a metadata.jsonl or metadata.csv, as the hub lays picture folders out."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from sdcore.errors import FileError, UsageError, name_some
from sdcore.files.jsonfile import is_object
from sdcore.files.opening import read_bytes
from sdcore.training.data.columns import TEXT, as_caption, choose_column
from sdcore.training.data.folder import Masks, caption_of_name, entries_of, shown, suffix
from sdcore.training.data.items import Fault, FileBlob, Found, Item, Note
from sdcore.training.data.settings import ENDINGS, DataSettings
from sdcore.training.data.subset import Subset
from sdcore.training.data.texts import decode

NAMES = ("metadata.jsonl", "metadata.csv")
FILE = "file_name"
_NEARLY = re.compile(
    r"meta-?data\.(json1|json|jsonI|jsnol|jsonlines|ndjson|tsv|(jsonl|csv)\.(txt|json|csv))"
    r"|metadata",
    re.IGNORECASE,
)
_LIMIT = 1 << 30
_EXAMPLE = {
    ".jsonl": '{"file_name": "fox.png", "text": "a fox"}',
    ".csv": "fox.png,a fox, below a first line file_name,text",
}
_LINE_ENDS = re.compile("\r\n|\n|\r")  # not those of str.splitlines, which texts hold
Row = tuple[int, dict[str, Any]]  # the number of a line, and what it says


def metadata_file(folder: Path) -> Path | None:
    """The table of a folder; None where there is none.

    Raises:
        FileError: there is one under a name that nearly is right.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    names = [path.name for path in entries_of(folder) if path.is_file()]
    near = [n for n in names if _NEARLY.fullmatch(n) or n.lower() in NAMES]
    if not near:
        return None
    right = NAMES[any(kind in near[0].lower() for kind in ("csv", "tsv"))]
    raise FileError(
        f"{folder / near[0]} is not read.",
        f"The table of a folder is named {NAMES[0]} (letters j, s, o, n, l) or {NAMES[1]}.",
        f"Rename it to {right}, or set data.layout to folder to do without it.",
    )


def read_metadata(folder: Path, settings: DataSettings, subset: Subset) -> Found:
    """The items that a folder's table lists; a picture may be listed with several captions.

    Raises:
        FileError: no table, or a damaged one.
        UsageError: its columns do not fit; names them.
    """
    path = metadata_file(folder)
    if path is None:
        why = f"It holds neither {NAMES[0]} nor {NAMES[1]}."
        raise FileError(
            f"{folder} has no table of its pictures.", why, "Set data.layout to folder."
        )
    faults: list[Fault] = []
    text, notes = _table_text(path)
    read = _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text, faults)
    rows = list(read)
    if not rows:
        why = f"At {str(faults[0]).rstrip('.')}." if faults else "It has no rows."
        hint = f"Write a line for each picture: {_EXAMPLE[path.suffix]}."
        raise FileError(f"{path} lists no picture.", why, hint)
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    if FILE not in columns:
        held = ", ".join(columns) or "none"
        why = f"Its columns are {held}."
        hint = f"Name the column that holds paths of pictures {FILE}."
        raise UsageError(f"{path} has no column {FILE}.", why, hint)
    column = _text_column(columns, settings, subset, path)
    masks = Masks(subset.masks)
    items: list[Item] = []
    listed: dict[str, int] = {}
    for number, row in rows:
        item = _item(folder, path, number, row, column, subset, masks, faults)
        if item is None:
            continue
        listed[item.name] = listed.get(item.name, 0) + 1
        count = listed[item.name]
        items.append(item if count == 1 else replace(item, name=f"{item.name} (row {count})"))
    twice = [name for name, count in listed.items() if count > 1]
    notes += [Note(name, "listed twice", f"{path.name} lists it more than once.") for name in twice]
    notes += _unlisted(folder, path, set(listed))
    return Found(tuple(items), tuple(faults), tuple(notes))


def _text_column(
    columns: list[str], settings: DataSettings, subset: Subset, path: Path
) -> str | None:
    if subset.captions in ("none", "name"):
        return None
    texts = [column for column in columns if column != FILE]
    return choose_column(settings.text_column, texts, TEXT, "data.text_column", str(path))


def _item(
    folder: Path,
    path: Path,
    number: int,
    row: dict[str, Any],
    column: str | None,
    subset: Subset,
    masks: Masks,
    faults: list[Fault],
) -> Item | None:
    """The picture of a row; None, and a fault, where it has none."""
    name = row.get(FILE)
    line = f"{path.name} line {number}"
    if not isinstance(name, str) or not name.strip():
        faults.append(Fault(line, "row without picture", f"It says no {FILE}."))
        return None
    pure = PurePosixPath(name.strip().replace("\\", "/"))
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        reason = f"{name!r:.80} names no file in the folder."
        faults.append(Fault(line, "row without picture", reason))
        return None
    label = subset.prefix + shown(str(pure))
    if any(len(part.encode("utf-8", "replace")) > 255 for part in pure.parts):
        faults.append(Fault(line, "row without picture", f"{name!r:.80} is too long for a file."))
        return None
    if not os.path.isfile(folder / pure):  # which holds for every name
        faults.append(Fault(label, "missing", f"{line} lists it; there is no such file."))
        return None
    caption = caption_of_name(pure.name) if subset.captions == "name" else subset.fallback
    if subset.captions == "none":
        caption = ""
    if column is not None:
        caption, wrong = as_caption(row.get(column))
        if wrong:
            faults.append(Fault(label, "caption undecodable", f"{line}: {wrong}"))
    return subset.item(
        label, FileBlob(folder / pure), caption, masks.of(str(pure.parent), pure.name)
    )


def _table_text(path: Path) -> tuple[str, list[Note]]:
    try:
        text, encoding = decode(read_bytes(path, _LIMIT))
    except ValueError as error:
        if isinstance(error, FileError):
            raise
        why = f"{error!s:.300}".rstrip(".")
        raise FileError(f"{path} cannot be read.", f"{why}.", "Save it as UTF-8.") from error
    if encoding == "utf-8":
        return text, []
    note = f"It is in {encoding}; save it as UTF-8."
    return text, [Note(path.name, "caption encoding", note)]


def _json_rows(path: Path, text: str, faults: list[Fault]) -> Iterator[Row]:
    for number, line in enumerate(_LINE_ENDS.split(text), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"It is not JSON: {error!s:.200}."
            faults.append(Fault(f"{path.name} line {number}", "row damaged", reason))
            continue
        if is_object(row):
            yield number, row
        else:
            reason = f"It is a {type(row).__name__}, not an object."
            faults.append(Fault(f"{path.name} line {number}", "row damaged", reason))


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    head = _LINE_ENDS.split(text, maxsplit=1)[0]
    marks = [mark for mark in ",;\t" if FILE in [name.strip(' "') for name in head.split(mark)]]
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter=marks[0] if marks else ",",  # Excel writes ; where , is the decimal mark
        skipinitialspace=True,
        strict=True,  # else a quotation that does not end swallows all rows behind it
    )
    try:
        for row in reader:
            yield reader.line_num, {k: v for k, v in row.items() if isinstance(k, str)}
    except csv.Error as error:
        why = f"Line {reader.line_num}: {error}."
        raise FileError(f"{path} is not a table.", why, "Save it as CSV again.") from error


def _unlisted(folder: Path, path: Path, listed: set[str]) -> list[Note]:
    """Pictures that lie there and are not in the table."""
    there = (p for p in sorted(folder.rglob("*")) if suffix(p.name) in ENDINGS)
    names = [shown(p.relative_to(folder).as_posix()) for p in there if p.is_file()]
    lost = [name for name in names if name not in listed and not Path(name).name.startswith(".")]
    if not lost:
        return []
    text = f"{len(lost)} pictures are not in it and are not used: {name_some(lost)}."
    return [Note(path.name, "not listed", text)]
