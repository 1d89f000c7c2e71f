"""Letters for pictures that are drawn here: a font that has them, or numbers in their place.

Pillow brings one font, of Latin letters. Others are those of the computer, by the names of their
files, which Pillow looks for where systems keep fonts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import cast

from PIL import ImageFont

from sdcore.errors import warn

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Those with Chinese, Japanese and Korean first; the last have other letters than Latin.
FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "NotoSansCJKsc-Regular.otf"),
    *("SourceHanSansSC-Regular.otf", "SourceHanSans.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Medium.ttc", "AppleSDGothicNeo.ttc"),
    *("msyh.ttc", "simsun.ttc", "simhei.ttf", "YuGothM.ttc", "malgun.ttf"),
    *("Arial Unicode.ttf", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf"),
)
_NO_LETTER = "\U0010fffe"  # a code point that never is one: fonts show what they have not


def font_for(texts: Iterable[str], size: int) -> tuple[Font, list[str]]:
    """A font for texts, and those of them, each once, of which it lacks letters.

    It is Pillow's own where that has all of them, else the first of this computer's that has the
    most.

    Args:
        size: in pixels.
    """
    wanted = list(dict.fromkeys(texts))
    best: tuple[Font, list[str]] = (own := ImageFont.load_default(size), _lacking(own, wanted))
    for name in FONTS:
        if not best[1]:
            break
        if (font := _installed(name, size)) is not None:
            lacking = _lacking(font, wanted)
            best = (font, lacking) if len(lacking) < len(best[1]) else best
    return best


def drawable(texts: Sequence[str], size: int) -> tuple[Font, list[str]]:
    """A font, and the texts as it can draw them: numbers for those of which no font has the
    letters, with a warning that says which are meant."""
    font, lacking = font_for(texts, size)
    if not lacking:
        return font, list(texts)
    numbers = {text: f"({number})" for number, text in enumerate(lacking, 1)}
    meant = ", ".join(f"{number} {text}" for text, number in numbers.items())
    warn(
        f"no font here has the letters of some names, for which numbers stand in the picture: "
        f"{meant}; with a font such as Noto Sans CJK installed they are drawn"
    )
    return font, [numbers.get(text, text) for text in texts]


def has_letters(font: Font, text: str) -> bool:
    """Whether a font draws each letter of a text as something else than what it lacks."""
    nothing = _drawn(font, _NO_LETTER)
    letters = {letter for letter in text if unicodedata.category(letter)[0] not in "ZCM"}
    return all(_drawn(font, letter) != nothing for letter in letters)


def _drawn(font: Font, letter: str) -> bytes:
    return bytes(cast("Iterable[int]", font.getmask(letter)))


def _lacking(font: Font, texts: Iterable[str]) -> list[str]:
    return [text for text in texts if not has_letters(font, text)]


@lru_cache(maxsize=64)
def _installed(name: str, size: int) -> Font | None:
    """A font of this computer; None where it has none of that name."""
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
