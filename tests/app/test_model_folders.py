"""Names as in the web UI and ComfyUI: what lies in their folders, and the settings file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdcore.app import flags, paint
from sdcore.app.adapters import Adapters
from sdcore.app.cli import main
from sdcore.app.model_folders import FOLDERS, find_folders, settings_path
from sdcore.errors import FileError, UsageError
from sdcore.files.header import open_header
from sdcore.metadata.png import read_settings
from tests.adapters.test_lora import lora_tensors

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
WEB_UI = {
    "checkpoints": "models/Stable-diffusion",
    "loras": "models/Lora",
    "embeddings": "embeddings",
    "vae": "models/VAE",
}
COMFY = {
    "checkpoints": "models/checkpoints",
    "loras": "models/loras",
    "embeddings": "models/embeddings",
    "vae": "models/vae",
    "unets": "models/diffusion_models",
    "text-encoders": "models/clip",
}


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own settings file does not reach into a test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    folder = tmp_path / "config" / "sdcore"
    folder.mkdir(parents=True)
    return folder / "sdcore.toml"


def fill(root: Path, layout: dict[str, str]) -> Path:
    """A program's folders with a file of each kind, one of them in a folder of its own."""
    for kind, place in layout.items():
        folder = root / place / "mine"
        folder.mkdir(parents=True)
        (folder / f"{kind}-x.safetensors").write_bytes(b"x")
        (folder / "notes.txt").write_text("x")
    return root


@pytest.mark.parametrize("inner", [".", "models"])
@pytest.mark.parametrize("layout", [WEB_UI, COMFY], ids=["web UI", "ComfyUI"])
def test_both_trees_are_read(layout: dict[str, str], inner: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "program", layout)
    folders = find_folders([root / inner])
    for kind, place in layout.items():
        if inner == "models" and not place.startswith("models"):
            continue
        expected = root / place / "mine" / f"{kind}-x.safetensors"
        for name in (f"{kind}-x", f"mine/{kind}-x", f"{kind}-x.safetensors", f"mine\\{kind}-x"):
            found = folders.find(kind, name)
            assert found is not None and found.samefile(expected), (kind, name)
        assert folders.find(kind, f"{kind}-x.safetensors [0123abcdef]") is not None
        assert folders.find(kind, "../../etc/passwd") is None
        assert folders.nearest(kind, f"{kind}x") == f"{kind}-x"


def test_comfyuis_list_of_other_folders(tmp_path: Path) -> None:
    web_ui = fill(tmp_path / "webui", WEB_UI)
    comfy = fill(tmp_path / "comfy", {"loras": "models/loras"})
    (comfy / "extra_model_paths.yaml").write_text(
        f"a111:\n  base_path: {web_ui}/\n  is_default: true\n"
        "  checkpoints: models/Stable-diffusion\n"
        "  loras: |\n    models/Lora\n    models/LyCORIS\n"
        "  embeddings: embeddings\n  vae: models/VAE\nnothing:\n"
    )
    folders = find_folders([comfy])
    assert folders.find("checkpoints", "checkpoints-x") is not None
    assert len(folders.places["loras"]) == 2 and "unets" not in folders.places
    (comfy / "extra_model_paths.yaml").write_text("a: [1")
    with pytest.raises(FileError, match="extra_model_paths"):
        find_folders([comfy])


def test_the_settings_file(no_settings: Path, tmp_path: Path) -> None:
    fill(tmp_path / "webui", WEB_UI)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "pen.safetensors").write_bytes(b"x")
    assert settings_path() == no_settings
    assert find_folders([]).places == {}
    no_settings.write_text(f'models-dir = "{tmp_path}/webui"\nloras = ["../../more"]\n')
    folders = find_folders([])
    assert {folders.find("loras", name) is not None for name in ("pen", "loras-x")} == {True}
    for text, named in {
        "model-dirs = 'x'": "Did you mean 'models-dir'",
        "loras = 3": "neither a path",
        "loras = [": "not valid TOML",
    }.items():
        no_settings.write_text(text)
        with pytest.raises((FileError, UsageError), match=named):
            find_folders([])


def test_links_in_a_circle_and_pickles(tmp_path: Path) -> None:
    root = fill(tmp_path / "webui", WEB_UI)
    os.symlink(root, root / "models" / "Lora" / "again")
    (root / "models" / "Lora" / "old.pt").write_bytes(b"x")
    folders = find_folders([root])
    assert "loras-x" in folders.names("loras")
    with pytest.warns(UserWarning, match="old.pt is a pickle"):
        assert folders.find("loras", "old") is None
    with pytest.raises(FileError, match="--models-dir"):
        find_folders([tmp_path / "none"])


def test_a_kind_has_a_folder_in_both_programs() -> None:
    assert set(COMFY) == set(FOLDERS) and set(WEB_UI) <= set(FOLDERS)


@pytest.fixture
def program(sd_folder: Path, tmp_path: Path) -> Path:
    """A web UI with a model, a LoRA and a learned word of the tiny model."""
    root = tmp_path / "webui"
    for place in WEB_UI.values():
        (root / place).mkdir(parents=True)
    os.symlink(sd_folder, root / "models" / "Stable-diffusion" / "tiny")
    tensors = lora_tensors(KEY, torch.nn.Linear(64, 64))
    save_file(tensors, root / "models" / "Lora" / "ink.v1.safetensors")
    save_file({"emb_params": torch.randn(2, 32)}, root / "embeddings" / "EasyNegative.safetensors")
    return root


def options(*arguments: str) -> Any:
    return paint.make_parser().parse_args(["a fox", *arguments])


def test_a_prompt_names_all_of_them(
    program: Path, tmp_path: Path, read_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["a red fox <lora:ink.v1:0.7>", "--negative-prompt", "easynegative, bad"]
    arguments += ["--dialect", "a1111", "--steps", "1", "--model", "tiny", "--seed", "1"]
    arguments += ["--models-dir", str(program), "--output", str(tmp_path / "out")]
    assert paint.main(arguments) == 0
    said = capsys.readouterr()
    job = read_settings(Path(said.out.strip())).job
    assert [(lora.name, lora.unet) for lora in job.loras] == [("ink.v1", 0.7)]
    assert [word.name for word in job.embeddings] == ["EasyNegative"]
    assert "no effect" not in said.err
    arguments[0] = "a red fox <lora:inkv1:0.7>"
    assert paint.main(arguments) == 2
    assert "Did you mean 'ink.v1'" in capsys.readouterr().err


def test_names_of_models(program: Path, sd_folder: Path) -> None:
    given = ("--models-dir", str(program))
    found = flags.model_choice(options("--model", "tiny", *given)).name
    assert found is not None and Path(found).samefile(sd_folder)
    assert flags.model_choice(options("--model", "owner/model", *given)).name == "owner/model"
    assert flags.model_choice(options("--model", str(sd_folder), *given)).name == str(sd_folder)
    with pytest.raises(UsageError, match="Did you mean 'tiny'"):
        flags.model_choice(options("--model", "tinny", *given))
    save_file({"a": torch.ones(1)}, program / "models" / "VAE" / "better.safetensors")
    choice = flags.model_choice(options("--model", "tiny", "--vae", "better", *given))
    assert choice.vae == program / "models" / "VAE" / "better.safetensors"


def test_a_lora_by_the_name_that_its_trainer_gave_it(tmp_path: Path) -> None:
    tensors = lora_tensors(KEY, torch.nn.Linear(64, 64))
    for name, told in (("ink-000004", "ink"), ("a", "twice"), ("b", "twice")):
        save_file(tensors, tmp_path / f"{name}.safetensors", {"ss_output_name": told})
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    found = Adapters(folder=tmp_path)
    assert found.find("ink").stem == "ink-000004" and found.find("a").stem == "a"
    with pytest.raises(UsageError, match="There is no LoRA 'twice'"):
        found.find("twice")


def test_the_hint_for_a_pickle_is_the_command_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = torch.ones(2, 32)
    for name in ("my word.pt", "w.safetensors"):
        torch.save({"string_to_param": {"*": table}, "name": "w"}, name)
        with pytest.raises(FileError) as error:
            open_header(Path(name))
        command = shlex.split(error.value.hint.split("`")[1])
        assert command[:3] == ["sdcore", "convert", name]
        assert main(command[1:]) == 0
        (read,) = open_header(Path(command[3])).shapes.values()
        assert read == (2, 32)
