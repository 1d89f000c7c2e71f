"""Emoji scenes: what is drawn is what the caption says, and what is held out never shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdcore.errors import FileError
from train.emoji.data.captions import CHINESE_BACKGROUNDS, STYLE_SAID
from train.emoji.data.drawings import SIZE
from train.emoji.data.layout import RELATIONS, SIZES, Scene
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import BACKGROUNDS, DataSettings, Words

CONCEPTS = ["fox", "owl", "red apple", "cactus", "rocket", "umbrella", "ice cream", "orange cat"]
STYLES = ["noto", "emojione", "fluent"]
COMBINATIONS = [("fox", "cactus"), ("owl", "red apple")]
COLOURS = sorted(BACKGROUNDS, key=len, reverse=True)
COUNT = 1500  # scenes looked at where a test says "never" or "always"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """Drawings that are plain opaque squares, each of its own colour: pixels tell it all."""
    folder = tmp_path_factory.mktemp("drawings")
    random = np.random.default_rng(0)
    pictures = {}
    for style in STYLES:
        for concept in CONCEPTS:
            picture = np.full((SIZE, SIZE, 4), 255, np.uint8)
            picture[..., :3] = random.integers(0, 256, 3)
            pictures[f"{style}/{concept}"] = picture
    save_file(pictures, folder / "drawings.safetensors")
    return DataSettings(
        concepts={concept: concept for concept in CONCEPTS},
        styles={style: style for style in STYLES},
        held_out_pairs_share=0.2,
        held_out_combinations=COMBINATIONS,
        two_objects_share=0.4,
        folder=str(folder),
    )


@pytest.fixture(scope="module")
def scenes(settings: DataSettings) -> Scenes:
    return Scenes(settings)


@pytest.fixture(scope="module")
def many(scenes: Scenes) -> list[Scene]:
    return [scenes.scene(0, index) for index in range(COUNT)]


def pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(drawn.style, drawn.concept) for drawn in scene.objects}


def combination(scene: Scene) -> frozenset[str]:
    return frozenset(drawn.concept for drawn in scene.objects)


def test_a_scene_is_a_function_of_seed_and_index(
    settings: DataSettings, scenes: Scenes, many: list[Scene]
) -> None:
    again = Scenes(settings)
    for index in (1499, 0, 700, 1):  # another object, another order
        assert again.scene(0, index) == many[index]
        assert np.array_equal(again.picture(many[index]), scenes.picture(many[index]))
    assert scenes.scene(1, 0) != scenes.scene(0, 0)
    assert len(set(many)) > 0.9 * COUNT


def test_settings_that_do_not_fit_the_built_set_are_refused(settings: DataSettings) -> None:
    more = settings.model_copy(update={"concepts": {**settings.concepts, "ghost": "ghost"}})
    with pytest.raises(FileError, match="ghost"):
        Scenes(more)
    with pytest.raises(FileError, match="not built"):
        Scenes(settings.model_copy(update={"folder": "absent"}))


def test_held_out_pairs_are_as_many_as_asked_and_leave_each_concept_a_style(
    settings: DataSettings,
) -> None:
    kept_back = settings.held_out_pairs()
    assert len(kept_back) == round(0.2 * len(STYLES) * len(CONCEPTS))
    assert len({concept for _, concept in kept_back}) == len(kept_back)


def test_a_scene_in_a_larger_picture_is_the_same_enlarged(
    settings: DataSettings, many: list[Scene]
) -> None:
    scenes = Scenes(settings)
    for scene in many[:8]:
        small, large = scenes.picture(scene), scenes.picture(scene, 128)
        assert small.shape == (64, 64, 3) and large.shape == (128, 128, 3)
        halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - small).mean() < 3
        assert np.array_equal(large[0, 0], small[0, 0])


def test_held_out_pairs_do_not_depend_on_the_order_of_the_settings(settings: DataSettings) -> None:
    turned = settings.model_copy(
        update={
            "concepts": dict(reversed(settings.concepts.items())),
            "styles": dict(reversed(settings.styles.items())),
        }
    )
    assert turned.held_out_pairs() == settings.held_out_pairs()


def test_training_never_shows_what_is_held_out(settings: DataSettings, many: list[Scene]) -> None:
    kept_back, combinations = settings.held_out_pairs(), {frozenset(pair) for pair in COMBINATIONS}
    assert not set.union(*(pairs(scene) for scene in many)) & kept_back
    assert not {combination(scene) for scene in many} & combinations
    shown = set.union(*(pairs(scene) for scene in many))
    assert len(shown) == len(STYLES) * len(CONCEPTS) - len(kept_back), "all the rest is shown"


def test_held_out_scenes_show_nothing_else(settings: DataSettings) -> None:
    unseen = Scenes(settings, held_out=True)
    kept_back, combinations = settings.held_out_pairs(), {frozenset(pair) for pair in COMBINATIONS}
    one, two = set(), set()
    for scene in (unseen.scene(0, index) for index in range(COUNT)):
        if scene.relation:
            two.add(combination(scene))
        else:
            one |= pairs(scene)
    assert one == kept_back
    assert two == combinations


def test_two_objects_differ_share_a_style_and_come_as_often_as_asked(many: list[Scene]) -> None:
    two = [scene for scene in many if scene.relation]
    assert all(len(scene.objects) == 2 and len(combination(scene)) == 2 for scene in two)
    assert all(len({drawn.style for drawn in scene.objects}) == 1 for scene in two)
    assert all(len(scene.objects) == 1 for scene in many if not scene.relation)
    assert abs(len(two) / COUNT - 0.4) < 4 * (0.4 * 0.6 / COUNT) ** 0.5


def test_captions_name_what_is_drawn(settings: DataSettings, many: list[Scene]) -> None:
    said = {"style": 0, "background": 0, "place": 0, "size": 0}
    for scene in many:
        words = scene.caption
        for drawn in scene.objects:
            assert drawn.concept in words
        ground = re.compile(
            rf"(^|\b(on|on an?|with an?) |, | )({'|'.join(COLOURS)})( background)?(,|$)"
        )
        named = [found[3] for found in ground.finditer(words)]
        styles = [style for style in STYLES if style in words]
        assert named in ([], [scene.background]), words
        assert styles in ([], [scene.objects[0].style]), words
        said["background"] += bool(named)
        said["style"] += bool(styles)
        if scene.relation:
            first, second = scene.objects
            between = scene.relation if f" {scene.relation} " in words else "and"
            before, _, after = words.partition(f" {between} ")
            assert first.concept in before and second.concept in after
            if between == "and":
                sides = re.findall(r"\b(?:on|at) the (left|right|top|bottom)\b", words)
                ends = [("left", "right"), ("top", "bottom")][RELATIONS[scene.relation][0] == 0]
                first_side = ends if sum(RELATIONS[scene.relation]) < 0 else ends[::-1]
                assert tuple(sides) == first_side, words
            continue
        place = re.search(
            r"\b(?:on the|at the|in the) (left|right|top|bottom|center|middle)\b", words
        )
        if place:
            assert place[1].replace("middle", "center") == scene.objects[0].place
            said["place"] += 1
        size = re.search(r"\b(big|small)\b", words)
        if size:
            assert size[1] == scene.objects[0].size
            said["size"] += 1
    assert 0.85 < said["background"] / COUNT < 0.95
    assert abs(said["style"] / COUNT - STYLE_SAID) < 0.05
    assert min(said.values()) > 0.1 * COUNT


def test_captions_vary_in_wording_and_keep_their_articles(many: list[Scene]) -> None:
    captions = [scene.caption for scene in many]
    assert not [text for text in captions if re.search(r"\ba [aeiou]", text)]
    assert not [text for text in captions if re.search(r"\ban [^aeiou]", text)]
    shapes = set()
    for scene in many:
        shape = scene.caption
        for name in sorted({d.concept for d in scene.objects} | {scene.objects[0].style}):
            shape = shape.replace(name, "*")
        shapes.add(shape.replace(scene.background, "*"))
    assert len(shapes) > 100


def test_corners_have_the_background_s_colour(
    settings: DataSettings, scenes: Scenes, many: list[Scene]
) -> None:
    for scene in many[:200]:
        picture = scenes.picture(scene)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        for corner in (picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1]):
            assert tuple(corner) == settings.backgrounds[scene.background]


def test_every_object_fills_its_box_and_nothing_more(
    settings: DataSettings, scenes: Scenes, many: list[Scene]
) -> None:
    colour = {pair: picture[0, 0, :3] for pair, picture in scenes._drawings.items()}
    for scene in many[:200]:
        expected = np.empty((64, 64, 3), np.uint8)
        expected[:] = settings.backgrounds[scene.background]
        for drawn in scene.objects:
            x, y, side = drawn.box
            expected[y : y + side, x : x + side] = colour[drawn.style, drawn.concept]
        assert np.array_equal(scenes.picture(scene), expected)


PLACED: dict[str, Callable[[float, float], bool]] = {  # centre of the box, -1 to 1 from the middle
    "center": lambda x, y: abs(x) < 0.05 and abs(y) < 0.05,
    "left": lambda x, y: x < -0.1 and abs(y) < 0.05,
    "right": lambda x, y: x > 0.1 and abs(y) < 0.05,
    "top": lambda x, y: y < -0.1 and abs(x) < 0.05,
    "bottom": lambda x, y: y > 0.1 and abs(x) < 0.05,
}


def centre(box: tuple[int, int, int]) -> tuple[float, float]:
    x, y, side = box
    return (x + side / 2) / 32 - 1, (y + side / 2) / 32 - 1


def test_boxes_are_where_the_place_or_relation_says(many: list[Scene]) -> None:
    for scene in many:
        sides = [drawn.box[2] for drawn in scene.objects]
        assert sides == [SIZES[drawn.size] for drawn in scene.objects]
        centres = [centre(drawn.box) for drawn in scene.objects]
        if not scene.relation:
            assert PLACED[scene.objects[0].place](*centres[0]), scene
            continue
        (ax, ay), (bx, by) = centres
        assert (np.sign(ax - bx), np.sign(ay - by)) == RELATIONS[scene.relation]
        side = sides[0] / 32
        assert max(abs(ax - bx), abs(ay - by)) >= side, "they do not overlap"


def test_jitter_moves_objects_within_the_picture(settings: DataSettings) -> None:
    moved = Scenes(settings.model_copy(update={"jitter": 6}))
    boxes = [d.box for i in range(COUNT) for d in moved.scene(0, i).objects]
    assert all(0 <= v <= 64 - side for x, y, side in boxes for v in (x, y))
    assert len({box for box in boxes if box[2] == SIZES["big"]}) > 20


def test_one_stage_is_shared_by_all_its_scenes(settings: DataSettings, scenes: Scenes) -> None:
    stages = []
    for stage in range(40):
        group = [scenes.scene(0, index, stage) for index in range(100 * stage, 100 * stage + 30)]
        layouts = {
            (s.background, s.relation, tuple((d.size, d.place, d.box) for d in s.objects))
            for s in group
        }
        assert len(layouts) == 1
        assert len({frozenset(pairs(scene)) for scene in group}) > 5, "what is drawn still varies"
        stages.append(layouts.pop())
    assert len(set(stages)) > 20, "and stages differ"


def test_transparency_mixes_with_the_background(settings: DataSettings, tmp_path: Path) -> None:
    """Straight alpha over the background; reduction must not let colours of clear pixels bleed."""
    picture = np.zeros((SIZE, SIZE, 4), np.uint8)
    picture[:, : SIZE // 2] = (200, 40, 90, 128)
    picture[:, SIZE // 2 :] = (255, 255, 255, 0)  # clear, whatever its colour
    save_file({"noto/fox": picture}, tmp_path / "drawings.safetensors")
    scenes = Scenes(
        DataSettings(
            concepts={"fox": "fox"},
            styles={"noto": "noto"},
            backgrounds={"dark blue": (45, 65, 140)},
            held_out_pairs_share=0.0,
            two_objects_share=0.0,
            folder=str(tmp_path),
        )
    )
    scene = scenes.scene(0, 0)
    x, y, side = scene.objects[0].box
    painted = scenes.picture(scene)
    mixed = [
        round(c * 128 / 255 + b * 127 / 255)
        for c, b in zip((200, 40, 90), (45, 65, 140), strict=True)
    ]
    assert np.abs(painted[y : y + side, x : x + side // 2].astype(int) - mixed).max() <= 1
    assert (painted[y : y + side, x + side // 2 : x + side] == (45, 65, 140)).all()


WORDS = {"fox": Words(also=["vixen"], zh=["狐狸", "小赤狐"], measure="只")}
WORDS |= {"owl": Words(zh=["猫头鹰"], measure="只"), "cactus": Words(zh=["仙人掌"], measure="棵")}
CHINESE_SIDES = {"左边": "left", "右边": "right", "上": "top", "下": "bottom", "中间": "center"}


def test_chinese_captions_name_what_is_drawn(settings: DataSettings) -> None:
    """Every concept with a Chinese name is told in Chinese as often as asked, and truly."""
    both = Scenes(settings.model_copy(update={"words": WORDS, "chinese_share": 0.5}))
    able = [
        s for s in (both.scene(0, i) for i in range(3 * COUNT)) if combination(s) <= WORDS.keys()
    ]
    told = [s for s in able if re.search(r"[\u4e00-\u9fff]", s.caption)]
    assert abs(len(told) / len(able) - 0.5) < 4 * 0.5 / len(able) ** 0.5
    shapes = set()
    for scene in told:
        words = scene.caption
        names = [
            max((n for n in WORDS[d.concept].zh if n in words), key=len) for d in scene.objects
        ]
        grounds = [name for name, word in CHINESE_BACKGROUNDS.items() if f"{word}背景" in words]
        assert grounds in ([], [scene.background]), words
        assert [s for s in STYLES if s in words] in ([], [scene.objects[0].style]), words
        shapes.add(re.sub("|".join([*names, *STYLES, *CHINESE_BACKGROUNDS.values()]), "*", words))
        if scene.relation:
            first, second = names
            if "是" in words:  # 左边是A，右边是B
                side = words[: words.index(first)].split("是")[0].split("，")[-1]
                place = CHINESE_SIDES[side.rstrip("面方")]
            else:  # A在B左边
                assert words.index(first) < words.index(second), words
                place = CHINESE_SIDES[re.search(r"(左边|右边|上|下)面?(，|$)", words)[1]]
            across, down = RELATIONS[scene.relation]
            assert place == {-1: "left", 1: "right"}.get(across, {-1: "top", 1: "bottom"}.get(down))
            continue
        place = re.search(r"(左边|右边|上|下|中间)(?:面|方)?(?:有|，|$)", words)
        assert place is None or CHINESE_SIDES[place[1]] == scene.objects[0].place, words
        size = re.search(rf"(大|小){names[0]}", words)
        assert size is None or {"大": "big", "小": "small"}[size[1]] == scene.objects[0].size
    assert len(shapes) > 60


def test_other_names_come_now_and_then(settings: DataSettings) -> None:
    named = Scenes(settings.model_copy(update={"words": WORDS}))
    foxes = [s for s in (named.scene(0, i) for i in range(COUNT)) if s.objects[0].concept == "fox"]
    told = [scene for scene in foxes if "vixen" in scene.caption]
    assert 0 < len(told) < 0.5 * len(foxes)
    assert all("vixen" in s.caption or "fox" in s.caption for s in foxes)
    assert not any(re.search(r"[\u4e00-\u9fff]", s.caption) for s in foxes)
