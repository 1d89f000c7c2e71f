"""Settings files: what is refused, and by which words; overrides; `resolved.yaml` repeats a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import pytest

from sdcore.errors import FileError, UsageError
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.run_settings import RunSettings
from sdcore.training.settings import Settings, _paths, load_settings, read_yaml, save_settings
from train.emoji.data.settings import DataSettings
from train.emoji.pretrain_autoencoder import AutoencoderSettings
from train.emoji.pretrain_text_encoder import TextSettings
from train.emoji.pretrain_unet import UNetSettings
from train.emoji.read_captions import ReadingSettings

CONFIGS = Path(__file__).parents[2] / "configs" / "train"


class Recipe(Settings):
    width: int = 8
    widths: tuple[int, ...] = (8, 16)
    run: RunSettings


MINIMAL = "run: {folder: out, steps: 10, batch_size: 2, learning_rate: 1.0e-3}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_holds_only_what_differs(tmp_path: Path) -> None:
    settings = load_settings(Recipe, write(tmp_path, MINIMAL))
    assert (settings.width, settings.run.steps, settings.run.warmup_steps) == (8, 10, 200)


@pytest.mark.parametrize(
    ("text", "key_path", "nearest"),
    [
        ("widht: 8\n" + MINIMAL, "widht", "'width'"),
        (MINIMAL.replace("steps", "step"), "run.step", "'steps'"),
        (MINIMAL.replace("learning_rate", "learning_rat"), "run.learning_rat", "'learning_rate'"),
    ],
)
def test_unknown_key_names_file_key_path_and_nearest(
    tmp_path: Path, text: str, key_path: str, nearest: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_settings(Recipe, path)
    assert str(path) in caught.value.what
    assert f"{key_path}: unknown key; did you mean {nearest}?" in caught.value.why


def test_unknown_key_with_nothing_near_lists_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"zzz: unknown key; known: run, width, widths"):
        load_settings(Recipe, write(tmp_path, "zzz: 1\n" + MINIMAL))


@pytest.mark.parametrize(
    ("override", "key_path"),
    [
        ("width=wide", "width"),
        ("widths=[8, wide]", "widths.1"),
        ("run.precision=bf17", "run.precision"),
        ("run.steps=1.5", "run.steps"),
    ],
)
def test_value_that_does_not_fit_names_its_key_path(
    tmp_path: Path, override: str, key_path: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(Recipe, write(tmp_path, MINIMAL), [override])
    assert caught.value.why.startswith(f"{key_path}: ")


def test_overrides_reach_nested_keys_as_yaml_values(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    overrides = ["width=16", "widths=[1, 2]", "run.steps=99", "run.precision='no'"]
    settings = load_settings(Recipe, path, overrides)
    assert (settings.width, settings.widths) == (16, (1, 2))
    assert (settings.run.steps, settings.run.precision) == (99, "no")
    assert settings.run.batch_size == 2  # its neighbours in the file stay


@pytest.mark.parametrize("override", ["width", "width.deep=3", "run.steps.deep=3", "widths=[1"])
def test_override_that_makes_no_sense_is_a_usage_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(Recipe, write(tmp_path, "width: 8\n" + MINIMAL), [override])
    assert repr(override) in caught.value.what


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "run: [1\n"])
def test_file_that_holds_no_settings(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileError, match=r"recipe\.yaml"):
        load_settings(Recipe, write(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.yaml"):
        load_settings(Recipe, tmp_path / "absent.yaml")


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f"width: !!python/object/apply:pathlib.Path.touch [{canary}]\n" + MINIMAL
    with pytest.raises(FileError, match="not valid YAML"):
        load_settings(Recipe, write(tmp_path, text))
    assert not canary.exists()


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load_settings(Recipe, write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        settings.width = 3


def test_resolved_settings_hold_every_key_and_repeat_the_run(tmp_path: Path) -> None:
    settings = load_settings(Recipe, write(tmp_path, MINIMAL), ["run.learning_rate=1.25e-4"])
    resolved = tmp_path / "resolved.yaml"
    save_settings(settings, resolved)
    assert load_settings(Recipe, resolved) == settings
    text = resolved.read_text("utf-8")
    missing = [
        key for key in (*Recipe.model_fields, *RunSettings.model_fields) if f"{key}:" not in text
    ]
    assert not missing


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("emoji_data.yaml", DataSettings),
        ("emoji_autoencoder.yaml", AutoencoderSettings),
        ("emoji_text_encoder.yaml", TextSettings),
        ("emoji_reading.yaml", ReadingSettings),
        ("emoji_unet.yaml", UNetSettings),
    ],
)
def test_every_recipe_s_settings_load_and_repeat(
    tmp_path: Path, name: str, model: type[Settings]
) -> None:
    settings = load_settings(model, CONFIGS / name)
    save_settings(settings, tmp_path / name)
    assert load_settings(model, tmp_path / name) == settings


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps=5", "did you mean run.steps or validation.steps?"),
        ("rank=4", "did you mean lora.rank?"),
        ("method=dreambooth", "DreamBooth is a setting of the data"),
        ("lora=8", "lora: it is a group of settings: alpha, dropout, kind, rank"),
        ("lora.rank=", "lora.rank"),
        ("data=", "data.source"),
        ("data.prior.promt=x", "did you mean 'prompt'?"),
        ("lora.targets=[foo]", "*.attn2.to_k."),
        ("lr=1e-4", "here it is run.learning_rate."),
        ("network-dim=8", "here it is lora.rank."),
        ("num_train_epochs=3", "here it is run.steps: a step is a batch"),
    ],
)
def test_a_fine_tuning_says_which_setting_was_meant(override: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(FinetuneSettings, None, ["data=pics", override])
    text = str(caught.value)
    assert said in text and ".." not in text and "Settings" not in text and "['" not in text


def test_names_of_other_trainers_lead_to_settings_that_are_there() -> None:
    known = {*_paths(FinetuneSettings), *FinetuneSettings.model_fields}
    for name, ours in FinetuneSettings.OTHER_NAMES.items():
        paths = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", ours.partition(":")[0].replace("=min_snr", ""))
        assert set(paths) - {"with"} <= known, name
        assert name not in known


def test_one_text_is_a_list_and_nothing_is_an_empty_text() -> None:
    texts = ["data=pics", "data.trigger=", "lora.targets=cross", "output.formats=peft"]
    settings = load_settings(
        FinetuneSettings, None, [*texts, "method=LoRA", "data.resolution=null"]
    )
    assert settings.data.trigger == "" and settings.data.resolution is None
    assert settings.lora.targets == ["cross"] and settings.output.formats == ["peft"]
    assert settings.method == "lora"


@pytest.mark.parametrize(
    "text",
    [
        *("2024-05-01", "2024-13-45", "007", "0123", "1_000", "1.10", "1:30", "true", "1e400"),
        *("my #1 pictures", "#1", "Fotos: Urlaub", "*x*", "&x", "!x", "@me", "%x", "- a", "..."),
        *("=", "<<", ">x", "|", '"quoted" and not', "'tis"),
    ],
)
def test_a_text_is_what_was_typed(text: str) -> None:
    """Also where YAML would see a date, a number, a comment or a mark of its own."""
    asked = [f"data={text}", f"data.trigger={text}", f"validation.prompts={text}"]
    settings = load_settings(FinetuneSettings, None, asked)
    assert settings.data.source == settings.data.trigger == text
    assert settings.validation.prompts == [text]


def test_a_text_in_a_file_is_as_it_is_written(tmp_path: Path) -> None:
    text = "data: {source: 2024-05-01, trigger: 007}\noutput: {name: 1.10}\nrun: {steps: 1_000}\n"
    settings = load_settings(FinetuneSettings, write(tmp_path, text))
    assert (settings.data.source, settings.data.trigger) == ("2024-05-01", "007")
    assert (settings.output.name, settings.run.steps) == ("1.10", 1000)
    assert load_settings(FinetuneSettings, write(tmp_path, "data: 2024\n")).data.source == "2024"


@pytest.mark.parametrize("text", ["run.steps=true", "run.learning_rate=true", "run.steps=[3]"])
def test_what_is_no_number_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=text.partition("=")[0].replace(".", r"\.")):
        load_settings(FinetuneSettings, None, ["data=pics", text])


def test_home_is_found_without_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    asked = ["data=~/pics", "data.masks=~/masks", "run.folder=~/run", "model=~/sd.safetensors"]
    settings = load_settings(FinetuneSettings, None, [*asked, "data.trigger=~x"])
    found = (settings.data.source, settings.data.masks, settings.run.folder, settings.model)
    assert found == tuple(str(tmp_path / n) for n in ("pics", "masks", "run", "sd.safetensors"))
    assert settings.data.trigger == "~x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: p\nrun: {steps: 3}\nrun: {keep: 2}\n", "'run' stands there twice in line 3"),
        ("data: p\nrun: {steps: 3, steps: 4}\n", "'steps' stands there twice"),
        ("data: p\nrun.steps: 5\n", "steps stands indented in a line below `run:`"),
        ("run: {steps: 5}\n", "Set data=FOLDER, or the same in the file"),
        ("data: p\nrun:\n\tsteps: 5\n", "in line 3, column 1"),
        (f"data: p\nrun: {{steps: {'9' * 5000}}}\n", "run.steps"),
        ("data: p\0\n", "not valid YAML"),
    ],
)
def test_a_file_that_people_write_is_explained(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises((FileError, UsageError)) as caught:
        load_settings(FinetuneSettings, write(tmp_path, text))
    assert said in str(caught.value) and "unicode string" not in str(caught.value)


def test_a_file_of_settings_that_cannot_be_compared_is_a_fault(tmp_path: Path) -> None:
    for text in ("data: 2024-13-45\n", f"steps: {'9' * 5000}\n"):
        with pytest.raises(FileError, match="not valid YAML"):
            read_yaml(write(tmp_path, text))


def test_a_file_in_another_encoding_is_said(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes("data: Bücher\n".encode("cp1252"))
    with pytest.raises(FileError, match="Save it as UTF-8"):
        load_settings(FinetuneSettings, path)


def test_a_group_whose_lines_are_comments_is_empty(tmp_path: Path) -> None:
    text = "data: pics\nrun:\n  # steps: 500\nlora: null\n"
    settings = load_settings(FinetuneSettings, write(tmp_path, text))
    assert settings == load_settings(FinetuneSettings, None, ["data=pics"])


def test_a_folder_alone_is_met_with_the_setting_that_was_meant() -> None:
    with pytest.raises(UsageError, match="Write data=value, as data=my_pictures"):
        load_settings(FinetuneSettings, None, ["my_pictures"])
    with pytest.raises(UsageError, match="Set data=FOLDER"):
        load_settings(FinetuneSettings, None, [])


class _Group(Settings):
    source: str = ""
    trigger: str = "x"


class _Short(Settings):
    SHORT: ClassVar[dict[str, str]] = {"data": "source"}
    data: _Group


def test_words_of_yaml_1_1_are_words_and_a_group_has_a_short_name(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("data: folder\n", "utf-8")
    assert load_settings(_Short, path, ["data.trigger=no"]).data == _Group(
        source="folder", trigger="no"
    )
    assert load_settings(_Short, None, ["data=2024", "data.trigger="]).data == _Group(
        source="2024", trigger=""
    )
