"""A training run as one HTML page: curves, pictures beside those of the base model, settings, data.

The page needs no network, no other file and no script; the script adds values under the pointer,
logarithmic scales, and keeps place and choices while the page is renewed. Whatever a caption or a
setting says is text: escaped in HTML, and data in the script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sdcore.files.atomic import replace_file, text_writer
from sdcore.files.html_page import as_script_data, fill_template
from sdcore.files.jsonfile import is_list, is_object
from sdcore.training.report_curves import Curve, curve_data, figure, make_curves, short
from sdcore.training.report_data import Column, RunFolder, read_run
from sdcore.training.report_pictures import shown_samples

REPORT = "report.html"
REFRESH = 30  # seconds between two looks at the file while the run goes on
_TEMPLATE = Path(__file__).with_name("report.html")
_TABLE_ROWS = 24
_ENTRIES, _DEPTH, _LONGEST = 200, 4, 2000  # of what settings and data may show
_MOST_COLUMNS = 8


def write_report(folder: Path, *, running: bool) -> Path:
    """Write report.html of a run from what lies in its folder; see `read_run`.

    At most 8 MB, whatever the run's length: curves are thinned out, pictures made smaller and
    fewer.

    Args:
        running: the page says so, and looks for a newer one every half minute.

    Returns:
        the page's path.

    Raises:
        FileError: the page cannot be written.
    """
    path = folder / REPORT
    replace_file(path, text_writer(fill_page(read_run(folder), running=running)))
    return path


def fill_page(run: RunFolder, *, running: bool) -> str:
    """The page, as text."""
    curves = make_curves(run.metrics, run.evaluation)
    last = max(run.step, *(curve.steps[-1] for curve in curves), 1)
    state = _state(run, running=running)
    renew = f'<meta http-equiv="refresh" content="{REFRESH}">'
    data = {"curves": curve_data(curves), "last": last, "refresh": REFRESH if running else 0}
    return fill_template(
        _TEMPLATE,
        {
            "refresh": f"<noscript>{renew}</noscript>" if running else "",
            "name": escape(_cut(run.folder.resolve().name or "run")),
            "state": escape(state),
            "short_state": escape(state.split(".")[0]),
            "kind": "running" if running else "ended",
            "progress": _progress(run),
            "latest": _latest(curves),
            "notes": "".join(f"<li>{escape(_cut(note))}</li>" for note in run.notes),
            "curves": "".join(figure(c, number, last) for number, c in enumerate(curves))
            or '<p class="hint">No numbers yet.</p>',
            "samples": shown_samples(run.samples, run.prompts),
            "tables": "".join(_tables(run)),
            "summary": _value(run.data) if run.data else '<p class="hint">Nothing is noted.</p>',
            "settings": _list(run.settings) or '<p class="hint">Nothing is noted.</p>',
            "data": as_script_data(data),
        },
    )


# --- how far it is -----------------------------------------------------------------------------


def _state(run: RunFolder, *, running: bool) -> str:
    """A sentence or two."""
    done = f"step {run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    if running:
        left = run.seconds_left
        return f"Running: {done}." + (f" About {_time(left)} left." if left is not None else "")
    if run.steps and run.step >= run.steps:
        return f"Finished: {run.steps:,} steps."
    return f"Stopped at {done}."


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes <= 1:
        return "a minute"
    if minutes < 120:
        return f"{minutes} minutes"
    hours = round(minutes / 60)
    return f"{hours} hours" if hours < 72 else f"{round(hours / 24)} days"


def _progress(run: RunFolder) -> str:
    if not run.steps:
        return ""
    return f'<progress value="{min(run.step, run.steps)}" max="{run.steps}"></progress>'


def _latest(curves: Sequence[Curve]) -> str:
    """The newest numbers: the smoothed one where a number is noisy."""
    items: list[str] = []
    for curve in curves[:8]:
        values = [v for v in curve.smoothed or curve.values if v == v]
        items.append(f"<div><dt>{escape(curve.title)}</dt><dd>{short(values[-1])}</dd></div>")
    return f"<dl>{''.join(items)}</dl>" if items else ""


# --- numbers, settings, data -------------------------------------------------------------------


def _tables(run: RunFolder) -> Iterator[str]:
    for title, columns in (("Evaluation", run.evaluation), ("Training", run.metrics)):
        if columns:
            yield f"<details><summary>{title}</summary>{_table(columns)}</details>"


def _table(columns: Sequence[Column]) -> str:
    """Rows spread over the run, the last among them."""
    found = [dict(zip(c.steps, c.values, strict=True)) for c in columns]
    steps = sorted({step for column in columns for step in column.steps})
    count = min(len(steps), _TABLE_ROWS)
    shown = [steps[(number + 1) * len(steps) // count - 1] for number in range(count)]
    head = "".join(f'<th scope="col">{escape(_cut(c.name, 80))}</th>' for c in columns)
    rows = (
        f'<tr><th scope="row">{step:,}</th>'
        + "".join(f"<td>{_cell(values.get(step))}</td>" for values in found)
        + "</tr>"
        for step in shown
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Numbers"><table><thead><tr>'
        f'<th scope="col">step</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return short(value) if value == value else "not finite"


def _list(entries: Mapping[str, Any]) -> str:
    items = [
        f"<div><dt>{escape(_cut(str(name), 200))}</dt><dd>{escape(_cut(_plain(value)))}</dd></div>"
        for name, value in list(entries.items())[:_ENTRIES]
    ]
    return f"<dl>{''.join(items)}</dl>{_more(len(entries))}" if items else ""


def _value(value: Any, depth: int = 0) -> str:
    """What JSON holds, as HTML: objects as lists of names, lists as lists."""
    if depth < _DEPTH and is_object(value):
        rows = "".join(
            f"<div><dt>{escape(_cut(name, 200))}</dt><dd>{_value(inner, depth + 1)}</dd></div>"
            for name, inner in list(value.items())[:_ENTRIES]
        )
        return f"<dl>{rows}</dl>{_more(len(value))}"
    if is_list(value) and (columns := _columns(value)):
        return _rows(value, columns)
    if depth < _DEPTH and is_list(value) and any(is_object(x) or is_list(x) for x in value):
        rows = "".join(f"<li>{_value(inner, depth + 1)}</li>" for inner in value[:_ENTRIES])
        return f"<ul>{rows}</ul>{_more(len(value))}"
    return escape(_cut(_plain(value)))


def _columns(entries: list[Any]) -> list[str]:
    """The names that a list of plain objects has in common; none where it is another list."""
    names = list(entries[0]) if entries and is_object(entries[0]) else []
    same = all(is_object(entry) and list(entry) == names for entry in entries)
    plain = same and not any(is_object(v) or is_list(v) for e in entries for v in e.values())
    return names if plain and len(names) <= _MOST_COLUMNS else []


def _rows(entries: list[Any], names: list[str]) -> str:
    head = "".join(f'<th scope="col">{escape(_cut(name, 80))}</th>' for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cut(_plain(x), 200))}</td>" for x in e.values()) + "</tr>"
        for e in entries[:_ENTRIES]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>{_more(len(entries))}'


def _plain(value: Any) -> str:
    if is_list(value):
        shown = ", ".join(str(inner) for inner in value[:_ENTRIES])
        return shown or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _more(count: int) -> str:
    return f'<p class="hint">{count - _ENTRIES:,} more.</p>' if count > _ENTRIES else ""


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"
