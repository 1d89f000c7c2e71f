"""Scenes as newcomers ask for them: no style named, colours, counts, pairs, words that say nothing.

What is not said is always the same, so that the words alone decide: the first style of the
settings, a large thing in the middle, the first of the light backgrounds from which the thing
stands out. A colour before a thing's name is the thing's: its own by its pixels, or one that it is
recoloured in. A thing at another place is of the middle size, unless it is said to be small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from train.emoji.data.captions import plural
from train.emoji.data.colors import COLORS, main_color, recolor
from train.emoji.data.layout import GROUPS, PLACES, SIZES, Drawn, Scene, box_at, box_beside
from train.emoji.data.own_captions import OwnCaptions, Wanted
from train.emoji.data.own_words import held_out

if TYPE_CHECKING:
    from train.emoji.data.settings import DataSettings

Item = TypeVar("Item")

KINDS = {"plain": 0.3, "styled": 0.1, "colored": 0.22, "pair": 0.22, "group": 0.16}
PLACED = 0.2  # of the things alone stand somewhere
SMALL = 0.2  # of the things alone are said to be small
OWN_COLOR = 0.35  # of the coloured things are in their own colour, where it has a name
COLORED_OF_MANY = 0.15  # of the pairs and the groups
LIGHT = ("white", "light blue", "light green", "yellow", "pink")  # where none is asked for
APART = 95.0  # levels of RGB by which a thing and its background differ
SHRUNK = 4  # colours are read from every fourth pixel, each way


class OwnScenes:
    """Composes scenes of newcomers' prompts.

    Args:
        settings: of the scenes.
        drawings: (style, concept) -> RGBA picture (S, S, 4), uint8.
        pairs: the (style, concept) pairs that may be shown.
    """

    def __init__(
        self,
        settings: DataSettings,
        drawings: Mapping[tuple[str, str], np.ndarray],
        pairs: Sequence[tuple[str, str]],
    ) -> None:
        self.settings, self._pairs = settings, pairs
        self.style = next(iter(settings.styles))
        self._concepts = [concept for style, concept in pairs if style == self.style]
        self._drawings = {c: drawings[self.style, c] for c in self._concepts}
        self._own = {c: main_color(*_pixels(d)) for c, d in self._drawings.items()}
        named = set(COLORS)
        free = [c for c in self._concepts if not named & set(c.split())]  # "red apple" says it
        self._colored = {
            concept: [color for color in COLORS if self._can_be(concept, color)] for concept in free
        }
        self._countable = [c for c in self._concepts if countable(c, settings.plurals)]
        self._kept_apart = {frozenset(pair) for pair in settings.held_out_combinations}
        self._captions = OwnCaptions(settings)

    def compose(self, random: np.random.Generator) -> Scene:
        """A scene, with its caption."""
        kind = tuple(KINDS)[random.choice(len(KINDS), p=tuple(KINDS.values()))]
        objects: tuple[Drawn, ...]
        relation, said, count = "", "", 1
        if kind == "pair":
            objects, relation = self._pair(random), "to the left of"
        elif kind == "group":
            objects = self._group(random)
            count = len(objects)
        else:
            objects = (self._one(random, kind),)
            said = objects[0].style if kind == "styled" else ""
        background, told = self._background(random, objects)
        wanted = Wanted(
            objects[:1] if count > 1 else objects, count, said, background if told else ""
        )
        caption, names = self._captions(random, wanted)
        return Scene(_drawn_as(objects, self._own), background, relation, caption, names)

    def _one(self, random: np.random.Generator, kind: str) -> Drawn:
        place = PLACES[random.integers(1, len(PLACES))] if random.random() < PLACED else "center"
        size = "" if place != "center" else "big"
        size = "small" if random.random() < SMALL else size
        style, concept, color = self.style, _choose(random, self._concepts), ""
        if kind == "styled":
            style, concept = _choose(random, self._pairs)
        elif kind == "colored":
            concept, color = self._color(random)
        return Drawn(concept, style, size, place, box_at(place, SIZES[size]), color)

    def _color(self, random: np.random.Generator, concept: str = "") -> tuple[str, str]:
        """A thing and a colour that it may have; its own colour is named, too."""
        concept = concept or _choose(random, list(self._colored))
        own = self._own[concept]
        if random.random() < OWN_COLOR and own in self._colored.get(concept, ()):
            return concept, own
        colors = self._colored.get(concept, ())
        return concept, _choose(random, colors) if colors else ""

    def _pair(self, random: np.random.Generator) -> tuple[Drawn, ...]:
        while True:
            pair = [_choose(random, self._concepts) for _ in range(2)]
            if pair[0] != pair[1] and frozenset(pair) not in self._kept_apart:
                break
        colored = random.random() < COLORED_OF_MANY
        colors = [self._color(random, concept)[1] if colored else "" for concept in pair]
        places = zip(pair, colors, (-1, 1), strict=True)
        return tuple(
            Drawn(concept, self.style, "small", "", box_beside(side, 0), color)
            for concept, color, side in places
        )

    def _group(self, random: np.random.Generator) -> tuple[Drawn, ...]:
        while True:
            count, concept = int(_choose(random, list(GROUPS))), _choose(random, self._countable)
            if not held_out("count", f"{count} {concept}"):
                break
        colored = random.random() < COLORED_OF_MANY
        color = self._color(random, concept)[1] if colored else ""
        return tuple(
            Drawn(concept, self.style, "small", "center", box_beside(*place), color)
            for place in GROUPS[count]
        )

    def _background(
        self, random: np.random.Generator, objects: Sequence[Drawn]
    ) -> tuple[str, bool]:
        """A background, and whether the caption names it."""
        colored = any(drawn.color for drawn in objects)
        told = random.random() < (0.75 if colored else 0.35)
        known = self.settings.backgrounds
        names = list(known) if told else [name for name in LIGHT if name in known] or list(known)
        shades = [self._shade(d) for d in objects if d.style == self.style]
        clear = [n for n in names if all(_distance(known[n], s) > APART for s in shades)] or names
        return _choose(random, clear) if told else clear[0], told

    def _shade(self, drawn: Drawn) -> tuple[int, int, int]:
        return COLORS[drawn.color or self._own[drawn.concept]]

    def _can_be(self, concept: str, color: str) -> bool:
        """Whether the drawing in that colour is told to have it, and training may show it."""
        if held_out("color", f"{color} {concept}"):
            return False
        if self._own[concept] == color:
            return True
        pixels, weight = _pixels(self._drawings[concept])
        rgba = np.concatenate([pixels, weight[..., None] * 255], -1).astype(np.uint8)
        return main_color(recolor(rgba, color)[..., :3], weight) == color


def countable(concept: str, plurals: Mapping[str, str]) -> bool:
    """Whether English tells one from several: not grapes, not milk."""
    return plural(concept, plurals) != concept or concept in ("fish", "sheep", "deer")


def _drawn_as(objects: tuple[Drawn, ...], own: Mapping[str, str]) -> tuple[Drawn, ...]:
    """The same, where a thing that has its own colour is not recoloured."""
    return tuple(
        replace(drawn, color="") if drawn.color and own[drawn.concept] == drawn.color else drawn
        for drawn in objects
    )


def _pixels(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (s, s, 3) and how opaque they are (s, s), of a sample of the pixels."""
    some = picture[::SHRUNK, ::SHRUNK]
    return some[..., :3], some[..., 3] / 255.0


def _distance(a: Sequence[int], b: Sequence[int]) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


def _choose(random: np.random.Generator, options: Sequence[Item]) -> Item:
    return options[int(random.integers(len(options)))]
