"""One HTML page that shows what was recorded of a picture; it needs no network and no other file.

The page may run its own script and style alone, named by their hashes, and show pictures that are
part of it. Whatever a prompt says is text: escaped in HTML, and data in the script.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdcore.app.explain_record import Explained, Word
from sdcore.files.html_page import as_script_data, fill_template, source_hash
from sdcore.image.data_url import data_url, resized
from sdcore.image.overlay import lay_over

_TEMPLATE = Path(__file__).with_name("explain_page.html")
_SMALL = 160  # longer side of the small pictures, in pixels
_LARGEST_PNG = 256  # larger pictures are JPEGs here


def fill_page(explained: Explained) -> str:
    """The page, as text."""
    slots = {
        "title": escape(_shorten(explained.prompt)),
        "picture": data_url(
            explained.picture, lossless=max(explained.picture.size) <= _LARGEST_PNG
        ),
        "width": str(explained.picture.width),
        "height": str(explained.picture.height),
        "prompt": _running_text(explained, "prompt", explained.prompt),
        "negative": _negative(explained),
        "special": "".join(_special(explained)),
        "notes": "".join(f"<li>{note}</li>" for note in _notes(explained)),
        "rows": _rows(explained, special=False),
        "special_rows": _rows(explained, special=True),
        "figures": "".join(_figure(explained, column) for column in explained.shown),
        "film": "".join(_film(explained)),
        "facts": "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
            for name, value in explained.facts.items()
        ),
        "data": as_script_data(page_data(explained)),
    }
    return fill_template(_TEMPLATE, slots)


def page_data(explained: Explained) -> dict[str, Any]:
    """What the page's script works with.

    `maps` holds, window by window, block by block, word by word, h w levels of 0 to 255 between the
    `ranges` of that map; each level as the difference to the one before, deflated, in base64.
    """
    levels: list[np.ndarray[Any, Any]] = []
    ranges: list[float] = []
    shares: list[float] = []
    for window in explained.maps:
        for block in window:
            for one in block:
                low, high = float(one.min()), float(one.max())
                scaled: np.ndarray[Any, Any] = (one - low) / max(high - low, 1e-12) * 255
                level: np.ndarray[Any, Any] = np.round(scaled).astype(np.uint8).ravel()
                levels.append(np.diff(level, prepend=0))
                ranges += [float(f"{low:.6g}"), float(f"{high:.6g}")]
                shares.append(float(f"{one.mean():.5g}"))
    packed = zlib.compress(np.concatenate(levels).astype(np.uint8).tobytes(), 9)
    return {
        "words": [{"name": w.name, "of": w.of, "noun": w.noun} for w in explained.words],
        "windows": [{"name": w.name, "steps": w.steps} for w in explained.windows],
        "blocks": [
            {"place": b.place, "level": b.level, "grid": b.grid, "layers": b.layers}
            for b in explained.blocks
        ],
        "ranges": ranges,
        "shares": shares,
        "maps": base64.b64encode(packed).decode(),
    }


def fill_index(pages: Sequence[tuple[str, Explained]]) -> str:
    """A page that leads to others, by their file names."""
    items = "".join(
        f'<li><a href="{escape(name)}"><img src="{_small(one.picture)}" alt="">'
        f"<span>{escape(one.prompt)}</span><small>seed {escape(str(one.facts.get('seed')))}"
        "</small></a></li>"
        for name, one in pages
    )
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;"
        "max-width:72rem;padding:0 1rem}ul{display:grid;gap:1rem;padding:0;list-style:none;"
        "grid-template-columns:repeat(auto-fill,minmax(11rem,1fr))}a{display:grid;gap:.3rem;"
        "color:inherit}img{width:100%;border-radius:8px}span{overflow-wrap:anywhere}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"img-src data:; style-src 'sha256-{source_hash(style)}'; base-uri 'none'; "
        "form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Explained prompts</title><style>{style}</style>"
        f"<h1>Explained prompts</h1><ul>{items}</ul></html>\n"
    )


def _running_text(explained: Explained, of: str, text: str) -> str:
    """A text with a button for each of its words."""
    parts: list[str] = []
    done = 0
    for column, word in enumerate(explained.words):
        if word.of != of or word.start is None:
            continue
        assert word.end is not None
        if word.start > done:
            parts.append(f"<span>{escape(text[done : word.start])}</span>")
        parts.append(_button(explained, column))
        done = max(done, word.end)
    if text[done:]:
        parts.append(f"<span>{escape(text[done:])}</span>")
    return "".join(parts)


def _special(explained: Explained) -> Iterator[str]:
    """Buttons for start, and end with padding, of the prompt and of the negative prompt."""
    for column, word in enumerate(explained.words):
        if word.start is None:
            yield _button(explained, column)
            yield "<small>(negative)</small> " if word.of == "negative" else " "


def _button(explained: Explained, column: int) -> str:
    word = explained.words[column]
    kinds = ["special"] if word.start is None else []
    kinds += ["cut"] if word.cut else ["ignored"] if word.ignored else []
    disabled = "" if word.has_map else ' aria-disabled="true"'
    said = f' title="{_state(word)}"' if _state(word) else ""
    return (
        f'<button type="button" class="{" ".join(["word", *kinds])}" data-column="{column}"'
        f' aria-pressed="false"{disabled}{said} dir="auto">{escape(word.name)}</button>'
    )


def _negative(explained: Explained) -> str:
    if explained.negative_prompt is None:
        return ""
    text = _running_text(explained, "negative", explained.negative_prompt)
    return f'<h2>Negative prompt</h2><p class="text" role="group">{text}</p>'


def _state(word: Word) -> str:
    if word.cut:
        return "cut off" if not word.pieces else "cut in part"
    return "hardly read" if word.ignored else ""


def _notes(explained: Explained) -> Iterator[str]:
    """HTML sentences on words that are hardly read, or not at all."""
    said = {
        "cut off": "The prompt is longer than the model reads. These words did not reach it, and "
        "had no effect: {}.",
        "cut in part": "The prompt is longer than the model reads. These words reached it in part "
        "alone: {}.",
        "hardly read": "No place of the picture reads these words more than an even share of all "
        "tokens would be: {}. The picture can show them all the same: end and padding, "
        "which it reads too, have read every word. To see, leave one out.",
    }
    for state, sentence in said.items():
        words = [w.name for w in explained.words if _state(w) == state and w.is_spoken]
        if words:
            named = (f"<b>{escape(name)}</b>" for name in dict.fromkeys(words))
            yield sentence.format(", ".join(named))
    for note in explained.notes:
        yield escape(note[:1].upper() + note[1:])


def _rows(explained: Explained, *, special: bool) -> str:
    """A row for each word, or for each start and end."""
    words = explained.words
    columns = [column for column in range(len(words)) if (words[column].start is None) == special]
    return "".join(_row(explained, column) for column in columns)


def _row(explained: Explained, column: int) -> str:
    word = explained.words[column]
    pieces = "".join(f"<code>{escape(piece)}</code>" for piece in word.pieces)
    details = [f"weight {word.weight:g}"] if word.weight != 1 else []
    details += ["negative prompt"] if word.of == "negative" else []
    details += [_state(word)] if _state(word) else []
    small = f" <small>{escape(', '.join(details))}</small>" if details else ""
    return (
        f'<tr data-column="{column}"><th scope="row" dir="auto">{escape(word.name)}</th>'
        f'<td class="pieces">{pieces}{small}</td>'
        f'<td class="share"><svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect width="{100 * word.share:.2f}" height="8"></rect></svg>'
        f"<span>{100 * word.share:.1f} %</span></td>"
        f'<td class="when">{_course(explained, column)}</td></tr>'
    )


def _course(explained: Explained, column: int) -> str:
    """A word's share from window to window, from 0 to its own largest, as a small curve."""
    if len(explained.windows) < 2 or not explained.words[column].has_map:
        return ""
    layers = np.array([block.layers for block in explained.blocks])
    shares = np.array([[m[column].mean() for m in maps] for maps in explained.maps])
    course = shares @ layers / layers.sum()
    x = np.linspace(1, 79, len(course))
    y = 19 - 18 * course / max(course.max(), 1e-12)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        '<svg class="course" viewBox="0 0 80 20" role="img" aria-label="'
        f"from {100 * course[0]:.1f} % at first to {100 * course[-1]:.1f} % at last"
        f'"><polyline points="{points}"></polyline></svg>'
    )


def _figure(explained: Explained, column: int) -> str:
    word = explained.words[column]
    overlay = lay_over(resized(explained.picture, _SMALL), explained.map_of(column))
    note = " (negative prompt)" if word.of == "negative" else ""
    name = escape(word.name)
    return (
        f'<figure><img src="{data_url(overlay)}" alt="Where {name} is read">'
        f'<figcaption dir="auto">{name}<small>{note} {100 * word.share:.1f} %</small>'
        "</figcaption></figure>"
    )


def _film(explained: Explained) -> Iterator[str]:
    """The picture expected at the end of each window, as `<img>`; nothing where there are none."""
    for number, window in enumerate(explained.windows):
        if window.picture is not None:
            yield (
                f'<img data-window="{number}" src="{_small(window.picture)}" '
                f'alt="" title="expected at {escape(window.name)}">'
            )


def _small(picture: Image.Image) -> str:
    return data_url(resized(picture, _SMALL))


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:99] + "…"
