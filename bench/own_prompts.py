"""Prompts as newcomers type them, in files of one kind each, and what a picture of them must show.

They were written without a look at the wording of the training captions. A line of
bench/prompts/*.txt is the prompt and, behind bars, what it asks for:

    prompt | things | colour of the thing | background | how many

"a/b" are two answers that are both right, "a + b" are two things. Where no style is asked for, the
first of the settings is right. "blue" is right for a light and for a dark blue background.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bench.shares import Tally, percent
from bench.verdict import AXES
from sdcore.errors import FileError
from train.emoji.data.layout import GROUPS, SIZES, Drawn, Scene, box_at, box_beside
from train.emoji.data.own_words import held_out

if TYPE_CHECKING:
    from bench.judge import Judge, Reading
    from train.emoji.data.settings import DataSettings

FOLDER = Path(__file__).parent / "prompts"
KINDS = {  # name of the file -> of the rows
    "unstyled": "no style named",
    "filler": "words that say nothing",
    "pairs": "two things",
    "colors": "a colour",
    "counts": "a number",
}
MEASURES = ("concept", "style", "color", "background", "number", "both objects", "all")


@dataclass(frozen=True)
class Asked:
    """A prompt and what it asks for.

    Attributes:
        kind: one of `KINDS`.
        things: for each thing, the concepts that are right.
        color, background: empty where none is asked for.
        number: how many of the one thing.
        held_out: training never showed the drawing, the colour, the number or the pair.
    """

    kind: str
    text: str
    things: tuple[tuple[str, ...], ...]
    color: str
    background: str
    number: int
    held_out: bool = False

    @property
    def language(self) -> str:
        return "Chinese" if re.search("[\u4e00-\u9fff]", self.text) else "English"


def read_asked(settings: DataSettings, folder: Path = FOLDER) -> list[Asked]:
    """All prompts, by kind and then in the order of their file.

    Those of things or backgrounds that the settings do not have are left out.

    Raises:
        FileError: a line cannot be read.
    """
    found = []
    for kind in KINDS:
        path = folder / f"{kind}.txt"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            asked = _parsed(kind, line)
            if asked is None:
                raise FileError(
                    f"Line {number} of {path} cannot be used.",
                    f"It is {line!r:.80}, with a colour or a number that no scene has.",
                    "Write: prompt | things | colour | background | how many.",
                )
            if _can_show(settings, asked):
                found.append(replace(asked, held_out=_is_held_out(settings, asked)))
    return found


def some_of(asked: Sequence[Asked], most: int) -> list[Asked]:
    """At most so many of each kind, evenly out of their order."""
    found: list[Asked] = []
    for kind in KINDS:
        own = [one for one in asked if one.kind == kind]
        count = min(most, len(own))
        found += [own[i * len(own) // count] for i in range(count)]
    return found


def _parsed(kind: str, line: str) -> Asked | None:
    from train.emoji.data.colors import COLORS

    parts = [part.strip() for part in line.split("|")]
    text, things, color, background, number = [*parts, "", "", "", ""][:5]
    answers = tuple(tuple(a.strip() for a in thing.split("/")) for thing in things.split("+"))
    known = color in ("", *COLORS) and number in ("", *map(str, GROUPS))
    known = known and bool(text) and all(answer for thing in answers for answer in thing)
    return Asked(kind, text, answers, color, background, int(number or 1)) if known else None


def _can_show(settings: DataSettings, asked: Asked) -> bool:
    names = {answer for thing in asked.things for answer in thing}
    grounds = not asked.background or bool(_grounds(settings, asked.background))
    return names <= settings.concepts.keys() and grounds


def _is_held_out(settings: DataSettings, asked: Asked) -> bool:
    style, first = next(iter(settings.styles)), asked.things[0][0]
    pair = {thing[0] for thing in asked.things}
    return (
        any((style, thing) in settings.held_out_pairs() for thing in pair)
        or pair in [set(kept_apart) for kept_apart in settings.held_out_combinations]
        or (bool(asked.color) and held_out("color", f"{asked.color} {first}"))
        or (asked.number > 1 and held_out("count", f"{asked.number} {first}"))
    )


def _grounds(settings: DataSettings, said: str) -> list[str]:
    """The backgrounds that a word may mean."""
    return [name for name in settings.backgrounds if name == said or name.endswith(f" {said}")]


def own_judge(settings: DataSettings, drawings: Mapping[tuple[str, str], np.ndarray]) -> Judge:
    """The judge of coloured things: it knows the drawings of the first style in every colour."""
    from bench.judge import Judge
    from train.emoji.data.colors import COLORS, recolor

    style = next(iter(settings.styles))
    plain = {key: drawing for key, drawing in drawings.items() if key[0] == style}
    bank = dict(plain)
    for (_, concept), drawing in plain.items():
        bank |= {(color, concept): recolor(drawing, color) for color in COLORS}
    return Judge(bank, settings.backgrounds, settings.image_size)


def right(asked: Asked, reading: Reading, settings: DataSettings) -> dict[str, bool]:
    """What the picture got right, of what the prompt asks."""
    found: dict[str, bool] = {}
    if len(asked.things) == 2:
        seen = [[reading.halves[half] for half in ends] for ends in AXES]
        found["both objects"] = any(_both(asked.things, *pair) for pair in seen)
    elif asked.number > 1:
        same = [name in asked.things[0] for name in reading.things]
        found["concept"] = sum(same) * 2 > len(same)
        found["number"] = len(same) == asked.number
    else:
        found["concept"] = reading.concept in asked.things[0]
    if asked.color:
        found["color"] = reading.color == asked.color
    if asked.kind in ("unstyled", "filler"):
        found["style"] = reading.style == next(iter(settings.styles))
    if asked.background:
        found["background"] = reading.background in _grounds(settings, asked.background)
    # The style goes without saying: what was asked for can be right in another.
    found["all"] = all(value for name, value in found.items() if name != "style")
    return found


def _both(things: tuple[tuple[str, ...], ...], first: str, second: str) -> bool:
    a, b = things
    return (first in a and second in b) or (first in b and second in a)


def rows(
    asked: Sequence[Asked], readings: Sequence[Reading], settings: DataSettings
) -> dict[str, dict[str, Tally]]:
    """Row of the table -> hits and number of prompts of each of `MEASURES`."""
    verdicts = [right(*pair, settings) for pair in zip(asked, readings, strict=True)]
    tests: dict[str, Callable[[Asked], bool]] = {
        "": lambda one: True,
        ", English": lambda one: one.language == "English",
        ", Chinese": lambda one: one.language == "Chinese",
        ", held out": lambda one: one.held_out,
    }
    found: dict[str, dict[str, Tally]] = {}
    for kind, label in KINDS.items():
        for part, test in tests.items():
            chosen = [v for a, v in zip(asked, verdicts, strict=True) if a.kind == kind and test(a)]
            found[label + part] = {
                measure: (sum(v.get(measure, False) for v in chosen),
                          sum(measure in v for v in chosen))
                for measure in MEASURES
            }  # fmt: skip
    return found


def own_table(found: dict[str, dict[str, Tally]]) -> str:
    """Markdown: percent, 95 % interval and number of prompts."""
    lines = ["| prompts | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, tallies in found.items():
        lines.append(f"| {name} | " + " | ".join(percent(tallies[m]) for m in MEASURES) + " |")
    return "\n".join(lines)


def measure_own(
    settings: DataSettings,
    judge: Judge,
    paint: Callable[[Sequence[Asked]], list[Image.Image]],
    asked: Sequence[Asked],
) -> tuple[dict[str, dict[str, Tally]], list[tuple[Asked, Reading, Image.Image]]]:
    """Rows of the table, and each prompt with what was read in its picture.

    Args:
        judge: of things in their own colours; coloured ones have `own_judge`.
        paint: prompts -> pictures.
    """
    from train.emoji.data.drawings import load

    images = paint(asked)
    colored = own_judge(settings, load(settings))
    readings: list[Any] = [None] * len(asked)
    for one, has in ((judge, False), (colored, True)):
        chosen = [i for i, a in enumerate(asked) if bool(a.color) == has]
        for i, reading in zip(chosen, one.read([images[i] for i in chosen]), strict=True):
            readings[i] = reading
    return rows(asked, readings, settings), list(zip(asked, readings, images, strict=True))


def perfect(
    settings: DataSettings, seed: int = 0
) -> Callable[[Sequence[Asked]], list[Image.Image]]:
    """Paints real drawings as each prompt asks, a little off their places: the ceiling."""
    from train.emoji.data.scenes import Scenes

    scenes, random = Scenes(settings), np.random.default_rng(seed)

    def paint(asked: Sequence[Asked]) -> list[Image.Image]:
        painted = [_as_asked(one, settings, random) for one in asked]
        return [Image.fromarray(scenes.picture(scene)) for scene in painted]

    return paint


def _as_asked(asked: Asked, settings: DataSettings, random: np.random.Generator) -> Scene:
    style, names = next(iter(settings.styles)), [thing[0] for thing in asked.things]
    places = GROUPS[2] if len(names) == 2 else GROUPS.get(asked.number)
    boxes = [box_beside(*p) for p in places] if places else [box_at("center", SIZES["big"])]
    names = names if len(names) == len(boxes) else names * len(boxes)
    grounds = _grounds(settings, asked.background) if asked.background else []
    background = grounds[0] if grounds else next(iter(settings.backgrounds))
    objects = tuple(
        Drawn(name, style, "", "", _moved(box, settings.image_size, random), asked.color)
        for name, box in zip(names, boxes, strict=True)
    )
    return Scene(objects, background, "", asked.text)


def _moved(
    box: tuple[int, int, int], side: int, random: np.random.Generator
) -> tuple[int, int, int]:
    x, y, size = box
    size -= int(random.integers(0, 4))
    x, y = (int(np.clip(v + random.integers(0, 3), 0, side - size)) for v in (x, y))
    return x, y, size
