"""The judge on real scenes, the prompts, the intervals, and the command from end to end.

The judge is tried on a small set of drawings made here, and on the built set where there is one.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from safetensors.numpy import save_file

from bench import prompt_control
from bench import prompts as prompts_command
from bench.judge import Judge, Reading
from bench.prompt_control import (
    CHINESE,
    ENGLISH,
    HELD_OUT,
    SEEN,
    confusions,
    measure,
    model_painter,
    shuffled,
    table,
)
from bench.prompts import PerfectPainter, Prompt, compose
from bench.shares import difference, wilson
from bench.verdict import MEASURES, score, verdict
from sdcore import TextToImage
from sdcore.errors import UsageError
from sdcore.training.settings import load_settings
from train.emoji.data.captions import Captions
from train.emoji.data.drawings import load
from train.emoji.data.layout import Drawn
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, Words

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
SHAPES = {
    "ball": [],
    "box": [(14, 14), (114, 14), (114, 114), (14, 114)],
    "tent": [(64, 10), (118, 114), (10, 114)],
    "kite": [(64, 4), (104, 50), (64, 124), (24, 50)],
    "arrow": [(6, 44), (66, 44), (66, 14), (122, 64), (66, 114), (66, 84), (6, 84)],
    "hourglass": [(14, 8), (114, 8), (64, 64), (114, 120), (14, 120), (64, 64)],
    "stairs": [(8, 118), (8, 84), (44, 84), (44, 48), (80, 48), (80, 12), (118, 12), (118, 118)],
    "cross": [(46, 6), (82, 6), (82, 46), (122, 46), (122, 82), (82, 82), (82, 122), (46, 122),
              (46, 82), (6, 82), (6, 46), (46, 46)],
}  # fmt: skip
STYLES = {"flat": ("teal", "teal"), "lined": ("ivory", "navy"), "warm": ("orange", "maroon")}


def draw(shape: str, style: str) -> np.ndarray:
    picture = Image.new("RGBA", (128, 128))
    fill, outline = STYLES[style]
    pen = ImageDraw.Draw(picture)
    if SHAPES[shape]:
        pen.polygon(SHAPES[shape], fill=fill, outline=outline, width=8)
    else:
        pen.ellipse((8, 8, 120, 120), fill=fill, outline=outline, width=8)
    return np.array(picture)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("drawings")
    pictures = {f"{style}/{shape}": draw(shape, style) for style in STYLES for shape in SHAPES}
    save_file(pictures, folder / "drawings.safetensors")
    return DataSettings(
        concepts={name: name for name in SHAPES},
        styles={name: name for name in STYLES},
        held_out_combinations=[("ball", "tent"), ("arrow", "cross")],
        folder=str(folder),
    )


@pytest.fixture(scope="module")
def judge(settings: DataSettings) -> Judge:
    return Judge(load(settings), settings.backgrounds, settings.image_size)


@pytest.fixture(scope="module")
def bilingual(settings: DataSettings) -> DataSettings:
    words = {name: Words(zh=[f"第{i}", f"又{i}"]) for i, name in enumerate(SHAPES)}
    words["ball"] = Words(zh=["球"], also=["globe", "sphere"], measure="颗")
    return settings.model_copy(update={"words": words, "chinese_share": 0.5})


def shares(settings: DataSettings, judge: Judge, count: int, blur: float = 0.0) -> dict[str, float]:
    prompts = compose(settings, count, seed=3)
    images = PerfectPainter(settings, seed=4)(prompts)
    images = [image.filter(ImageFilter.GaussianBlur(blur)) for image in images]
    return {key: hits / n for key, (hits, n) in score(prompts, judge.read(images)).items()}


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_judge_reads_real_scenes(settings: DataSettings, judge: Judge, blur: float) -> None:
    right = shares(settings, judge, 60, blur)
    assert min(right["concept"], right["style"], right["place"]) >= 0.85
    assert min(right["both objects"], right["relation"]) >= 0.85
    assert right["background"] >= 0.95


def built(name: str) -> DataSettings:
    settings = load_settings(DataSettings, CONFIGS / name)
    if not (Path(settings.folder) / "drawings.safetensors").is_file():
        pytest.skip("the drawings are not built: python -m train.emoji.data.drawings")
    return settings


def test_judge_reads_scenes_of_the_built_drawings() -> None:
    settings = built("emoji_data.yaml")
    judge = Judge(load(settings), settings.backgrounds, settings.image_size)
    right = shares(settings, judge, 80, blur=1.0)
    assert min(right[measure] for measure in MEASURES) >= 0.9
    # The training series' own scenes of held-out pairs, as they are.
    unseen = Scenes(settings, held_out=True)
    scenes = [scene for scene in (unseen.scene(1, i) for i in range(60)) if not scene.relation]
    read = judge.read([Image.fromarray(unseen.picture(scene)) for scene in scenes])
    hits = [r.concept == s.objects[0].concept for r, s in zip(read, scenes, strict=True)]
    assert np.mean(hits) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_judge_reads_scenes_of_1944_drawings(blur: float) -> None:
    settings = built("emoji_data.yaml")
    judge = Judge(load(settings), settings.backgrounds, settings.image_size)
    right = shares(settings, judge, 300, blur)
    assert min(right[measure] for measure in MEASURES) >= (0.9 if blur else 0.95)
    assert min(right["concept"], right["style"], right["background"]) >= 0.97


def test_judge_names_both_of_two_small_objects_among_1944_drawings() -> None:
    """Small things of 324 are told apart by fine cells; with coarse ones alone this fails."""
    settings = built("emoji_data.yaml")
    judge = Judge(load(settings), settings.backgrounds, settings.image_size)
    prompts = [prompt for prompt in compose(settings, 600) if prompt.relation]
    hits, asked = score(prompts, judge.read(PerfectPainter(settings)(prompts)))["both objects"]
    assert asked == 120
    assert hits >= 0.95 * asked


def test_a_drawing_is_found_where_it_lies_though_half_of_it_cannot_be_seen() -> None:
    picture = np.full((128, 128, 4), 255, np.uint8)
    picture[:, :64, :3], picture[:, 64:, :3] = (245, 160, 70), (45, 65, 140)
    other = np.full((128, 128, 4), 255, np.uint8)
    judge = Judge({("s", "flag"): picture, ("s", "sheet"): other}, {"orange": (245, 160, 70)})
    for x, y in ((12, 12), (4, 12), (20, 20)):
        scene = Image.new("RGB", (64, 64), (245, 160, 70))
        scene.paste(Image.fromarray(picture[..., :3]).resize((40, 40)), (x, y))
        (read,) = judge.read([scene])
        assert read.concept == "flag"  # and its middle is that of the whole, not of the blue half
        assert read.center == pytest.approx((x - 12, y - 12), abs=2)


def test_fine_cells_tell_styles_apart_that_coarse_ones_cannot() -> None:
    """The same drawing with fine stripes, upright or level; a square of coarse cells is even."""
    drawings = {}
    for style in ("upright", "level"):
        picture = np.full((128, 128, 4), 255, np.uint8)
        picture[..., :3] = 40
        stripes = slice(None), (np.arange(128) // 4) % 2 == 1
        picture[stripes if style == "upright" else stripes[::-1]] = 255
        drawings[style, "mat"] = picture
    judge = Judge(drawings, {"red": (215, 60, 60)})
    for style, concept in drawings:
        scene = Image.new("RGB", (64, 64), (215, 60, 60))
        layer = Image.fromarray(drawings[style, concept][..., :3])
        scene.paste(layer.resize((46, 46), Image.Resampling.BOX), (8, 8))
        assert judge.read([scene])[0].style == style


def test_shuffled_prompts_score_near_chance(settings: DataSettings, judge: Judge) -> None:
    prompts = compose(settings, 100)
    rows, _ = measure({"real": PerfectPainter(settings)}, prompts, judge)
    floor = {key: hits / n for key, (hits, n) in rows["floor: shuffled prompts"].items()}
    assert floor["concept"] < 0.25 and floor["background"] < 0.2  # of 8 and of 12
    assert floor["style"] < 0.5 and floor["place"] < 0.4  # of 3 and of 5
    assert floor["both objects"] < 0.2
    moved = shuffled(prompts)
    assert sorted(p.text for p in moved) == sorted(p.text for p in prompts)
    for ours, other in zip(prompts, moved, strict=True):
        assert ours is not other and bool(ours.relation) == bool(other.relation)


def test_judge_sees_what_is_wrong(settings: DataSettings, judge: Judge) -> None:
    prompts = compose(settings, 200)
    prompts = [p for p in prompts if p.place == "left" or p.relation == "to the left of"]
    images = [ImageOps.mirror(image) for image in PerfectPainter(settings)(prompts)]
    mirrored = score(prompts, judge.read(images))
    assert mirrored["place"][0] == mirrored["relation"][0] == 0
    assert mirrored["background"][0] == mirrored["background"][1]
    assert mirrored["both objects"][0] > 0.5 * mirrored["both objects"][1]
    assert mirrored["relation"][1] == mirrored["both objects"][0]  # asked of those with both
    blank = judge.read([Image.new("RGB", (64, 64), (24, 24, 24))])[0]
    assert blank.background == "black" and blank.center == (0.0, 0.0)


def test_both_objects_count_wherever_they_stand_and_the_relation_only_with_both() -> None:
    prompt = Prompt("", ("ball", "box"), "flat", "red", "small", "", "above", False)
    stands = {"left": "ball", "right": "box", "top": "tent", "bottom": "tent"}
    beside, above, one = (
        prompt_reading(**halves)
        for halves in (stands, stands | {"top": "ball", "bottom": "box"}, stands | {"right": "x"})
    )
    assert verdict(prompt, beside)["both objects"] and not verdict(prompt, beside)["relation"]
    assert verdict(prompt, above)["relation"] and not verdict(prompt, one)["both objects"]
    tallies = score([prompt] * 3, [beside, above, one])
    assert tallies["both objects"] == (2, 3) and tallies["relation"] == (1, 2)


def prompt_reading(**halves: str) -> Reading:
    return Reading("ball", "flat", "red", (0.0, 0.0), halves)


@pytest.mark.parametrize(("count", "times"), [(13, 1), (27, 2)])
def test_every_concept_comes_as_often(settings: DataSettings, count: int, times: int) -> None:
    for seed in range(5):
        one = [p for p in compose(settings, count, seed) if not p.relation]
        seen = Counter(p.concepts[0] for p in one if not p.held_out)
        assert seen == dict.fromkeys(SHAPES, times)


def test_half_of_every_kind_is_in_chinese(bilingual: DataSettings) -> None:
    prompts = compose(bilingual, 200, seed=5)
    kinds = Counter((bool(p.relation), p.held_out, p.language) for p in prompts)
    for kind in {key[:2] for key in kinds}:
        assert abs(kinds[*kind, "English"] - kinds[*kind, "Chinese"]) <= 1
    assert {p.text.isascii() for p in prompts if p.language == "English"} == {True}
    assert all("背景" in p.text for p in prompts if p.language == "Chinese")
    others = [p for p in prompts if p.another_name]
    assert 0.2 < len(others) / len(prompts) < 0.6
    for p in prompts:
        names = {"English": ("globe", "sphere"), "Chinese": ("又",)}[p.language]
        assert any(name in p.text for name in names) == p.another_name
        assert len(p.names) == len(p.concepts) and all(name in p.text for name in p.names)


def test_the_texts_are_captions_that_training_may_write(bilingual: DataSettings) -> None:
    writers = {
        language: Captions(bilingual.model_copy(update={"chinese_share": share}))
        for language, share in (("English", 0.0), ("Chinese", 1.0))
    }
    random = np.random.default_rng(0)
    for prompt in compose(bilingual, 30, seed=1):
        writer = writers[prompt.language]
        objects = [Drawn(c, prompt.style, prompt.size, prompt.place or "center", (0, 0, 28))
                   for c in prompt.concepts]  # fmt: skip
        first = objects[0]
        for _ in range(20_000):
            if prompt.relation:
                text, _ = writer.two(
                    random, (first, objects[1]), prompt.relation, prompt.background
                )
            else:
                text, _ = writer.one(random, first, prompt.background)
            if text == prompt.text:
                break
        else:
            pytest.fail(f"no caption reads {prompt.text!r}")


def test_rows_by_language_and_name(bilingual: DataSettings, judge: Judge) -> None:
    prompts = compose(bilingual, 40)
    rows, _ = measure({"real": PerfectPainter(bilingual)}, prompts, judge)
    assert list(rows) == [
        *("model", SEEN, HELD_OUT, ENGLISH, CHINESE, "model, another name"),
        "floor: shuffled prompts",
    ]
    for part in ((SEEN, HELD_OUT), (ENGLISH, CHINESE)):
        both = [rows[label]["background"] for label in part]
        assert tuple(map(sum, zip(*both, strict=True))) == rows["model"]["background"]
    printed = table(rows)
    assert "| held out minus seen, points |" in printed
    assert "| Chinese minus English, points |" in printed


def test_difference_of_newcombes_example() -> None:
    assert difference((56, 70), (48, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_prompts_are_fixed_and_hold_the_shares(settings: DataSettings) -> None:
    prompts = compose(settings, 300, seed=5)
    assert prompts == compose(settings, 300, seed=5) != compose(settings, 300, seed=6)
    two = [p for p in prompts if p.relation]
    assert len(prompts) == 300 and len(two) == 60
    assert sum(p.held_out for p in two) == 30
    assert sum(p.held_out for p in prompts if not p.relation) == 60
    pairs, combinations = settings.held_out_pairs(), list(map(set, settings.held_out_combinations))
    for p in prompts:
        if p.relation:
            assert (set(p.concepts) in combinations) == p.held_out
            assert len(set(p.concepts)) == 2 and not {(p.style, c) for c in p.concepts} & pairs
        else:
            assert ((p.style, p.concepts[0]) in pairs) == p.held_out
        said = (*p.concepts, p.style, p.background, p.place, p.relation)
        assert all(words in p.text for words in said)


def test_prompts_without_held_out_scenes_or_two_objects(settings: DataSettings) -> None:
    plain = settings.model_copy(update={"held_out_pairs_share": 0.0, "two_objects_share": 0.0})
    prompts = compose(plain, 40)
    assert len(prompts) == 40 and not any(p.held_out or p.relation for p in prompts)


@pytest.mark.parametrize(
    ("hits", "count", "interval"),
    [
        (5, 10, (0.2366, 0.7634)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (263, 300, (0.8346, 0.9092)),
    ],
)
def test_wilson_interval(hits: int, count: int, interval: tuple[float, float]) -> None:
    assert wilson(hits, count) == pytest.approx(interval, abs=2e-4)


def test_table_and_confusions(settings: DataSettings, judge: Judge) -> None:
    prompts = [p for p in compose(settings, 60) if not p.relation]
    readings = judge.read(PerfectPainter(settings)(prompts[1:] + prompts[:1]))
    wrong = confusions(prompts, readings)
    hits, count = score(prompts, readings)["concept"]
    assert sum(times for *_, times in wrong) == count - hits
    assert all(asked != seen for asked, seen, _ in wrong)
    tallies = dict.fromkeys(MEASURES, (0, 0)) | {"concept": (5, 10)}
    assert "| model | 50.0 (24-76, n 10) | - |" in table({"model": tallies})


def test_a_picture_does_not_depend_on_the_batch(settings: DataSettings, sd_folder: Path) -> None:
    pipe = TextToImage.from_pretrained(sd_folder)
    prompts = compose(settings, 5)
    choices = {"steps": 2, "guidance_scale": 3.0, "scheduler": "ddim"}
    together, apart = (model_painter(pipe, size, 7, choices)(prompts) for size in (5, 2))
    for a, b in zip(together, apart, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    assert np.abs(np.asarray(apart[0], int) - np.asarray(apart[1], int)).max() > 8


def test_the_command(
    settings: DataSettings, sd_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump(settings.model_dump(mode="json")), "utf-8")
    arguments = ["--data", str(data), "--model", str(sd_folder), "--out", str(tmp_path / "out")]
    flags = [*arguments, "--steps", "2", "--prompts", "20", "--guidance-scale", "1"]
    prompt_control.run(prompt_control._parser().parse_args(flags))
    printed = capsys.readouterr().out
    for row in ("model |", "model, held out", "ceiling: real", "ceiling: through", "floor"):
        assert f"\n| {row}" in printed
    result = json.loads((tmp_path / "out" / "prompt_control.json").read_text("utf-8"))
    assert len(result["pictures"]) == 20 and result["rows"]["model"]["background"][1] == 20
    assert Image.open(tmp_path / "out" / "pictures.png").width == 1500
    with pytest.raises(UsageError, match="too few"):
        prompt_control.run(prompt_control._parser().parse_args([*arguments, "--prompts", "2"]))


def test_the_grid_in_the_readme_is_of_the_first_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    data = str(root / "configs" / "train" / "emoji_data.yaml")
    prompts_command.run(prompts_command._parser().parse_args(["--data", data, "--first", "24"]))
    assert capsys.readouterr().out == (root / "docs" / "embedded_model.txt").read_text("utf-8")
