"""Words that a model was never taught: found in prompts, with what is near; no false alarms."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sdcore.app import edit as edit_prompt
from sdcore.app import explain
from sdcore.app import image as image_to_image
from sdcore.app import paint as text_to_image
from sdcore.checkpoint.parts import preflight_model
from sdcore.errors import FileError
from sdcore.files.folder import LocalFolder
from sdcore.pipeline.text_to_image import EMBEDDED
from sdcore.text.known_words import KnownWords, describe_unknown, read_known_words
from sdcore.training.settings import load_settings
from train.emoji.data import words
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings

ROOT = Path(__file__).parents[2]
NAMES = ["fox", "ice cream", "red apple", "t-shirt", "wolf", "leaf", "pony", "noto"]
NAMES += ["狐狸", "猫", "小猫", "猫头鹰", "小鸡", "鸡尾酒", "T恤", "红色", "大树", "树袋熊"]
OTHER = ["a", "an", "the", "on", "in", "style", "background", "一只", "一件", "在", "左边", "背景"]
OTHER += ["风格", "的", "大", "小", "，"]
KNOWN = KnownWords.of(NAMES, OTHER)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """The scenes of the embedded model, with dots for drawings: captions do not depend on them."""
    settings = load_settings(DataSettings, ROOT / "configs" / "train" / "emoji_data.yaml")
    folder = tmp_path_factory.mktemp("drawings")
    pairs = [f"{style}/{concept}" for style in settings.styles for concept in settings.concepts]
    save_file(
        {pair: np.zeros((1, 1, 4), np.uint8) for pair in pairs}, folder / "drawings.safetensors"
    )
    return Scenes(settings.model_copy(update={"folder": str(folder)}))


def test_no_false_alarm_on_training_captions(scenes: Scenes) -> None:
    known, settings = words.known_words(scenes, 5000), scenes.settings
    captions = [scenes.scene(99, index).caption for index in range(2000)]
    assert {text: known.unknown(text) for text in captions if known.unknown(text)} == {}
    said = "".join(captions).lower()
    made_up = [word for word in known.other if word not in said and word[0] != "一"]  # some rare
    assert not made_up
    assert set(settings.concepts) <= known.names and set(settings.styles) <= known.names
    assert known.unknown("a wolfhound") == ["wolfhound"]
    assert ("狐狸" in known.names) == bool(settings.chinese_share), "told only if captions say it"


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("A Red fox, in NOTO style!", []),
        ("an ice on the apple", []),  # word by word
        ("a wolfhound on a fox-leaf", ["wolfhound"]),
        ("foxes", ["foxes"]),  # the tokenizer spells it in other tokens than fox
        ("a fox and a fox and wolves", ["and", "wolves"]),
        ("fox's t-shirt", ["fox's"]),
        ("a fox 🦊 8k", ["🦊", "8k"]),
        ("лиса, café, cafe\u0301", ["лиса", "café"]),
        ("一只小猫，红色背景", []),
        ("小猫头鹰", []),  # small owl, not kitten and head
        ("小鸡尾酒", []),
        ("一只大树袋熊在左边", []),
        ("noto风格的T恤", []),
        ("一只狼狗在草地左边", ["狼狗", "草地"]),
        ("fluent风格的狐狸", ["fluent"]),
        ("小猫的左边和狐狸，一只的老鼠了", ["老鼠"]),  # what only joins words is none
        ("", []),
        ("， ... !", []),
    ],
)
def test_unknown_words_are_found_in_order_and_once(text: str, unknown: list[str]) -> None:
    assert KNOWN.unknown(text) == unknown


@pytest.mark.parametrize(
    ("word", "near"),
    [
        *[("foxes", ["fox"]), ("wolves", ["wolf"]), ("leaves", ["leaf"]), ("ponies", ["pony"])],
        *[("appel", ["apple"]), ("wolfhound", ["wolf"]), ("zeppelin", []), ("theatre", [])],
        *[("大狐狸", ["狐狸"]), ("熊猫", ["猫"]), ("火车", [])],
    ],
)
def test_near_words(word: str, near: list[str]) -> None:
    assert KNOWN.near(word) == near


def test_the_message_names_a_few_words_and_counts_the_rest() -> None:
    assert describe_unknown(KNOWN, ["a fox", "on the leaf"]) == ""
    assert describe_unknown(KNOWN, ["two foxes", "two dogs"]) == (
        "the model does not know 'two', 'foxes' (near: fox) or 'dogs'"
    )
    text = " ".join(f"w{i}" for i in range(11))
    assert describe_unknown(KNOWN, [text], most=2) == (
        "the model does not know 'w0', 'w1' or 9 other words"
    )


def test_a_model_of_english_alone_says_so() -> None:
    english = KnownWords.of(["fox"], ["a"])
    assert describe_unknown(english, ["a fox", "狐狸 wolf"]) == (
        "the model does not know '狐狸' or 'wolf'; it was taught no Chinese or Japanese"
    )
    assert "taught" not in describe_unknown(english, ["a wolf"])
    assert "taught" not in describe_unknown(KNOWN, ["火车"])


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["fox"]},
        {"names": ["fox"], "other": "a"},
        {"names": ["fox", 3], "other": []},
        {"names": ["fox", " "], "other": []},
        {"names": [], "other": [], "more": []},
    ],
)
def test_a_list_that_cannot_be_used_is_refused(content: dict, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(FileError, match=r"words\.json"):
        read_known_words(tmp_path)


def test_the_embedded_model_carries_its_words_and_its_card_names_them() -> None:
    known = read_known_words(EMBEDDED)
    assert known is not None and known.unknown("a wolfhoundish gryphon") != []
    assert known.unknown("a small fox in neon style on the left on a light blue background") == []
    assert "words.json" in preflight_model(LocalFolder(EMBEDDED), ["tokenizer"], None).files


@pytest.fixture
def taught(sd_folder: Path, tmp_path: Path) -> Path:
    """A model that was taught few words."""
    folder = shutil.copytree(sd_folder, tmp_path / "taught")
    lists = {"names": ["fox", "red", "狐狸"], "other": ["a", "on"]}
    (folder / "words.json").write_text(json.dumps(lists), "utf-8")
    return folder


def test_every_sampling_script_says_what_the_model_was_never_taught(
    taught: Path, sd_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    picture, warning = str(tmp_path / "red.png"), "warning: the model does not know 'foxes' (near:"
    prompts = ["a fox", "foxes on red"]
    more, two = ["--output", str(tmp_path / "out"), "--seed", "1"], ["--steps", "2"]
    for script, arguments in (
        (text_to_image, [*prompts, *two]),
        (text_to_image, [*prompts, "--explain-prompt"]),
        (image_to_image, [picture, *prompts, *two]),
        (explain, ["foxes", "--images", "2", *two]),
        (explain, ["foxes", "--image", picture]),
        (edit_prompt, ["a fox", "--to", "a foxes", "--images", "2", *two]),
    ):
        with warnings.catch_warnings():  # Python shows a warning once in a process
            warnings.simplefilter("default")
            assert script.main([*arguments, *more, "--model", str(taught)]) == 0
        assert capsys.readouterr().err.count(warning) == 1, script
    assert text_to_image.main(["foxes", *more, *two, "--model", str(sd_folder)]) == 0
    assert "know" not in capsys.readouterr().err, "a model without a list knows every word"


def test_marks_of_a_dialect_are_no_words_and_what_it_reads_is(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "2", "--output", str(tmp_path / "out"), "--model", str(taught)]

    def err(*arguments: str) -> str:
        assert text_to_image.main([*arguments, *more]) == 0
        return capsys.readouterr().err

    assert "know" not in err("(a fox:1.3) AND [red|a fox] BREAK a", "--dialect", "a1111")
    assert "does not know 'cow'" in err("a [fox:cow:0.5]", "--dialect", "a1111")
    assert "negative prompt: the model does not know 'bad'" in err(
        "fox", "--negative-prompt", "bad"
    )


@pytest.mark.usefixtures("few_captions")
def test_the_command_writes_the_list_beside_a_model_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"concepts": {"fox": "fox", "owl": "owl"}, "styles": {"noto": "noto"}}
    settings |= {"folder": str(tmp_path), "held_out_pairs_share": 0.0}
    (tmp_path / "data.yaml").write_text(json.dumps(settings), "utf-8")
    dot = np.zeros((1, 1, 4), np.uint8)
    save_file({"noto/fox": dot, "noto/owl": dot}, tmp_path / "drawings.safetensors")
    model = tmp_path / "model"
    model.mkdir()
    monkeypatch.setattr(
        "sys.argv", ["words", "--data", str(tmp_path / "data.yaml"), "--model", str(model)]
    )
    with pytest.raises(SystemExit) as ended:
        words.main()
    assert ended.value.code == 3 and "model_index.json" in capsys.readouterr().err
    (model / "model_index.json").write_text("{}")
    words.main()
    known = read_known_words(model)
    assert known is not None and known.unknown("an owl on the left of a fox, a cat") == ["cat"]
