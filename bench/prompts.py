"""The fixed prompts of the prompt-control measurement, and the painter who obeys every word.

A prompt says all of it, in a wording of the training captions: concept, size, style, place and
background, or two objects and how they stand to each other. A share asks for what training never
showed: held-out (style, concept) pairs, and held-out combinations of two objects. Where the
concepts have Chinese names, half of the prompts of each kind are in Chinese; where a concept has
other names in the prompt's language, half of its prompts use one of those.

    python -m bench.prompts --first 24 > docs/embedded_model.txt       # those of the README's grid
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image

from bench.command import DATA, main, make_parser
from sdcore.training.settings import load_settings
from train.emoji.data.captions import (
    CHINESE_BACKGROUNDS,
    CHINESE_PLACES,
    CHINESE_RELATIONS,
    CHINESE_SIZES,
    PLACE_WORDS,
)
from train.emoji.data.layout import MARGIN, PLACES, RELATIONS, SIZES, Drawn, Scene
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings

TWO_OBJECTS_SHARE = 0.2  # of the prompts
HELD_OUT_OF_ONE = 0.25  # of the prompts with one object: a (style, concept) pair never shown
HELD_OUT_OF_TWO = 0.5  # of the prompts with two objects: a combination never shown
ANOTHER_NAME = 0.5  # of the names that have synonyms
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
        language: of the text, English or Chinese.
        another_name: an object is called by another than its usual name.
        names: what the objects are called in the text.
    """

    text: str
    concepts: tuple[str, ...]
    style: str
    background: str
    size: str
    place: str
    relation: str
    held_out: bool
    language: str = "English"
    another_name: bool = False
    names: tuple[str, ...] = ()


def compose(settings: DataSettings, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts, a function of the arguments; all kinds come evenly, in shuffled order.

    A concept comes again only when every other has come as often, so that figures by concept are
    to be had from the fewest prompts. Shares of a kind that the settings lack (nothing held out, no
    scenes with two objects) go to the other kinds.
    """
    random = np.random.default_rng(seed)
    twos = settings.two_objects_share > 0 and len(settings.concepts) > 2
    two = round(TWO_OBJECTS_SHARE * count) if twos else 0
    prompts = _one_object(settings, count - two, random) + _two_objects(settings, two, random)
    prompts = _worded(settings, prompts, np.random.default_rng((seed, 2)))
    return [prompts[i] for i in random.permutation(count)]


def _one_object(settings: DataSettings, count: int, random: np.random.Generator) -> list[Prompt]:
    held_out = sorted(settings.held_out_pairs())
    seen = [(s, c) for s in settings.styles for c in settings.concepts if (s, c) not in held_out]
    unseen_count = round(HELD_OUT_OF_ONE * count) if held_out else 0
    kinds = ((False, seen, count - unseen_count), (True, held_out, unseen_count))
    prompts = []
    for unseen, pairs, number in kinds:
        drawings, layouts = _by_concept(pairs, random), _evenly(LAYOUTS, random)
        backgrounds = _evenly(list(settings.backgrounds), random)
        for _ in range(number):
            (style, concept), (size, place) = next(drawings), next(layouts)
            background = next(backgrounds)
            prompts.append(Prompt("", (concept,), style, background, size, place, "", unseen))
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
        prompts.append(Prompt("", (a, b), style, background, "small", "", relation, unseen))
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


def _by_concept(
    pairs: Sequence[tuple[str, str]], random: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """`_evenly`, each round ordered so that a concept's next drawing waits for all others'."""
    while pairs:
        turns: Counter[str] = Counter()
        rounds: list[tuple[int, tuple[str, str]]] = []
        for i in random.permutation(len(pairs)):
            concept = pairs[i][1]
            turns[concept] += 1
            rounds.append((turns[concept], pairs[i]))
        yield from (pair for _, pair in sorted(rounds, key=lambda row: row[0]))


def _worded(
    settings: DataSettings, prompts: Sequence[Prompt], random: np.random.Generator
) -> list[Prompt]:
    """The prompts with their texts; each kind is spread evenly over the languages."""
    bilingual = set(settings.concepts) <= set(settings.words)
    languages = {
        kind: _evenly(("English", "Chinese") if bilingual else ("English",), random)
        for kind in sorted({(bool(p.relation), p.held_out) for p in prompts})
    }
    result = []
    for prompt in prompts:
        language = next(languages[bool(prompt.relation), prompt.held_out])
        usual = [_names(settings, concept, language)[0] for concept in prompt.concepts]
        said = [_name(settings, concept, language, random) for concept in prompt.concepts]
        names, other = tuple(said), said != usual
        prompt = replace(prompt, language=language, another_name=other, names=names)
        text = english(prompt, said) if language == "English" else chinese(prompt, said, settings)
        result.append(replace(prompt, text=text))
    return result


def _names(settings: DataSettings, concept: str, language: str) -> list[str]:
    """What a concept is called, its usual name first."""
    if language == "Chinese":
        return settings.words[concept].zh
    return [concept, *(settings.words[concept].also if concept in settings.words else [])]


def _name(settings: DataSettings, concept: str, language: str, random: np.random.Generator) -> str:
    usual, *others = _names(settings, concept, language)
    if others and random.random() < ANOTHER_NAME:
        return others[random.integers(len(others))]
    return usual


def english(prompt: Prompt, names: Sequence[str]) -> str:
    """What the prompt asks for, its objects called by `names`."""
    end = f"in {prompt.style} style"
    on = f"on {_article(prompt.background)} background"
    if prompt.relation:
        first, second = map(_article, names)
        return f"{first} {prompt.relation} {second} {end} {on}"
    where = [PLACE_WORDS[prompt.place][0]] if prompt.place else []
    return " ".join([_article(f"{prompt.size} {names[0]}".strip()), end, *where, on])


def chinese(prompt: Prompt, names: Sequence[str], settings: DataSettings) -> str:
    """The same in Chinese: "一只小狐狸在左边，霓虹风格，浅蓝色背景"."""
    size = "" if prompt.relation else CHINESE_SIZES[prompt.size]
    things = [
        f"一{settings.words[concept].measure}{size}{name}"
        for concept, name in zip(prompt.concepts, names, strict=True)
    ]
    text = things[0]
    if prompt.relation:
        text += f"在{things[1]}{CHINESE_RELATIONS[prompt.relation]}"
    elif prompt.place:
        text += f"在{CHINESE_PLACES[prompt.place][0]}"
    style = settings.chinese_styles()[prompt.style]
    return f"{text}，{style}风格，{CHINESE_BACKGROUNDS[prompt.background]}背景"


def _article(words: str) -> str:
    if words.endswith("s") and not words.endswith(("ss", "us")):
        return words  # scissors, grapes
    return ("an " if words[0] in "aeiou" else "a ") + words


class PerfectPainter:
    """Real drawings, composed as each prompt asks: what a perfect model would paint.

    Places are off by up to `jitter` pixels and sides by up to `resize` pixels, so that the judge,
    which knows the drawings, does not meet pictures that it holds already. Both are pixels of the
    scene, which is shown in pictures of `side`, a multiple of its own.
    """

    def __init__(
        self,
        settings: DataSettings,
        seed: int = 0,
        jitter: int = 2,
        resize: int = 3,
        side: int | None = None,
    ) -> None:
        self._scenes, self._side, self._shown = Scenes(settings), settings.image_size, side
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
        return Image.fromarray(self._scenes.picture(scene, self._shown))

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


def run(arguments: argparse.Namespace) -> None:
    settings = load_settings(DataSettings, arguments.data)
    prompts = compose(settings, arguments.prompts, arguments.seed)
    print("\n".join(prompt.text for prompt in prompts[: arguments.first]))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, data=DATA, prompts=600, seed=0)
    parser.add_argument("--first", type=int, metavar="N", help="only so many (default: all)")
    return parser


if __name__ == "__main__":
    main(_parser(), run)
