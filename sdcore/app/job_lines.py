"""Files that hold a job a line: text, CSV, JSON lines, Parquet.

A line says any field of `Job` under its name, but `width` and `height` for its size. In a text file
it is a prompt, behind which flags may stand as kohya's scripts, the web UI and ours have them:

    a fox --n blurry --w 512 --h 768 --d 7 --l 6.5 --s 30 --ss "euler a"

Files are read line by line, so that they may be of any length.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sdcore.errors import FileError, SdcoreError, UsageError
from sdcore.files.jsonfile import parse_json_object
from sdcore.files.limits import LINE_BYTES
from sdcore.files.opening import open_file, require_file

# Behind a prompt: kohya's letters, and names of the web UI and of ours -> the field of a job.
FLAGS = {
    "n": "negative_prompt",
    "negative-prompt": "negative_prompt",
    "w": "width",
    "width": "width",
    "h": "height",
    "height": "height",
    "d": "seed",
    "seed": "seed",
    "s": "steps",
    "steps": "steps",
    "l": "guidance_scale",
    "cfg-scale": "guidance_scale",
    "guidance-scale": "guidance_scale",
    "ss": "scheduler",
    "sampler-name": "scheduler",
    "scheduler": "scheduler",
    "c": "clip_skip",
    "clip-skip": "clip_skip",
    "dialect": "dialect",
}
_WORDS = ("prompt", "negative_prompt", "scheduler", "dialect", "attention", "convolution")
_FLAG = re.compile(r"\s--([A-Za-z][\w-]*)(?=[\s=]|$)")


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        number: of the job, counted from 1; blank lines and comments do not count.
        place: where it stands, in words.
        values: names of a job's fields, and what it says of them.
        error: why it cannot be read; there are no values then.
    """

    number: int
    place: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    error: SdcoreError | None = None


def read_lines(path: Path) -> Iterator[Line]:
    """The jobs of a file; a line that cannot be read has its error.

    Raises:
        FileError: it is missing, of another kind, not UTF-8, or CSV without a column `prompt`.
    """
    if path.suffix.lower() not in _READERS:
        raise FileError(
            f"{path} cannot be read.",
            "A file of jobs is text, CSV, JSON lines or Parquet, which its ending says.",
            f"Use a file that ends in {', '.join(_READERS)}.",
        )
    require_file(path)
    for number, (place, read) in enumerate(_READERS[path.suffix.lower()](path), 1):
        try:
            yield Line(number, place, read())
        except SdcoreError as error:
            yield Line(number, place, error=error)


Read = Callable[[], dict[str, Any]]


def _text(path: Path) -> Iterator[tuple[str, Read]]:
    for number, line in _numbered(path):
        if line and not line.startswith("#"):
            yield f"line {number}", lambda line=line: read_prompt_line(line)


def read_prompt_line(line: str) -> dict[str, Any]:
    """A prompt and the flags behind it. UsageError for a flag that is not known."""
    marks = list(_FLAG.finditer(f" {line}"))
    ends = [*(mark.start() for mark in marks), len(line) + 1][1:]
    values: dict[str, Any] = {"prompt": line[: marks[0].start()].strip() if marks else line}
    for mark, end in zip(marks, ends, strict=False):
        name = mark[1].lower().replace("_", "-")
        text = f" {line}"[mark.end() : end].strip().removeprefix("=").strip()
        if name == "prompt":
            values["prompt"] = _unquoted(text)
        elif name not in FLAGS:
            raise UsageError(
                f"The line has a flag --{mark[1]}.",
                f"Behind a prompt may stand --{', --'.join(FLAGS)}.",
                "Correct it, or write the line as JSON in a file of JSON lines.",
            )
        else:
            values[FLAGS[name]] = _of_text(FLAGS[name], _unquoted(text))
    if values["prompt"]:
        return values
    raise UsageError(
        "The line has no prompt.", "Only flags stand in it.", "Begin it with what to paint."
    )


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _of_text(name: str, text: str) -> Any:
    """A value that stands as text, as the type of its field."""
    if name in _WORDS:
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"The value of {name} is {text!r:.60}.",
            "It cannot be read as a number, or as JSON.",
            "Use a number, or leave it out.",
        ) from error


def _csv(path: Path) -> Iterator[tuple[str, Read]]:
    rows = csv.reader(_lines(path))
    try:
        names = [name.strip() for name in next(rows, list[str]())]
        if "prompt" not in names:
            raise FileError(
                f"{path} cannot be used.",
                "Its first row names the columns, and there is no column prompt.",
                "Name the columns as the fields of a job: prompt, seed, steps and so on.",
            )
        for row in rows:
            if any(row):
                yield f"line {rows.line_num}", lambda row=row: _of_row(names, row)
    except csv.Error as error:
        raise FileError(
            f"{path} cannot be read.",
            f"Line {rows.line_num} is no CSV: {error}.",
            "Correct that line.",
        ) from error


def _of_row(names: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) > len(names):
        raise UsageError(
            f"The line has {len(row)} values.",
            f"There are {len(names)} columns.",
            "Put values that hold a comma in quotation marks.",
        )
    # A cell that is empty says nothing.
    told = {name: text for name, text in zip(names, row, strict=False) if text != ""}
    return {name: _of_text(name, text) for name, text in told.items()}


def _json_lines(path: Path) -> Iterator[tuple[str, Read]]:
    def read(line: str) -> dict[str, Any]:
        try:
            return parse_json_object(line.encode())
        except ValueError as error:
            raise UsageError(
                "The line cannot be read.", f"It is no JSON object: {error}.", "Correct it."
            ) from error

    for number, line in _numbered(path):
        if line:
            yield f"line {number}", lambda line=line: read(line)


def _parquet(path: Path) -> Iterator[tuple[str, Read]]:
    from sdcore.training.data.extras import extra

    pyarrow = extra("pyarrow", "Parquet files")
    parquet = extra("pyarrow.parquet", "Parquet files")
    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1000):
            for row in cast("list[dict[str, Any]]", batch.to_pylist()):
                number += 1
                told = {name: value for name, value in row.items() if value is not None}
                yield f"row {number}", lambda told=told: told
    except (pyarrow.ArrowException, OSError) as error:  # pyright: ignore[reportUnknownVariableType]
        why = f"{' '.join(str(error).split())[:200].removesuffix('.')}."
        raise FileError(f"{path} cannot be read.", why, "Write it again.") from error


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line.strip()) for number, line in enumerate(_lines(path), 1))


def _lines(path: Path) -> Iterator[str]:
    """Lines of UTF-8 text with their ends, of bounded length."""
    with open_file(path) as file, _decoding(path):
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            if len(line) > LINE_BYTES:
                raise FileError(
                    f"{path} cannot be read.",
                    f"Line {number} has more than {LINE_BYTES:,} bytes.",
                    "Give a file with a job a line.",
                )
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")


@contextmanager
def _decoding(path: Path) -> Generator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} cannot be read.", "It is not UTF-8 text.", "Save it as UTF-8."
        ) from error


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Read]]]] = {
    ".txt": _text,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
