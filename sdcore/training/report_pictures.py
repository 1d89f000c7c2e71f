"""The pictures of a run in its report: a growing list, the base model's beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from sdcore.errors import FileError
from sdcore.image.data_url import data_url, resized
from sdcore.image.pictures import open_picture
from sdcore.training.report_data import SampleRow

MOST_ROWS = 24  # the base model's among them
MOST_CHARACTERS = 6_000_000  # of all pictures together, as they stand in the page
_SIZES = (768, 512, 384, 256, 160)  # of a picture's longer side, the largest that fits is taken
_MOST_PER_ROW = 16
_LOSSLESS = 128  # pictures up to this size are stored as they are


def shown_samples(rows: Sequence[SampleRow], prompts: Sequence[str]) -> str:
    """The rows as HTML: the base model's (step 0) for itself, the others from the newest on."""
    if not rows:
        return '<p class="hint">No pictures yet.</p>'
    for count in (MOST_ROWS, 12, 6, 3):
        chosen = _spread(rows, count)
        for size in _SIZES:
            # the newest row tells how much the others will be, before all are worked out
            if len(_row(chosen[-1], prompts, size)) * len(chosen) > 1.5 * MOST_CHARACTERS:
                continue
            parts = [_row(row, prompts, size) for row in chosen]
            if sum(map(len, parts)) <= MOST_CHARACTERS:
                return _joined(chosen, parts, len(rows), _spoken(chosen, prompts))
    return '<p class="hint">The pictures are too many for a page; they lie in the folder.</p>'


def _joined(chosen: Sequence[SampleRow], parts: Sequence[str], count: int, spoken: str) -> str:
    base = "".join(part for row, part in zip(chosen, parts, strict=True) if row.step == 0)
    others = [part for row, part in zip(chosen, parts, strict=True) if row.step > 0]
    fewer = ""
    if len(chosen) < count:
        fewer = f'<p class="hint">{len(chosen)} of {count} validations are shown.</p>'
    rest = "".join(reversed(others)) or '<p class="hint">No pictures of the trained model yet.</p>'
    aside = f'<div class="base">{base}</div>' if base else ""
    return f'{spoken}{fewer}<div class="samples">{aside}<div class="rows">{rest}</div></div>'


def _spoken(rows: Sequence[SampleRow], prompts: Sequence[str]) -> str:
    """The prompts, where they do not stand under a picture each."""
    if not prompts or any(len(row.pictures) > 1 for row in rows):
        return ""
    items = "".join(f"<li>{escape(prompt[:500])}</li>" for prompt in prompts[:_MOST_PER_ROW])
    return f'<ol class="prompts">{items}</ol>'


def _row(row: SampleRow, prompts: Sequence[str], size: int) -> str:
    title = "Base model" if row.step == 0 else f"Step {row.step:,}"
    figures: list[str] = []
    for number, picture in enumerate(row.pictures[:_MOST_PER_ROW]):
        several = len(row.pictures) > 1
        prompt = prompts[number][:500] if several and number < len(prompts) else ""
        alt = f"{title}: {prompt}" if prompt else title
        images = _image(picture, alt, size)
        if number < len(row.heatmaps):
            images += _image(row.heatmaps[number], f"Heatmap, {alt}", size)
        caption = f"<figcaption>{escape(prompt)}</figcaption>" if prompt else ""
        figures.append(f"<figure>{images}{caption}</figure>")
    return f'<div class="row"><h3>{title}</h3><div class="strip">{"".join(figures)}</div></div>'


def _image(path: Path, alt: str, size: int) -> str:
    try:
        stat = path.stat()
        url, width, height = _small(path, stat.st_mtime_ns, stat.st_size, size)
    except (FileError, OSError):
        return f'<p class="missing">{escape(path.name[:80])} cannot be read.</p>'
    return f'<img src="{url}" width="{width}" height="{height}" alt="{escape(alt)}">'


@lru_cache(maxsize=256)
def _small(path: Path, time: int, length: int, size: int) -> tuple[str, int, int]:
    """A picture's data URL and size; while a run goes on, only new files are worked out.

    Args:
        time, length: of the file, by which another one of that name is told.
    """
    picture = open_picture(path)
    if max(picture.size) > size:
        picture = resized(picture, size)
    url = data_url(picture, lossless=max(picture.size) <= _LOSSLESS, quality=85)
    return url, *picture.size


def _spread(rows: Sequence[SampleRow], most: int) -> list[SampleRow]:
    """At most so many rows: the first and the last, and others evenly between."""
    if len(rows) <= most:
        return list(rows)
    return [rows[number * (len(rows) - 1) // (most - 1)] for number in range(most)]
