"""Newcomers' captions: what they say is what is drawn, and what is held out is never said."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch.nn.functional import avg_pool2d

from sdcore.text.tokenizer import Tokenizer
from sdcore.training.settings import load_settings
from train.emoji.data import own_words
from train.emoji.data.captions import CHINESE_BACKGROUNDS, plural
from train.emoji.data.colors import COLORS, main_color, recolor
from train.emoji.data.layout import GROUPS, Scene
from train.emoji.data.own_scenes import APART, LIGHT, countable
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings
from train.emoji.data.vocabulary import learn_vocabulary
from train.emoji.data.words import known_words
from train.emoji.extend_vocabulary import chinese_texts
from train.emoji.grounding import object_marks

CONFIG = Path(__file__).parents[3] / "configs" / "train" / "emoji_data.yaml"
COUNT = 1500  # scenes looked at


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """The settings of the embedded model, each thing a disc in one colour with a white middle."""
    folder = tmp_path_factory.mktemp("drawings")
    settings = load_settings(DataSettings, CONFIG).model_copy(update={"folder": str(folder)})
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    radius, pictures = np.hypot(x, y), {}
    for style in settings.styles:
        for i, concept in enumerate(settings.concepts):
            picture = np.zeros((32, 32, 4), np.uint8)
            picture[radius < 0.95] = (*list(COLORS.values())[i % len(COLORS)], 255)
            picture[radius < 0.3] = (255, 255, 255, 255)
            pictures[f"{style}/{concept}"] = picture
    save_file(pictures, folder / "drawings.safetensors")
    return settings


@pytest.fixture(scope="module")
def scenes(settings: DataSettings) -> Scenes:
    return Scenes(settings, own_words=1.0)


@pytest.fixture(scope="module")
def many(scenes: Scenes) -> list[Scene]:
    return [scenes.scene(0, index) for index in range(COUNT)]


def own_color(scenes: Scenes, concept: str) -> str:
    picture = scenes._drawings["flat", concept]
    return main_color(picture[..., :3], picture[..., 3] / 255)


def words_of(caption: str) -> str:
    return f" {re.sub(r'[^a-z0-9]+', ' ', caption.lower())} "


def in_chinese(scene: Scene) -> bool:
    return bool(re.search("[\u4e00-\u9fff]", scene.caption))


@pytest.mark.parametrize("color", COLORS)
def test_a_recoloured_drawing_has_the_colour_and_keeps_shape_and_details(color: str) -> None:
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[np.hypot(x, y) < 0.9] = (230, 140, 40, 255)  # orange
    picture[(np.hypot(x, y) < 0.9) & (y > 0.4)] = (190, 110, 25, 255)  # in shade
    picture[np.hypot(x - 0.3, y + 0.3) < 0.15] = (20, 20, 20, 255)  # an eye
    changed = recolor(picture, color)
    assert main_color(changed[..., :3], changed[..., 3] / 255) == color
    assert np.array_equal(changed[..., 3], picture[..., 3])
    assert (changed[22, 41] == picture[22, 41]).all() and picture[22, 41, 0] == 20
    light, shade = changed[32, 20, :3].astype(int).sum(), changed[54, 32, :3].astype(int).sum()
    assert shade < light, "light and shade stay"


def test_the_main_colour_is_that_of_most_opaque_pixels() -> None:
    for name, rgb in COLORS.items():
        picture = np.full((8, 8, 3), rgb, np.uint8)
        picture[:3] = (0, 0, 255) if name != "blue" else (255, 0, 0)
        assert main_color(picture, np.ones((8, 8))) == name
        weight = np.zeros((8, 8))
        weight[0] = 1
        assert main_color(picture, weight) == ("blue" if name != "blue" else "red")


def test_without_a_style_the_first_is_drawn_and_with_one_that(
    settings: DataSettings, many: list[Scene]
) -> None:
    styles = Counter()
    for scene in many:
        style = scene.objects[0].style
        assert {drawn.style for drawn in scene.objects} == {style}
        said = settings.styles[style].zh if in_chinese(scene) else style
        if style != "flat":
            assert said in scene.caption.lower()
        styles[style] += 1
    assert styles["flat"] > 0.85 * COUNT and len(styles) == len(settings.styles)


def test_a_colour_before_a_name_is_the_thing_s_own_or_the_one_it_is_recoloured_in(
    scenes: Scenes, many: list[Scene]
) -> None:
    recoloured = own = 0
    for scene in many:
        if in_chinese(scene) or len(scene.objects) != 1:
            continue
        drawn, name = scene.objects[0], scene.names[0].lower()
        said = re.search(rf"([a-z]+) {re.escape(name)}(?![a-z])", scene.caption.lower())
        color = said[1].replace("grey", "gray").replace("violet", "purple") if said else ""
        if drawn.color:
            assert color == drawn.color, scene
            recoloured += 1
        elif color in COLORS and color not in drawn.concept:
            assert color == own_color(scenes, drawn.concept), scene
            own += 1
    assert recoloured > 50 and own > 20


def test_numbers_are_the_things_drawn(settings: DataSettings, many: list[Scene]) -> None:
    numbers = {"two": 2, "2": 2, "pair": 2, "couple": 2, "three": 3, "3": 3, "several": 3}
    seen = Counter()
    for scene in many:
        kinds = {drawn.concept for drawn in scene.objects}
        counted = [numbers[w] for w in words_of(scene.caption).split() if w in numbers]
        if len(scene.objects) == 1 or len(kinds) == 2:
            assert not [n for n in counted if "3d" not in scene.caption.lower()], scene.caption
            continue
        assert len(scene.names) == 1 and len(scene.objects) in GROUPS
        assert len({d.box for d in scene.objects}) == len(scene.objects)
        if counted:
            assert counted == [len(scene.objects)], scene.caption
        if "两" in scene.caption or "三" in scene.caption:
            assert ("两" in scene.caption) == (len(scene.objects) == 2), scene.caption
        if not in_chinese(scene):
            assert countable(scene.objects[0].concept, settings.plurals)
        seen[len(scene.objects)] += 1
    assert min(seen[2], seen[3]) > 50


def test_two_things_are_named_in_the_order_in_which_they_stand(many: list[Scene]) -> None:
    pairs = [scene for scene in many if scene.relation]
    assert len(pairs) > 200
    for scene in pairs:
        first, second = scene.objects
        assert first.box[0] + first.box[2] <= second.box[0] and first.concept != second.concept
        begin = scene.caption.index(scene.names[0])
        assert scene.caption.index(scene.names[1], begin + len(scene.names[0])) > begin


def test_names_are_found_in_their_captions_whatever_their_case(
    settings: DataSettings, many: list[Scene]
) -> None:
    captions = [scene.caption for scene in many]
    tokenizer = Tokenizer.from_vocab(*learn_vocabulary(captions, 4096), max_length=64)
    marks = object_marks(tokenizer(captions), captions, [scene.names for scene in many])
    assert all(
        marked.any(0).tolist() == [True, len(scene.names) == 2]
        for marked, scene in zip(marks.bool(), many, strict=True)
    )
    assert sum(text.isupper() for text in captions) > 10


def test_backgrounds_are_those_that_captions_say_or_light_ones_that_show_the_thing(
    settings: DataSettings, scenes: Scenes, many: list[Scene]
) -> None:
    told = 0
    for scene in many:
        grounds = [scene.background]
        if in_chinese(scene):
            grounds = [CHINESE_BACKGROUNDS[scene.background]]
        table = own_words.CHINESE_GROUNDS if in_chinese(scene) else own_words.GROUNDS
        grounds += [said for said, meant in table.items() if scene.background in meant]
        said = re.search("ground|背景|底|(^| )on ", scene.caption.lower())
        if any(ground in scene.caption.lower() for ground in grounds) and said:
            told += 1
        elif not said:
            assert scene.background in LIGHT, scene
        for drawn in scene.objects:
            if drawn.style == "flat":
                rgb = COLORS[drawn.color or own_color(scenes, drawn.concept)]
                away = np.subtract(rgb, settings.backgrounds[scene.background])
                assert np.linalg.norm(away) > APART
    assert told > 0.25 * COUNT


def test_what_is_held_out_is_never_said(settings: DataSettings, many: list[Scene]) -> None:
    text = "\n".join(scene.caption.lower() for scene in many)
    lists = (own_words.OPENINGS, own_words.ENDINGS, own_words.ADJECTIVES)
    said = {word for listed in lists for word in own_words.said(listed)}
    kept = {word for listed in lists for word in listed} - said
    assert len(kept) > 0.1 * len(said)
    spoken = set(own_words.english_words())
    also = [name for entry in settings.words.values() for name in entry.also]
    names = " ".join([*settings.concepts, *also])
    for word in {w for phrase in kept for w in phrase.split()} - spoken:
        assert word in names or not re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", text), word
    for scene in many:
        for drawn in scene.objects:
            assert (drawn.style, drawn.concept) not in settings.held_out_pairs()
            assert not drawn.color or not own_words.held_out(
                "color", f"{drawn.color} {drawn.concept}"
            )
        if len(scene.names) == 1 and len(scene.objects) > 1:
            concept = scene.objects[0].concept
            assert not own_words.held_out("count", f"{len(scene.objects)} {concept}")
    pairs = {frozenset(d.concept for d in scene.objects) for scene in many if scene.relation}
    assert not pairs & {frozenset(pair) for pair in settings.held_out_combinations}


def test_words_that_say_nothing_say_no_thing(settings: DataSettings) -> None:
    names = {*settings.concepts, *(n for w in settings.words.values() for n in w.also)}
    names |= {plural(name, settings.plurals) for name in names}
    for listed in (own_words.OPENINGS, own_words.ENDINGS, own_words.ADJECTIVES):
        for phrase in listed:
            found = [n for n in names if f" {n} " in f" {phrase} "]
            assert not found, (phrase, found)
    zh = {name for entry in settings.words.values() for name in entry.zh} - {"画"}
    for listed in (own_words.CHINESE_ENDINGS, own_words.CHINESE_ADJECTIVES):
        assert not [(p, n) for p in listed for n in zh if n in p]


def test_the_masks_of_a_group_are_one(scenes: Scenes, many: list[Scene]) -> None:
    group = next(s for s in many if len(s.objects) == 3)
    first, second = scenes.masks([group])[0]
    assert not second.any()
    for drawn in group.objects:
        x, y, size = drawn.box
        assert first[y + size // 2, x + size // 2] == 1


def test_a_larger_picture_is_the_same_scene(scenes: Scenes, many: list[Scene]) -> None:
    small, large = scenes.images(many[:6]), scenes.images(many[:6], side=128)
    assert large.shape[-1] == 128 and (avg_pool2d(large, 2) - small).abs().mean() < 0.03


def test_other_scenes_stay_as_they_were(settings: DataSettings) -> None:
    usual, mixed = Scenes(settings), Scenes(settings, own_words=0.5)
    many = [mixed.scene(0, index) for index in range(200)]
    own = [s for s in many if not s.single and not s.relation]
    assert own and len({s.caption for s in many}) > 150
    assert mixed.scene(0, 3, stage=1) == Scenes(
        settings.model_copy(update={"plural_share": 0.0})
    ).scene(0, 3, stage=1)
    assert all(usual.scene(0, i) == Scenes(settings).scene(0, i) for i in range(20))


def test_its_words_are_whole_tokens_and_known(settings: DataSettings, scenes: Scenes) -> None:
    words = own_words.english_words()
    texts = chinese_texts(settings, own=True) + words * 50
    tokenizer = Tokenizer.from_vocab(*learn_vocabulary(texts, 8192), max_length=32)
    for word in ["picture", "cute", *own_words.said(own_words.CHINESE_ADJECTIVES)[:20]]:
        if word in words or word in own_words.chinese_words():
            ids = tokenizer([word]).ids[0]
            assert len({int(i) for i in ids}) == 3, word  # start, the word, end
    known = known_words(scenes, 50)
    assert known.unknown("a picture of two cute blue foxes") == []
    assert known.unknown("a picture of a zebra") == ["zebra"]
