"""Captions of emoji scenes as people write them: English and Chinese, in varied wording and order.

A caption says some or all of what is in a scene, and nothing that is not. Which wording it takes is
drawn from the scene's own random generator. With it comes what it calls each object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.emoji.data.layout import Drawn

if TYPE_CHECKING:
    from train.emoji.data.settings import DataSettings, Words

STYLE_SAID = 0.9  # share of the captions that name the style
ANOTHER_NAME = 0.2  # of the names that have synonyms
ARTICLE = 0.85  # of the names that take one

PLACE_WORDS = {
    "center": ("in the center", "in the middle"),
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
_STYLE_WORDS = ("in {} style", "drawn in {} style", "{} style", "in the style of {}")
_BACKGROUND_WORDS = ("on a {} background", "on {}", "with a {} background", "{} background")
_EACH_AT_A_SIDE = {  # relation -> where the first and the second object are
    "to the left of": ("left", "right"),
    "to the right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}

_PLURAL_ENDINGS = (  # the first that fits
    (r"fish$", "fish"),
    (r"(?<=[^aeiou])y$", "ies"),
    (r"(?<=[^f])fe?$", "ves"),  # wolf, knife; not cliff
    (r"(s|x|z|ch|sh)$", r"\1es"),
    (r"$", "s"),
)

CHINESE_BACKGROUNDS = {
    "white": "白色",
    "black": "黑色",
    "gray": "灰色",
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "light green": "浅绿色",
    "dark green": "深绿色",
    "light blue": "浅蓝色",
    "dark blue": "深蓝色",
    "purple": "紫色",
    "pink": "粉色",
}
CHINESE_PLACES = {
    "center": ("中间",),
    "left": ("左边",),
    "right": ("右边",),
    "top": ("上面", "上方"),
    "bottom": ("下面", "下方"),
}
CHINESE_SIZES = {"big": "大", "": "", "small": "小"}
CHINESE_RELATIONS = {
    "to the left of": "左边",
    "to the right of": "右边",
    "above": "上面",
    "below": "下面",
}


def chinese_words(words: Mapping[str, Words], styles: Iterable[str]) -> list[str]:
    """The words of which Chinese captions are made: Chinese is written without spaces.

    styles: as Chinese captions call them.
    """
    found = ["，", "在", "有", "是", "风格", "风格的", "背景"]
    found += [f"一{entry.measure}" for entry in words.values()]
    found += [name for entry in words.values() for name in entry.zh]
    found += [*CHINESE_BACKGROUNDS.values(), *filter(None, CHINESE_SIZES.values())]
    found += [place for names in CHINESE_PLACES.values() for place in names]
    found += [style.split()[-1] for style in styles]  # "霓虹风格" is written together
    return list(dict.fromkeys(found))


def plural(name: str, irregular: Mapping[str, str]) -> str:
    """The plural of an English name: as `irregular` has it, or else by rule ("loaf of bread", too).

    What is plural already ("grapes") stays as it is.
    """
    if name in irregular:
        return irregular[name]
    thing, of, what = name.partition(" of ")
    if of:
        return plural(thing, irregular) + of + what
    if _is_plural(name):
        return name
    ending, several = next(pair for pair in _PLURAL_ENDINGS if re.search(pair[0], name))
    return re.sub(ending, several, name, count=1)


class Captions:
    """Writes captions.

    Args:
        settings: of the scenes; a concept without `words` has no Chinese caption.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.words, self.chinese_share = settings.words, settings.chinese_share
        self.chinese_styles = settings.chinese_styles()
        self.plurals, self.plural_share = settings.plurals, settings.plural_share

    def one(
        self, random: np.random.Generator, drawn: Drawn, background: str
    ) -> tuple[str, tuple[str, ...]]:
        """The caption of a scene with one object, and what it calls that object."""
        if self._in_chinese(random, drawn):
            return self._chinese_one(random, drawn, background)
        adjective = drawn.size if drawn.size and random.random() < 0.85 else ""
        say_style = random.random() < STYLE_SAID
        before = say_style and random.random() < 0.2
        name = self._name(random, drawn.concept)
        article = random.random()
        several = article >= 1 - self.plural_share  # of those that would have had no article
        if several:
            name = plural(name, self.plurals)
        thing = " ".join(w for w in (adjective, drawn.style if before else "", name) if w)
        parts = [thing if several else _with_article(thing, article)]
        if say_style and not before:
            parts.append(_choose(random, _STYLE_WORDS).format(drawn.style))
        if random.random() < (0.25 if drawn.place == "center" else 0.9):
            parts.append(_choose(random, PLACE_WORDS[drawn.place]))
            if len(parts) == 3 and random.random() < 0.3:
                parts[1:] = parts[:0:-1]  # "on the left in flat style"
        return _with_background(random, " ".join(parts), background), (name,)

    def two(
        self,
        random: np.random.Generator,
        objects: tuple[Drawn, Drawn],
        relation: str,
        background: str,
    ) -> tuple[str, tuple[str, ...]]:
        """The caption of a scene with two objects, and what it calls each."""
        if self._in_chinese(random, *objects):
            return self._chinese_two(random, objects, relation, background)
        names, things = [], []
        for drawn in objects:
            names.append(self._name(random, drawn.concept))
            things.append(_with_article(names[-1], random.random()))
        first, second = things
        if random.random() < 0.7:
            text = f"{first} {relation} {second}"
        else:
            here, there = (PLACE_WORDS[place][0] for place in _EACH_AT_A_SIDE[relation])
            text = f"{first} {here} and {second} {there}"
        if random.random() < STYLE_SAID:
            text += " " + _choose(random, _STYLE_WORDS).format(objects[0].style)
        return _with_background(random, text, background), tuple(names)

    def _in_chinese(self, random: np.random.Generator, *objects: Drawn) -> bool:
        known = all(drawn.concept in self.words for drawn in objects)
        return bool(self.chinese_share) and known and random.random() < self.chinese_share

    def _name(self, random: np.random.Generator, concept: str) -> str:
        others = self.words[concept].also if concept in self.words else []
        return _choose(random, others) if others and random.random() < ANOTHER_NAME else concept

    def _chinese_one(
        self, random: np.random.Generator, drawn: Drawn, background: str
    ) -> tuple[str, tuple[str, ...]]:
        size = CHINESE_SIZES[drawn.size] if random.random() < 0.85 else ""
        name = self._chinese_name(random, drawn.concept)
        thing = size + name
        counted = f"一{self.words[drawn.concept].measure}{thing}"
        place = ""
        if random.random() < (0.25 if drawn.place == "center" else 0.9):
            place = _choose(random, CHINESE_PLACES[drawn.place])
        text = _choose(random, (counted, thing))
        if place:
            text = _choose(random, (f"{text}在{place}", f"{place}有{counted}"))
        style = self.chinese_styles[drawn.style]
        text = _chinese_rest(random, text, style, background, can_lead=not place)
        return text, (name,)

    def _chinese_two(
        self,
        random: np.random.Generator,
        objects: tuple[Drawn, Drawn],
        relation: str,
        background: str,
    ) -> tuple[str, tuple[str, ...]]:
        names = tuple(self._chinese_name(random, drawn.concept) for drawn in objects)
        first, second = names
        if random.random() < 0.5:
            first, second = (
                f"一{self.words[drawn.concept].measure}{name}"
                for drawn, name in zip(objects, names, strict=True)
            )
        if random.random() < 0.7:
            text = f"{first}在{second}{CHINESE_RELATIONS[relation]}"
        else:
            here, there = (CHINESE_PLACES[place][0] for place in _EACH_AT_A_SIDE[relation])
            text = f"{here}是{first}，{there}是{second}"
        style = self.chinese_styles[objects[0].style]
        text = _chinese_rest(random, text, style, background, can_lead=False)
        return text, names

    def _chinese_name(self, random: np.random.Generator, concept: str) -> str:
        first, *others = self.words[concept].zh
        return _choose(random, others) if others and random.random() < ANOTHER_NAME else first


def _with_article(thing: str, article: float) -> str:
    """An article before most things; `article` is drawn from 0 to 1."""
    return thing if article >= ARTICLE else with_article(thing)


def with_article(thing: str) -> str:
    """The thing with its article, unless it is plural."""
    return thing if _is_plural(thing) else f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _is_plural(thing: str) -> bool:
    return thing.endswith("s") and not thing.endswith(("ss", "us", "os"))  # scissors, grapes


def _with_background(random: np.random.Generator, text: str, background: str) -> str:
    if random.random() < 0.1:
        return text
    said = _choose(random, _BACKGROUND_WORDS).format(background)
    said = said.replace("a orange", "an orange")
    if random.random() < 0.15:
        return f"{said}, {text}"
    return f"{text} {said}" if random.random() < 0.6 else f"{text}, {said}"


def _chinese_rest(
    random: np.random.Generator, text: str, style: str, background: str, can_lead: bool
) -> str:
    """Style and background around what is drawn; `can_lead`: "霓虹风格的狐狸" is good Chinese."""
    parts = [text]
    if random.random() < STYLE_SAID:
        if can_lead and random.random() < 0.3:
            parts = [f"{style}风格的{text}"]
        else:
            parts.append(f"{style}风格")
    if random.random() < 0.9:
        said = f"{CHINESE_BACKGROUNDS[background]}背景"
        if random.random() < 0.15:
            parts.insert(0, said)
        else:
            parts.append(said)
    return "，".join(parts)


def _choose(random: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(random.integers(len(options)))]
