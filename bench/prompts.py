"""The fixed prompts of the prompt-control measurement, and the painter who obeys every word.

A prompt says all of it, in the wording of the training captions: concept, size, style, place and
background, or two objects and how they stand to each other. A share asks for what training never
showed: held-out (style, concept) pairs, and held-out combinations of two objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from train.data.captions import PLACE_WORDS
from train.data.scenes import MARGIN, PLACES, RELATIONS, SIZES, Drawn, Scene, Scenes
from train.data.settings import DataSettings

TWO_OBJECTS_SHARE = 0.2  # of the prompts
HELD_OUT_OF_ONE = 0.25  # of the prompts with one object: a (style, concept) pair never shown
HELD_OUT_OF_TWO = 0.5  # of the prompts with two objects: a combination never shown
# A big object fills the picture, so it has no place of its own; the others stand everywhere.
LAYOUTS = [("big", "")] * len(PLACES)
LAYOUTS += [(size, place) for size in ("", "small") for place in PLACES]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what a picture of it must show.

    Attributes:
        concepts: the object, or the first and the second object.
        place: one of `PLACES`, or empty where none is asked for.
        relation: where the first object is, seen from the second; empty for one object.
        held_out: training never showed this pair or combination.
    """

    text: str
    concepts: tuple[str, ...]
    style: str
    background: str
    size: str
    place: str
    relation: str
    held_out: bool


def compose(settings: DataSettings, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts, a function of the arguments; all kinds come evenly, in shuffled order.

    Shares of a kind that the settings lack (nothing held out, no scenes with two objects) go to
    the other kinds.
    """
    random = np.random.default_rng(seed)
    twos = settings.two_objects_share > 0 and len(settings.concepts) > 2
    two = round(TWO_OBJECTS_SHARE * count) if twos else 0
    prompts = _one_object(settings, count - two, random) + _two_objects(settings, two, random)
    return [prompts[i] for i in random.permutation(count)]


def _one_object(settings: DataSettings, count: int, random: np.random.Generator) -> list[Prompt]:
    held_out = sorted(settings.held_out_pairs())
    seen = [(s, c) for s in settings.styles for c in settings.concepts if (s, c) not in held_out]
    unseen_count = round(HELD_OUT_OF_ONE * count) if held_out else 0
    kinds = ((False, seen, count - unseen_count), (True, held_out, unseen_count))
    prompts = []
    for unseen, pairs, number in kinds:
        drawings, layouts = _evenly(pairs, random), _evenly(LAYOUTS, random)
        backgrounds = _evenly(list(settings.backgrounds), random)
        for _ in range(number):
            (style, concept), (size, place) = next(drawings), next(layouts)
            background = next(backgrounds)
            words = f"{_article(f'{size} {concept}'.strip())} in {style} style"
            where = [PLACE_WORDS[place][0]] if place else []
            text = " ".join([words, *where, _on(background)])
            prompts.append(Prompt(text, (concept,), style, background, size, place, "", unseen))
    return prompts


def _two_objects(settings: DataSettings, count: int, random: np.random.Generator) -> list[Prompt]:
    concepts, backgrounds = list(settings.concepts), _evenly(list(settings.backgrounds), random)
    held_out = [pair for pair in settings.held_out_combinations if set(pair) <= set(concepts)]
    unseen_count = round(HELD_OUT_OF_TWO * count) if held_out else 0
    combinations, singles = _evenly(held_out, random), _evenly(concepts, random)
    relations = _evenly(list(RELATIONS), random)
    prompts = []
    while len(prompts) < count:
        unseen = len(prompts) < unseen_count
        pair = next(combinations) if unseen else (next(singles), next(singles))
        a, b = (pair[i] for i in random.permutation(2))
        style = _known_style(settings, (a, b), random)
        if a == b or (not unseen and {a, b} in map(set, held_out)):
            continue
        relation, background = next(relations), next(backgrounds)
        text = f"{_article(a)} {relation} {_article(b)} in {style} style {_on(background)}"
        prompts.append(Prompt(text, (a, b), style, background, "small", "", relation, unseen))
    return prompts


def _known_style(
    settings: DataSettings, concepts: tuple[str, str], random: np.random.Generator
) -> str:
    """A style in which training showed both concepts, so that at most the combination is new."""
    held_out, styles = settings.held_out_pairs(), list(settings.styles)
    known = [style for style in styles if all((style, c) not in held_out for c in concepts)]
    return (known or styles)[random.integers(len(known or styles))]


def _evenly(items: Sequence[Item], random: np.random.Generator) -> Iterator[Item]:
    """All items in shuffled order, again and again, each round shuffled anew."""
    while items:
        yield from (items[i] for i in random.permutation(len(items)))


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _on(background: str) -> str:
    return f"on {_article(background)} background"


class PerfectPainter:
    """Real drawings, composed as each prompt asks: what a perfect model would paint.

    Places are off by up to `jitter` pixels and sides by up to `resize` pixels, so that the judge,
    which knows the drawings, does not meet pictures that it holds already.
    """

    def __init__(
        self, settings: DataSettings, seed: int = 0, jitter: int = 2, resize: int = 3
    ) -> None:
        self._scenes, self._side = Scenes(settings), settings.image_size
        self.seed, self.jitter, self.resize = seed, jitter, resize

    def __call__(self, prompts: Sequence[Prompt]) -> list[Image.Image]:
        random = np.random.default_rng((self.seed, 1))
        return [self._paint(prompt, random) for prompt in prompts]

    def _paint(self, prompt: Prompt, random: np.random.Generator) -> Image.Image:
        if prompt.relation:
            dx, dy = RELATIONS[prompt.relation]
            reach = self._side // 4 - 1
            centers = [(dx * reach, dy * reach), (-dx * reach, -dy * reach)]
        else:
            centers = [offset(prompt.place, prompt.size, self._side)]
        boxes = [self._box(prompt.size, center, random) for center in centers]
        objects = tuple(
            Drawn(concept, prompt.style, prompt.size, prompt.place, box)
            for concept, box in zip(prompt.concepts, boxes, strict=True)
        )
        scene = Scene(objects, prompt.background, prompt.relation, prompt.text)
        return Image.fromarray(self._scenes.picture(scene))

    def _box(
        self, size: str, center: tuple[float, float], random: np.random.Generator
    ) -> tuple[int, int, int]:
        side = SIZES[size] + int(random.integers(-self.resize, self.resize + 1))
        free = self._side - side
        moved = [c + random.integers(-self.jitter, self.jitter + 1) for c in center]
        x, y = (int(np.clip(round(free / 2 + c), 0, free)) for c in moved)
        return x, y, side


def offset(place: str, size: str, side: int) -> tuple[float, float]:
    """Where an object of this size at this place has its middle, in pixels from the picture's."""
    reach = (side - SIZES[size]) / 2 - MARGIN
    x = {"left": -reach, "right": reach}.get(place, 0.0)
    y = {"top": -reach, "bottom": reach}.get(place, 0.0)
    return x, y
