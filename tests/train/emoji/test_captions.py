"""Captions as people write them: plurals, and names that mean one thing only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sdcore.text.tokenizer import Tokenizer
from sdcore.training.settings import load_settings
from tests.train.emoji.tiny_recipe import write_drawings
from train.emoji.data.captions import CHINESE_SIZES, Captions, plural
from train.emoji.data.layout import PLACES, RELATIONS, SIZES, Drawn, Scene
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, Words
from train.emoji.data.vocabulary import learn_vocabulary
from train.emoji.data.words import known_words
from train.emoji.extend_vocabulary import chinese_texts
from train.emoji.grounding import object_marks

CONFIG = Path(__file__).parents[3] / "configs" / "train" / "emoji_data.yaml"
COUNT = 2000  # scenes looked at
STYLES = {"扁平": "flat", "立体": "shaded", "怀旧": "sepia", "线稿": "line art"}
STYLES |= {"蓝图": "blueprint", "霓虹": "neon"}
# What a size before a name makes of another name, as people write it: a small chicken is a chick.
SIZED = {"小鸡"}
# A known name is read first, in these: 小猫 in 小猫头鹰.
READ_FIRST = {"大树袋熊", "小猫咪", "小猫头鹰", "小鸡腿", "小鸡尾酒", *SIZED}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("drawings")
    settings = load_settings(DataSettings, CONFIG).model_copy(update={"folder": str(folder)})
    write_drawings(settings)
    return settings


@pytest.fixture(scope="module")
def english(settings: DataSettings) -> list[Scene]:
    scenes = Scenes(settings.model_copy(update={"chinese_share": 0.0}))
    return [scenes.scene(0, index) for index in range(COUNT)]


def english_names(settings: DataSettings) -> dict[str, list[str]]:
    """Concept -> its names, and their plurals."""
    names = {concept: [concept, *settings.words[concept].also] for concept in settings.concepts}
    return {
        concept: [*called, *(plural(name, settings.plurals) for name in called)]
        for concept, called in names.items()
    }


def owners(names: dict[str, list[str]]) -> dict[str, str]:
    """Name -> the concept that it means; a name of two concepts fails the test."""
    found: dict[str, str] = {}
    for concept, called in names.items():
        for name in called:
            assert found.setdefault(name.lower(), concept) == concept, name
    return found


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("peach", "peaches"),
        ("satellite dish", "satellite dishes"),
        ("hourglass", "hourglasses"),
        ("bus", "buses"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("wolf", "wolves"),
        ("maple leaf", "maple leaves"),
        ("kitchen knife", "kitchen knives"),
        ("cliff", "cliffs"),
        ("giraffe", "giraffes"),
        ("tropical fish", "tropical fish"),
        ("grapes", "grapes"),
        ("jeans", "jeans"),
        ("glasses", "glasses"),
        ("rhinoceros", "rhinoceroses"),
        ("cup of coffee", "cups of coffee"),
        ("die of wood", "dice of wood"),
        ("die", "dice"),
        ("milk", "milk"),
    ],
)
def test_plurals(one: str, several: str) -> None:
    assert plural(one, {"die": "dice", "milk": "milk"}) == several


def test_plurals_are_told_of_names_and_only_where_the_rule_fails(settings: DataSettings) -> None:
    assert not settings.plurals.keys() - owners(english_names(settings)).keys()
    assert not [name for name, several in settings.plurals.items() if plural(name, {}) == several]
    irregular = {"mouse": "mice", "wolf": "wolves", "maple leaf": "maple leaves", "loaf": "loaves"}
    irregular |= {name: name for name in ("sheep", "fish", "cherries", "sunglasses", "milk")}
    assert {name: plural(name, settings.plurals) for name in irregular} == irregular


def test_no_english_name_means_two_things(settings: DataSettings) -> None:
    names = owners(english_names(settings))
    said = {*settings.styles, *settings.backgrounds, *PLACES, *SIZES}
    assert not said & names.keys()


def test_no_chinese_name_means_two_things(settings: DataSettings) -> None:
    names = owners({concept: entry.zh for concept, entry in settings.words.items()})
    for name, concept in names.items():
        for size in filter(None, CHINESE_SIZES.values()):
            if size + name not in SIZED:
                assert names.get(size + name, concept) == concept, size + name


def test_nothing_else_in_a_caption_says_a_name(settings: DataSettings) -> None:
    """Or else a name's word could be looked for in the wrong place."""
    measures = sorted({entry.measure for entry in settings.words.values()})
    things = {f"@{i}": Words(zh=[f"@{i}"], measure=word) for i, word in enumerate(measures)}
    names = [name for called in english_names(settings).values() for name in called]
    names += [name for entry in settings.words.values() for name in entry.zh]
    told, random = set(), np.random.default_rng(0)
    captions = Captions(settings.model_copy(update={"words": things, "plural_share": 0.0}))
    for index in range(COUNT):
        style, background = (
            tuple(options)[random.integers(len(options))]
            for options in (settings.styles, settings.backgrounds)
        )
        place, size = PLACES[index % 5], tuple(SIZES)[index % 3]
        a, b = (
            Drawn(f"@{(index + i) % len(things)}", style, size, place, (0, 0, 0)) for i in (0, 1)
        )
        told.add(captions.one(random, a, background)[0])
        told.add(captions.two(random, (a, b), tuple(RELATIONS)[index % 4], background)[0])
    text = "\n".join(told)
    assert "@1" in text and "一" in text and "style" in text
    found = [name for name in names if name in text]  # "ring" is in "string", as no word
    assert not [n for n in found if re.search(f"(?<![a-z]){re.escape(n)}(?![a-z])", text)]


def test_chinese_captions_call_a_style_by_its_chinese_name(settings: DataSettings) -> None:
    assert all(style.zh for style in settings.styles.values())
    scenes = Scenes(settings.model_copy(update={"chinese_share": 1.0}))
    many = [scenes.scene(0, index) for index in range(500)]
    said = [next((s for s in STYLES if s in one.caption), "") for one in many]
    assert set(said) == {*STYLES, ""}
    assert all(STYLES.get(s, one.objects[0].style) == one.objects[0].style
               for s, one in zip(said, many, strict=True))  # fmt: skip
    assert not [one.caption for one in many if re.search("[a-z]", one.caption)]


def test_chinese_names_are_read_whole_after_measure_words_and_sizes(settings: DataSettings) -> None:
    vocabulary, merges = learn_vocabulary(chinese_texts(settings), 8192)
    tokenizer = Tokenizer.from_vocab(vocabulary, merges, max_length=32)
    names = owners({concept: entry.zh for concept, entry in settings.words.items()})
    told = [
        (f"一{entry.measure}{size}{name}在{name}左边", size + name, name, concept)
        for concept, entry in settings.words.items()
        for name in entry.zh
        for size in CHINESE_SIZES.values()
    ]
    texts = [text for text, *_ in told]
    tokens = tokenizer(texts)
    marks = object_marks(tokens, texts, [(name, name) for *_, name, _ in told]).bool()
    wrong = set()
    for ids, marked, (_, sized, name, concept) in zip(tokens.ids, marks, told, strict=True):
        for column in marked.T:
            read = tokenizer.decode(ids[column]).replace(" ", "")
            if read != name.lower() and names.get(read) != concept:
                wrong.add(sized)
    assert wrong == READ_FIRST


def test_a_plural_goes_without_an_article_and_is_what_the_scene_is_said_to_show(
    settings: DataSettings, english: list[Scene]
) -> None:
    names = english_names(settings)
    singular = Scenes(settings.model_copy(update={"chinese_share": 0.0, "plural_share": 0.0}))
    ones = [scene for scene in english if not scene.relation]
    changed = []
    for index, scene in enumerate(english):
        before = singular.scene(0, index)
        assert (scene.objects, scene.background) == (before.objects, before.background)
        if scene.caption == before.caption:
            assert scene.names == before.names
            continue
        changed.append(scene)
        assert not scene.relation
        (said,), (usual,) = scene.names, before.names
        assert said == plural(usual, settings.plurals) in names[scene.objects[0].concept]
        assert before.caption.replace(usual, said) == scene.caption, "nothing else changes"
    # What is plural or not counted stays as it was.
    able = sum(plural(s.names[0], settings.plurals) != s.names[0] for s in ones)
    assert settings.plural_share == 0.05
    assert abs(len(changed) - 0.05 * able) < 4 * (0.05 * able) ** 0.5
    captions = [scene.caption for scene in changed]
    tokenizer = Tokenizer.from_vocab(*learn_vocabulary(captions, 1024), max_length=64)
    tokens = tokenizer(captions)
    marks = object_marks(tokens, captions, [scene.names for scene in changed]).bool()
    for ids, marked, scene in zip(tokens.ids, marks, changed, strict=True):
        said = tokenizer.decode(ids[marked[:, 0]]).replace(" ", "")
        assert said == scene.names[0].replace(" ", "")


def test_plurals_are_known_words_where_captions_say_them(settings: DataSettings) -> None:
    scenes = Scenes(settings)
    known = known_words(scenes, 50)
    for called in english_names(settings).values():
        assert all(known.unknown(name) == [] for name in called)
    scenes.settings = settings.model_copy(update={"plural_share": 0.0})
    assert known_words(scenes, 0).unknown("foxes") == ["foxes"]
