"""Newcomers' prompts: the files are sound, and the judge reads number, colour and things."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.judge import Judge, separate
from bench.own_prompts import (
    FOLDER,
    KINDS,
    Asked,
    own_judge,
    own_table,
    perfect,
    read_asked,
    right,
    rows,
    some_of,
)
from sdcore.errors import FileError
from sdcore.training.settings import load_settings
from tests.bench.test_prompt_control import SHAPES, STYLES, draw
from train.emoji.data.drawings import load
from train.emoji.data.settings import DataSettings

CONFIG = Path(__file__).parents[2] / "configs" / "train" / "emoji_data.yaml"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("drawings")
    pictures = {f"{style}/{shape}": draw(shape, style) for style in STYLES for shape in SHAPES}
    save_file(pictures, folder / "drawings.safetensors")
    return DataSettings(
        concepts={name: name for name in SHAPES},
        styles={name: name for name in STYLES},
        folder=str(folder),
    )


def test_every_kind_has_a_hundred_prompts_in_both_languages() -> None:
    asked = read_asked(load_settings(DataSettings, CONFIG))
    counts = Counter((one.kind, one.language) for one in asked)
    for kind in KINDS:
        assert counts[kind, "English"] + counts[kind, "Chinese"] >= 100
        assert counts[kind, "Chinese"] >= 30
        assert any(one.held_out for one in asked if one.kind == kind)
    texts = [one.text for one in asked]
    assert len(set(texts)) == len(texts)
    colored = [one for one in asked if one.kind == "colors"]
    assert all(one.color and one.background for one in colored)
    assert all(one.number > 1 for one in asked if one.kind == "counts")
    assert all(len(one.things) == 2 for one in asked if one.kind == "pairs")


@pytest.mark.parametrize("line", ["a | fox | mauve", "a | fox | | | 7", "a fox", "a | fox +"])
def test_a_line_that_cannot_be_read_is_refused(line: str, tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / f"{kind}.txt").write_text(f"a fox | fox\n{line}\n", "utf-8")
    with pytest.raises(FileError, match="Line 2"):
        read_asked(load_settings(DataSettings, CONFIG), tmp_path)


def test_only_the_embedded_model_s_settings_have_all_that_is_asked_for(
    shapes: DataSettings,
) -> None:
    lines = sum(len((FOLDER / f"{kind}.txt").read_text("utf-8").splitlines()) for kind in KINDS)
    assert len(read_asked(load_settings(DataSettings, CONFIG))) == lines
    assert read_asked(shapes) == []


def asked(kind: str, *things: str, color: str = "", background: str = "", number: int = 1) -> Asked:
    answers = tuple((thing,) for thing in things)
    return Asked(kind, " and ".join(things), answers, color, background, number)


def test_real_drawings_are_read_as_asked(shapes: DataSettings) -> None:
    pairs = [asked("pairs", a, b) for a, b in zip(SHAPES, list(SHAPES)[1:], strict=False)]
    many = [asked("counts", name, number=n) for n in (2, 3) for name in SHAPES]
    one = [asked("unstyled", name, background="blue") for name in SHAPES]
    prompts = [*pairs, *many, *one]
    images = perfect(shapes)(prompts)
    readings = Judge(load(shapes), shapes.backgrounds).read(images)
    verdicts = [right(*pair, shapes) for pair in zip(prompts, readings, strict=True)]
    assert sum(v["all"] for v in verdicts) >= 0.9 * len(verdicts)
    colored = [
        asked("colors", n, color=c, background="white") for n in SHAPES for c in ("red", "green")
    ]
    readings = own_judge(shapes, load(shapes)).read(perfect(shapes)(colored))
    verdicts = [right(*pair, shapes) for pair in zip(colored, readings, strict=True)]
    assert all(v["color"] and v["background"] for v in verdicts)
    assert sum(v["concept"] for v in verdicts) >= 0.9 * len(verdicts)


def test_what_was_not_asked_for_is_wrong(shapes: DataSettings) -> None:
    painted = [
        asked("counts", "box", number=2),
        asked("pairs", "box", "tent"),
        asked("unstyled", "kite"),
    ]
    readings = Judge(load(shapes), shapes.backgrounds).read(perfect(shapes)(painted))
    others = [
        asked("counts", "box", number=3),
        asked("pairs", "box", "kite"),
        asked("unstyled", "tent"),
    ]
    wanted = [("number", "all"), ("both objects", "all"), ("concept", "all")]
    for other, reading, measures in zip(others, readings, wanted, strict=True):
        assert not any(right(other, reading, shapes)[m] for m in measures)
    blue = asked("colors", "box", color="blue", background="white")
    red = asked("colors", "box", color="red", background="white")
    reading = own_judge(shapes, load(shapes)).read(perfect(shapes)([blue]))[0]
    found = right(red, reading, shapes)
    assert found["concept"] and found["background"] and not found["color"] and not found["all"]


def test_some_are_evenly_taken_of_every_kind() -> None:
    asked = read_asked(load_settings(DataSettings, CONFIG))
    some = some_of(asked, 20)
    assert Counter(one.kind for one in some) == dict.fromkeys(KINDS, 20)
    assert {one.language for one in some} == {"English", "Chinese"}
    assert some_of(asked, 1000) == asked and some_of(asked, 0) == []


def test_rows_count_each_measure_where_it_is_asked(shapes: DataSettings) -> None:
    prompts = [asked("counts", "box", number=2), asked("unstyled", "kite", background="dark blue")]
    readings = Judge(load(shapes), shapes.backgrounds).read(perfect(shapes)(prompts))
    found = rows(prompts, readings, shapes)
    assert found["a number"]["number"] == (1, 1) and found["a number"]["style"] == (0, 0)
    assert found["no style named"]["background"] == (1, 1)
    assert found["no style named, Chinese"]["all"] == (0, 0)
    assert "| a number | 100.0" in own_table(found)


def test_what_encloses_another_is_one_thing_with_it_and_specks_are_none() -> None:
    seen = np.zeros((64, 64), bool)
    seen[10:22, 10:22] = True
    seen[12:20, 12:20] = False  # a ring
    seen[14:18, 14:18] = True
    seen[40:50, 40:52] = True
    seen[60, 60] = True
    masks = separate(seen)
    assert [int(mask.sum()) for mask in masks] == [96, 120]
    assert separate(np.zeros((64, 64), bool)) == []
