"""What lies in the folder of a training run, read for its report: anything may be missing.

    resolved.yaml            the settings in force
    metrics.jsonl            rows {"step": n, "loss": ..., ...}, any numbers
    evaluation.jsonl         rows of the same form: validation loss, drift, share of attention, ...
    data.json                an object that sums up the data
    samples/samples.json     {"rows": [{"step": n, "file": ..., "heatmap": ...}], "prompts": [...]}
                             with files in samples/; a row may have lists of files, one a prompt
    checkpoints/step-N       the newest one says how far the run has come

What cannot be read is named in the report and is no reason to stop a run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcore.checks import as_finite, as_int
from sdcore.errors import FileError
from sdcore.files.jsonfile import is_list, is_object, read_json
from sdcore.files.opening import open_file
from sdcore.training.settings import flat, read_yaml

_CHECKPOINT = re.compile(r"step-(\d+)\b")
_GREATEST = 1e100
_ELAPSED, _LEFT = "seconds", "seconds_left"  # columns by which the time left is known


@dataclass(frozen=True)
class Column:
    """One number over the steps of a run; NaN where a row has it and it is not finite."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class SampleRow:
    """The pictures of one validation, by prompt, and the heatmaps that belong to them."""

    step: int
    pictures: list[Path]
    heatmaps: list[Path]


@dataclass
class RunFolder:
    """All that a report shows."""

    folder: Path
    metrics: list[Column] = field(default_factory=list[Column])
    evaluation: list[Column] = field(default_factory=list[Column])
    settings: dict[str, object] = field(default_factory=dict[str, object])
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    prompts: list[str] = field(default_factory=list[str])
    samples: list[SampleRow] = field(default_factory=list[SampleRow])
    notes: list[str] = field(default_factory=list[str])

    @property
    def step(self) -> int:
        """The latest step that anything in the folder speaks of."""
        steps = [c.steps[-1] for c in (*self.metrics, *self.evaluation)]
        steps += [row.step for row in self.samples]
        checkpoints = self.folder / "checkpoints"
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
        steps += [int(found[1]) for name in names if (found := _CHECKPOINT.match(name))]
        return max(steps, default=0)

    @property
    def steps(self) -> int | None:
        """How many there are to be, by the settings."""
        return as_int(self.settings.get("run.steps"), 1)

    @property
    def seconds_left(self) -> float | None:
        """By the run's own word; else as long for each step as until now; else from images/s."""
        if self.steps is None:
            return None
        latest = {column.name: column.values[-1] for column in self.metrics}
        if (left := as_finite(latest.get(_LEFT))) is not None:
            return max(left, 0.0)
        missing = max(self.steps - self.step, 0)
        elapsed = next((column for column in self.metrics if column.name == _ELAPSED), None)
        if elapsed is not None and len(elapsed.steps) > 1:
            steps = elapsed.steps[-1] - elapsed.steps[0]
            seconds = as_finite(elapsed.values[-1] - elapsed.values[0])
            if steps > 0 and seconds is not None and seconds > 0:
                return missing * seconds / steps
        rate = as_finite(latest.get("images_per_second"))
        batch = as_int(self.settings.get("run.batch_size"), 1)
        accumulated = as_int(self.settings.get("run.accumulate"), 1) or 1
        return missing * batch * accumulated / rate if rate and batch else None


def read_run(folder: Path) -> RunFolder:
    """Everything of a run's folder that can be read."""
    run = RunFolder(folder)
    if (folder / "resolved.yaml").exists():
        try:
            run.settings = flat(read_yaml(folder / "resolved.yaml"))
        except FileError as error:
            run.notes.append(f"{error.what} {error.why}")
    run.metrics = _columns(folder / "metrics.jsonl", run.notes)
    run.evaluation = _columns(folder / "evaluation.jsonl", run.notes)
    run.data = _object(folder / "data.json", run.notes)
    samples = folder / "samples"
    listed = _object(samples / "samples.json", run.notes)
    prompts, rows = listed.get("prompts"), listed.get("rows")
    run.prompts = [str(prompt) for prompt in prompts] if is_list(prompts) else []
    run.samples = list(_sample_rows(samples, rows if is_list(rows) else []))
    return run


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except FileError as error:
        notes.append(f"{error.what} {error.why}")
        return {}


def _columns(path: Path, notes: list[str]) -> list[Column]:
    """The numbers of a file of rows. Of two rows of a step, as a resume leaves them, the later."""
    if not path.exists():
        return []
    columns: dict[str, dict[int, float]] = {}
    damaged = 0
    try:
        for row in _rows(path):
            step = as_int(row.get("step"), 0) if row is not None else None
            if row is None or step is None:
                damaged += 1
                continue
            for name, value in row.items():
                if name != "step" and (number := _number(value)) is not None:
                    columns.setdefault(name, {})[step] = number
    except FileError as error:
        notes.append(f"{path.name} cannot be read: {error.why}")
    if damaged:
        notes.append(f"{path.name} has {damaged} damaged line{'s' * (damaged > 1)}.")
    found = ((name, sorted(values.items())) for name, values in columns.items())
    return [Column(name, [s for s, _ in rows], [v for _, v in rows]) for name, rows in found]


def _rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a file of JSON lines; None for a damaged line, such as a torn last one."""
    with open_file(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield row if is_object(row) else None


def _number(value: Any) -> float | None:
    """A number of a row; None for anything else, NaN for one that no drawing could show."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or abs(value) > _GREATEST:  # a whole number may be too large for a float
        return math.nan
    return float(value) if abs(value) > 1 / _GREATEST else 0.0


def _sample_rows(folder: Path, rows: list[Any]) -> Iterator[SampleRow]:
    """In the order of steps; a row that names no file of the folder is left out."""
    found: dict[int, SampleRow] = {}
    for row in rows:
        step = as_int(row.get("step"), 0) if is_object(row) else None
        if not is_object(row) or step is None:
            continue
        pictures, heatmaps = (_files(folder, row, name) for name in ("file", "heatmap"))
        if pictures:
            found[step] = SampleRow(step, pictures, heatmaps)
    yield from (found[step] for step in sorted(found))


def _files(folder: Path, row: Mapping[str, Any], name: str) -> list[Path]:
    named: Any = row.get(name) or []
    names: list[Any] = named if is_list(named) else [named]
    paths = [folder / each for each in names if isinstance(each, str)]
    inside = folder.resolve()
    return [path for path in paths if path.resolve().is_relative_to(inside)]
