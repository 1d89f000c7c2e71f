"""Pictures in rows and columns with their names, as one picture for papers and slides."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from sdcore.image.letters import Font, drawable

_GAP, _LETTER = 8, 16
_LINE = _LETTER + 4
_ROW_NAME = 24  # letters of a row's name in one line


def labelled_grid(
    pictures: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    side: int = 192,
) -> Image.Image:
    """A white sheet: a name over each column, one before each row; "" is no name.

    Names of which no font here has the letters are numbers, which a warning explains.

    Args:
        pictures: row by row, all of one size. Small ones are enlarged.
        side: the least length of a picture's shorter side, in pixels.
    """
    font, drawn = drawable([*columns, *rows], _LETTER)
    columns, rows = drawn[: len(columns)], drawn[len(columns) :]
    width, height = pictures[0][0].size
    scale = max(1, -(-side // min(width, height)))
    width, height = width * scale, height * scale
    lines = [_wrapped(name, 2 * width // _LETTER, font) or [""] for name in columns]
    top = _GAP + _LINE * max(len(each) for each in lines)
    names = [_wrapped(name, _ROW_NAME, font) for name in rows]
    widest = max((round(font.getlength(line)) for name in names for line in name), default=0)
    left = _GAP + (widest + _GAP if widest else 0)
    across, down = width + _GAP, height + _GAP
    sheet = Image.new("RGB", (left + len(columns) * across, top + len(rows) * down), "white")
    draw = ImageDraw.Draw(sheet)
    for column, each in enumerate(lines):
        at = (left + column * across, top - _LINE * len(each))
        draw.multiline_text(at, "\n".join(each), "black", font, spacing=_LINE - _LETTER)
    for row, name in enumerate(names):
        y = top + row * down
        at = (_GAP, y + height // 2)
        draw.text(at, "\n".join(name), "black", font, anchor="lm", spacing=_LINE - _LETTER)
        for column, picture in enumerate(pictures[row]):
            enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left + column * across, y))
    return sheet


def _wrapped(name: str, letters: int, font: Font) -> list[str]:
    """A name in lines of so many Latin letters; of wide ones, as Chinese has, half as many."""
    wide = font.getlength(name) > 0.8 * _LETTER * len(name)
    return textwrap.wrap(name, max(8, letters) // (1 + wide))
