"""Captions in newcomers' words: what is wanted, in free order, among words that decide nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.emoji.data import own_words as words
from train.emoji.data.captions import (
    ANOTHER_NAME,
    CHINESE_BACKGROUNDS,
    CHINESE_PLACES,
    plural,
    with_article,
)
from train.emoji.data.layout import Drawn

if TYPE_CHECKING:
    from train.emoji.data.settings import DataSettings

FILLED = 0.45  # share of the captions with words that decide nothing
SIZE_SAID = {"big": 0.25, "": 0.0, "small": 1.0}  # share of the things alone of that size
ADJECTIVE = 0.2  # share of the things with one
CAPITALS = ((0.12, str.capitalize), (0.04, str.title), (0.04, str.upper))
MARKS = ("!", "!!", ".", ",", " ,", "?", "...", "!!!")
_ON = ("on a {} background", "on a {} background", "on {}", "with a {} background")
_ON += ("against a {} background", "{} background", "on a {} ground", "background {}")
_CHINESE_ON = ("{}背景", "{}背景", "{}的背景", "{}底", "背景是{}")


@dataclass(frozen=True)
class Wanted:
    """What a caption says.

    objects: one, or two different ones. count: of the one. style, background: as the settings call
    them; empty: the caption does not say it.
    """

    objects: tuple[Drawn, ...]
    count: int
    style: str
    background: str


class OwnCaptions:
    """Writes them.

    Args:
        settings: of the scenes; a concept without `words` has no Chinese caption.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._words, self._plurals = settings.words, settings.plurals
        self._chinese_share = settings.chinese_share
        self._chinese_styles = settings.chinese_styles()
        self._grounds = _by_background(words.GROUNDS)
        self._chinese_grounds = _by_background(words.CHINESE_GROUNDS)
        self._openings, self._endings = words.said(words.OPENINGS), words.said(words.ENDINGS)
        self._adjectives = words.said(words.ADJECTIVES)
        self._zh_openings = words.said(words.CHINESE_OPENINGS)
        self._zh_endings = words.said(words.CHINESE_ENDINGS)
        self._zh_adjectives = words.said(words.CHINESE_ADJECTIVES)

    def __call__(self, random: np.random.Generator, wanted: Wanted) -> tuple[str, tuple[str, ...]]:
        """The caption, and what it calls each object."""
        known = all(drawn.concept in self._words for drawn in wanted.objects)
        if known and random.random() < self._chinese_share:
            return self._chinese(random, wanted)
        return self._english(random, wanted)

    def _english(self, random: np.random.Generator, wanted: Wanted) -> tuple[str, tuple[str, ...]]:
        names = [self._name(random, drawn.concept) for drawn in wanted.objects]
        if wanted.count > 1:
            names = [plural(name, self._plurals) for name in names]
        things = [
            self._thing(random, *row, wanted.count)
            for row in zip(wanted.objects, names, strict=True)
        ]
        text = things[0]
        if len(things) == 2:
            between = _choose(random, words.JOINED)
            text = f"{text}{'' if between == ',' else ' '}{between} {things[1]}"
        parts = []
        if wanted.style:
            options = ("{} style", "in {} style", "{}", "drawn in {} style", "in {}")
            parts.append(_choose(random, options).format(wanted.style))
        place = wanted.objects[0].place
        alone = len(things) == wanted.count == 1
        if alone and (place != "center" or random.random() < 0.1):
            parts.append(_choose(random, words.PLACES[place]))
        if wanted.background:
            ground = _choose(random, (wanted.background, *self._grounds.get(wanted.background, ())))
            said = _choose(random, _ON).format(ground)
            parts.append(said.replace(" a orange", " an orange"))
        text = self._arranged(random, text, parts)
        if random.random() < FILLED:
            text = self._filled(random, text)
        return _in_capitals(random, text, names)

    def _thing(self, random: np.random.Generator, drawn: Drawn, name: str, count: int) -> str:
        alone = drawn.place and count == 1
        says = alone and random.random() < SIZE_SAID[drawn.size]
        size = _choose(random, words.SIZES[drawn.size]) if says else ""
        adjective = _choose(random, self._adjectives) if random.random() < ADJECTIVE else ""
        color = _choose(random, words.COLORS.get(drawn.color, (drawn.color,)))
        thing = " ".join(w for w in (size, adjective, color, name) if w)
        if count > 1:
            return f"{_choose(random, words.NUMBERS[count])} {thing}".strip()
        return thing if random.random() < 0.25 else with_article(thing)

    def _arranged(self, random: np.random.Generator, text: str, parts: list[str]) -> str:
        """The parts behind what is wanted, or in any order."""
        if random.random() < 0.7:
            between = _choose(random, (" ", " ", ", "))
            return between.join([text, *parts])
        order = random.permutation(len(parts) + 1)
        return ", ".join([[text, *parts][i] for i in order])  # "on red fox" would be a red fox

    def _filled(self, random: np.random.Generator, text: str) -> str:
        if random.random() < 0.55:
            text = f"{_choose(random, self._openings)} {text}"
        endings = int(random.integers(0, 4))
        for _ in range(endings):
            text += _choose(random, (", ", ", ", " ")) + _choose(random, self._endings)
        return text

    def _chinese(self, random: np.random.Generator, wanted: Wanted) -> tuple[str, tuple[str, ...]]:
        names = tuple(self._chinese_name(random, drawn.concept) for drawn in wanted.objects)
        things = [
            self._chinese_thing(random, *row, wanted.count)
            for row in zip(wanted.objects, names, strict=True)
        ]
        text = _choose(random, words.CHINESE_JOINED).join(things)
        place = wanted.objects[0].place
        alone = len(things) == wanted.count == 1
        if alone and (place != "center" or random.random() < 0.1):
            text += f"在{_choose(random, CHINESE_PLACES[place])}"
        before, parts = "", []
        if wanted.style:
            parts.append(self._chinese_styles[wanted.style] + "风格")
        if wanted.background:
            ground = CHINESE_BACKGROUNDS[wanted.background]
            ground = _choose(random, (ground, *self._chinese_grounds.get(wanted.background, ())))
            if random.random() < 0.25:
                before = f"{ground}背景上的"
            else:
                parts.append(
                    _choose(random, ("{}背景", "{}的背景", "{}底", "背景是{}")).format(ground)
                )
        if random.random() < FILLED:
            text = self._chinese_filled(random, text)
        text = before + text
        if random.random() < 0.7:
            return "，".join([text, *parts]), names
        order = random.permutation(len(parts) + 1)
        return "，".join([[text, *parts][i] for i in order]), names

    def _chinese_thing(
        self, random: np.random.Generator, drawn: Drawn, name: str, count: int
    ) -> str:
        alone = drawn.place and count == 1
        size = ""
        if alone and random.random() < SIZE_SAID[drawn.size]:
            size = _choose(random, words.CHINESE_SIZES[drawn.size])
        adjective = _choose(random, self._zh_adjectives) if random.random() < ADJECTIVE else ""
        color = _choose(random, words.CHINESE_COLORS[drawn.color]) if drawn.color else ""
        thing = size + adjective + color + name
        measure = self._words[drawn.concept].measure
        if count > 1:
            return f"{_choose(random, words.CHINESE_NUMBERS[count])}{measure}{thing}"
        return thing if random.random() < 0.45 else f"一{measure}{thing}"

    def _chinese_filled(self, random: np.random.Generator, text: str) -> str:
        if random.random() < 0.3:
            text = _choose(random, words.CHINESE_FRAMES).format(text)
        if random.random() < 0.5:
            text = _choose(random, self._zh_openings) + text
        for _ in range(int(random.integers(0, 3))):
            text += "，" + _choose(random, self._zh_endings)
        return text

    def _name(self, random: np.random.Generator, concept: str) -> str:
        others = self._words[concept].also if concept in self._words else []
        return _choose(random, others) if others and random.random() < ANOTHER_NAME else concept

    def _chinese_name(self, random: np.random.Generator, concept: str) -> str:
        first, *others = self._words[concept].zh
        return _choose(random, others) if others and random.random() < ANOTHER_NAME else first


def _in_capitals(
    random: np.random.Generator, text: str, names: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """The text in capitals now and then, with a mark behind it; names as it writes them."""
    spans, start = [], 0
    for name in names:
        found = re.compile(f"(?<![a-z]){re.escape(name)}(?![a-z])").search(text, start)
        assert found is not None, (text, name)
        start = found.end()
        spans.append(found.span())
    if random.random() < 0.12:
        text += _choose(random, MARKS)
    draw = random.random()
    for share, change in CAPITALS:
        if draw < share:
            text = change(text)
            break
        draw -= share
    return text, tuple(text[begin:end] for begin, end in spans)


def _by_background(grounds: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Background -> what else people call it."""
    found: dict[str, list[str]] = {}
    for name, backgrounds in grounds.items():
        for background in backgrounds:
            found.setdefault(background, []).append(name)
    return found


def _choose(random: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(random.integers(len(options)))]
