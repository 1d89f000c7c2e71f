"""Names on pictures are drawn with a font that has them, or as numbers that are explained."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops, ImageFont

from sdcore.image import letters
from sdcore.image.grid import _wrapped, labelled_grid  # pyright: ignore
from sdcore.image.letters import drawable, font_for, has_letters

PICTURES = [[Image.new("RGB", (64, 64), "red")] * 3]


def dejavu() -> None:
    try:
        ImageFont.truetype("DejaVuSans.ttf", 16)
    except OSError:
        pytest.skip("needs the font DejaVu Sans")


def test_letters_that_a_font_has_not_are_found_out() -> None:
    own = ImageFont.load_default(16)
    assert has_letters(own, "a fox, (red:1.3) -") and has_letters(own, "")
    assert not has_letters(own, "a fox, 狐狸")


def test_latin_names_are_drawn_with_pillows_own_font() -> None:
    font, lacking = font_for(["a fox", "red"], 16)
    assert lacking == [] and font.getname() == ImageFont.load_default(16).getname()  # pyright: ignore


def test_another_font_is_taken_where_it_has_more(monkeypatch) -> None:
    dejavu()
    monkeypatch.setattr(letters, "FONTS", ("no such font.ttf", "DejaVuSans.ttf"))
    font, lacking = font_for(["лиса", "狐狸"], 16)
    assert font.getname()[0] == "DejaVu Sans" and lacking == ["狐狸"]  # pyright: ignore


def test_without_a_font_numbers_stand_for_names_and_are_told(monkeypatch) -> None:
    monkeypatch.setattr(letters, "FONTS", ())
    with pytest.warns(
        UserWarning, match=r"\(1\) 狐狸, \(2\) 猫; with a font such as Noto Sans CJK"
    ):
        _, drawn = drawable(["狐狸", "a fox", "猫", "狐狸"], 16)
    assert drawn == ["(1)", "a fox", "(2)", "(1)"]
    with pytest.warns(UserWarning, match="numbers stand in the picture"):
        sheet = labelled_grid(PICTURES, ["picture", "狐狸", "猫"], [""])
    plain = labelled_grid(PICTURES, ["picture", "(1)", "(2)"], [""])
    assert ImageChops.difference(sheet, plain).getbbox() is None


def test_wide_letters_do_not_run_into_the_next_column() -> None:
    assert _wrapped("狐" * 30, 24, Wide()) == ["狐" * 12] * 2 + ["狐" * 6]  # pyright: ignore


class Wide:
    """The measures of a Chinese font: a square for each letter."""

    def getlength(self, text: str) -> float:
        return 16.0 * len(text)
