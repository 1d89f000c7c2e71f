"""Component folders: read strictly, written whole, exchanged with diffusers and transformers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.files.component import load_component
from sdcore.files.folder import ModelIndex, find_model, read_model_index
from sdcore.files.saving import save_component
from sdcore.text.encoder import CLIPTextConfig, CLIPTextEncoder
from sdcore.unet.unet import UNet


def make_encoder(**changes) -> CLIPTextEncoder:
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 6, "projection_dim": 4}
    torch.manual_seed(0)
    return CLIPTextEncoder(CLIPTextConfig(**{**sizes, "eos_token_id": 19, **changes}))


@pytest.fixture
def folder(tmp_path) -> Path:
    make_encoder().save_pretrained(tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# --- reading and writing ---------------------------------------------------------------------


@pytest.mark.parametrize("projection", [False, True])
def test_round_trip(tmp_path, projection):
    encoder = make_encoder(with_projection=projection)
    encoder.save_pretrained(tmp_path)
    again = CLIPTextEncoder.from_pretrained(tmp_path)
    assert same_state(encoder, again) and again.config == encoder.config
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert names(tmp_path) == {"config.json", "model.safetensors"}


def test_loaded_weights_do_not_hang_on_the_file(folder):
    encoder = CLIPTextEncoder.from_pretrained(folder)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    (folder / "model.safetensors").write_bytes(b"")
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_variant_and_dtype(folder):
    encoder = CLIPTextEncoder.from_pretrained(folder)
    encoder.save_pretrained(folder, variant="fp16", dtype=torch.float16)
    stored = load_file(folder / "model.fp16.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    half = CLIPTextEncoder.from_pretrained(folder, variant="fp16", dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16
    full = CLIPTextEncoder.from_pretrained(folder, variant="fp16")
    assert all(torch.equal(full.state_dict()[k], v.float()) for k, v in stored.items())
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileError, match="fp16") as caught:
        CLIPTextEncoder.from_pretrained(folder)
    assert "variant" in caught.value.hint


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(folder, variant):
    encoder = CLIPTextEncoder.from_pretrained(folder)
    save_component(encoder, folder, variant=variant, shard_bytes=1500)
    files = sorted(folder.glob("model*-of-*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < 1500 + 2000 for path in files)
    assert (folder / "model.safetensors").exists() == (variant is not None)
    again = CLIPTextEncoder.from_pretrained(folder, variant=variant)
    assert same_state(encoder, again)
    theirs, report = transformers.CLIPTextModel.from_pretrained(
        folder, variant=variant, output_loading_info=True
    )
    assert not any(report.values())
    ids = torch.tensor([[1, 2, 3, 19, 19, 19]])
    with torch.no_grad():
        assert torch.equal(theirs(ids).last_hidden_state, encoder(ids).last_hidden_state)
    save_component(encoder, folder, variant=variant)  # whole again: no shard is left behind
    assert not list(folder.glob("*-of-*")) and not list(folder.glob("*.index*"))


def test_unet_shards_and_variants_go_both_ways_with_diffusers(sd_folder, tmp_path):
    theirs = diffusers.UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB", variant="fp16")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ours = UNet.from_pretrained(tmp_path, subfolder="theirs", variant="fp16")
    assert same_state(ours, theirs)
    save_component(ours, tmp_path / "ours", shard_bytes=300_000)
    again, report = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()) and same_state(again, theirs)


# --- writing is all or nothing ---------------------------------------------------------------


@pytest.mark.parametrize("failing", ["sdcore.files.weights.save_file", "os.fsync"])
def test_a_failed_save_leaves_the_old_files(folder, monkeypatch, failing):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    encoder = make_encoder()
    with torch.no_grad():
        encoder.text_model.final_layer_norm.bias.add_(1)
    monkeypatch.setattr(failing, fail)
    with pytest.raises(FileError, match="No space left"):
        encoder.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_is_renamed_before_everything_is_synced(folder, monkeypatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    make_encoder().save_pretrained(folder)
    assert events == ["sync", "sync", "rename", "rename", "sync"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_have_the_rights_that_the_umask_gives(tmp_path):
    old = os.umask(0o027)
    try:
        make_encoder().save_pretrained(tmp_path)
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o640}


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.text_model.final_layer_norm.bias[0] = 1e6
    encoder.save_pretrained(tmp_path / "full")
    with pytest.raises(NonFiniteError, match=r"final_layer_norm\.bias"):  # over float16's 65504
        encoder.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()
    with pytest.raises(FileError, match=r"final_layer_norm\.bias"):
        CLIPTextEncoder.from_pretrained(tmp_path / "full", dtype=torch.float16)


# --- refusals --------------------------------------------------------------------------------


def change_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_keys_and_shapes_are_named(folder):
    def damage(state):
        state.pop("text_model.final_layer_norm.bias")
        state["text_model.surplus"] = torch.zeros(2)
        state["text_model.final_layer_norm.weight"] = torch.zeros(9)

    change_weights(folder, damage)
    with pytest.raises(FileError) as caught:
        CLIPTextEncoder.from_pretrained(folder)
    assert "1 missing: text_model.final_layer_norm.bias" in caught.value.why
    assert "1 unknown: text_model.surplus" in caught.value.why
    assert "text_model.final_layer_norm.weight is (9,) instead of (8,)" in caught.value.why


def test_many_names_become_a_count(folder):
    change_weights(folder, lambda state: [state.pop(key) for key in list(state)[:-1]])
    with pytest.raises(FileError, match=r"35 missing: .* and 30 more"):
        CLIPTextEncoder.from_pretrained(folder)


def test_two_spellings_of_one_weight(folder):
    def damage(state):
        state["final_layer_norm.bias"] = torch.zeros(8)

    change_weights(folder, damage)
    with pytest.raises(FileError, match=r"gives \S+ twice"):
        CLIPTextEncoder.from_pretrained(folder)


def test_whole_numbers_are_no_weights(folder):
    def damage(state):
        state["text_model.final_layer_norm.bias"] = torch.zeros(8, dtype=torch.int64)

    change_weights(folder, damage)
    with pytest.raises(FileError, match="whole numbers"):
        CLIPTextEncoder.from_pretrained(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_a_safetensors_name(folder, zipped):
    path = folder / "model.safetensors"
    torch.save({"x": torch.zeros(100)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(FileError, match="pickle"):
        CLIPTextEncoder.from_pretrained(folder)


def test_only_a_bin_file(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileError, match=r"pytorch_model\.bin") as caught:
        CLIPTextEncoder.from_pretrained(folder)
    assert "convert" in caught.value.hint


def test_missing_files_list_what_is_there(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileError, match=r"config\.json is missing\.\n.*model\.safetensors"):
        CLIPTextEncoder.from_pretrained(folder)
    with pytest.raises(FileError, match=r"unet.*\n.*text_encoder/"):
        CLIPTextEncoder.from_pretrained(folder.parent, subfolder="unet")


def test_another_class(sd_folder):
    with pytest.raises(FileError, match="unet holds a UNet2DConditionModel"):
        CLIPTextEncoder.from_pretrained(sd_folder, subfolder="unet")
    with pytest.raises(FileError, match=r"text_encoder holds a CLIPTextModel\.\n.*UNet2DCondition"):
        UNet.from_pretrained(sd_folder, subfolder="text_encoder")
    with pytest.raises(FileError, match="vae holds a AutoencoderKL"):
        UNet.from_pretrained(sd_folder, subfolder="vae")


@pytest.mark.parametrize("name", [None, "", 3, b"folder"])
def test_no_model_is_named(name):
    with pytest.raises(UsageError, match="No model is named"):
        UNet.from_pretrained(name)


def test_a_folder_has_no_revisions(folder):
    with pytest.raises(UsageError, match="revision 'main'"):
        CLIPTextEncoder.from_pretrained(folder, revision="main")


@pytest.mark.parametrize(
    "arguments",
    [
        {"variant": "../fp16"},
        {"variant": ""},
        {"dtype": torch.int8},
        {"dtype": "float16"},
        {"device": "nowhere"},
        {"subfolder": "a/b"},
        {"subfolder": ".."},
    ],
)
def test_bad_arguments(folder, arguments):
    with pytest.raises(UsageError):
        load_component(CLIPTextEncoder, folder, **arguments)


def test_shards_smaller_than_a_weight(folder):
    with pytest.raises(UsageError, match="largest weight"):
        save_component(make_encoder(), folder, shard_bytes=10)


# --- folders ---------------------------------------------------------------------------------


def test_model_index(sd_folder):
    index = read_model_index(sd_folder)
    assert isinstance(index, ModelIndex) and index.pipeline == "StableDiffusionPipeline"
    assert index.components == {
        "scheduler": "PNDMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
    assert index.settings["requires_safety_checker"] is False


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"_class_name": ["pipeline", "MyPipeline"]},
        {"_class_name": "P", "auto_map": {}},
        {"_class_name": "P", "unet": ["my_unet", "MyUNet"]},
        {"_class_name": "P", "unet": ["diffusers"]},
        {"_class_name": "P", "unet": ["diffusers", 3]},
        {"_class_name": "P", "../unet": ["diffusers", "UNet2DConditionModel"]},
        {"_class_name": "P", "scheduler": ["diffusers", "os.system"]},
        {"_class_name": "P", "force_zeros_for_empty_promt": True},
        {"_class_name": "P", "requires_safety_checker": "no"},
    ],
)
def test_model_index_refusals(tmp_path, content):
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    with pytest.raises(FileError):
        read_model_index(tmp_path)


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "x", "a/b/c", "a\0b", "é/x", "x" * 5000])
def test_no_such_folder_never_asks_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", pytest.fail)
    with pytest.raises(FileError, match="no model folder"):
        find_model(name)


def test_opening_a_model_loads_no_compiler(folder):
    """Drawing first values without memory would import torch's compiler: 2 s of each start."""
    code = (
        "import sys; from sdcore.text.encoder import CLIPTextEncoder as E; "
        f"E.from_pretrained({str(folder)!r}); print('torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
