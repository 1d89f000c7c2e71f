"""What a trained file says about its training, and who reads it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from sdcore import TextToImage, read_lora, save_lora
from sdcore.adapters.lora_math import LowRank
from sdcore.adapters.lora_names import Place, layers_of
from sdcore.checkpoint.inspection import inspect
from sdcore.checkpoint.single_file import save_single_file
from sdcore.errors import UsageError
from sdcore.files.hashes import file_hash, legacy_hash, tensor_hash
from sdcore.training.facts import facts, family_names, model_facts, tag_frequency
from tests.adapters.test_lora import random


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def lora_of(sd: TextToImage, path: Path, rank: int = 2, **named: object) -> dict[str, str]:
    """A LoRA file with facts; what its header says."""
    changes = {
        place: LowRank({"down": random(rank, w.shape[1]), "up": random(w.shape[0], rank)}, 1.0)
        for place, layer in layers_of(sd).items()
        if (w := layer.weight).ndim == 2 and place.part == "unet"
    }
    save_lora(path, changes, spelling="kohya", metadata=model_facts(sd) | facts(**named))
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_everything_is_a_string_under_its_public_key() -> None:
    said = facts(
        seed=42,
        learning_rate=1e-4,
        flip_aug=False,
        network_args={"algo": "loha"},
        resolution=(512, 768),
        dataset_dirs={"cats": {"n_repeats": 10, "img_count": 12}},
        training_started_at=datetime(2024, 1, 1, tzinfo=UTC),
        min_snr_gamma=None,
        modelspec_trigger_phrase="ein rötliches Tier",
    )
    assert said == {
        "ss_seed": "42",
        "ss_learning_rate": "0.0001",
        "ss_flip_aug": "False",
        "ss_network_args": '{"algo": "loha"}',
        "ss_resolution": "512,768",
        "ss_dataset_dirs": '{"cats": {"n_repeats": 10, "img_count": 12}}',
        "ss_training_started_at": "1704067200.0",
        "modelspec.trigger_phrase": "ein rötliches Tier",
    }


def test_an_unknown_fact_is_refused() -> None:
    with pytest.raises(UsageError, match="network_dims") as caught:
        facts(network_dims=4)
    assert caught.value.hint == "Did you mean network_dim?"


def test_tags_are_counted_as_kohya_counts_them() -> None:
    captions = {"10_cat": ["A cat, Red hat, ", "a cat,,on a mat"], "fox": []}
    assert tag_frequency(captions) == {
        "10_cat": {"a cat": 2, "red hat": 1, "on a mat": 1},
        "fox": {},
    }


@pytest.mark.parametrize(
    ("width", "velocity", "version", "architecture"),
    [
        (768, False, "sd_v1", "stable-diffusion-v1"),
        (1024, False, "sd_v2", "stable-diffusion-v2-512"),
        (1024, True, "sd_v2_v", "stable-diffusion-v2-768-v"),
        (2048, False, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        (96, False, "sdcore_emoji", "sdcore_emoji"),
    ],
)
def test_families(
    width: int, velocity: bool, version: str, architecture: str, sd: TextToImage
) -> None:
    kind = replace(sd.kind, text_width=width)
    names = family_names(kind, velocity=velocity, name="emoji")
    assert names == (version, architecture)
    inpainting = replace(kind, channels=9)
    names = family_names(inpainting, velocity=velocity, name="emoji")
    assert names == (version, f"{architecture}-inpainting")


def test_what_a_model_predicts_is_said(sd: TextToImage, sd2_folder: Path) -> None:
    assert model_facts(sd)["modelspec.prediction_type"] == "epsilon"
    assert model_facts(sd)["modelspec.architecture"].endswith("/lora")
    predicts_v = model_facts(TextToImage.from_pretrained(sd2_folder), kind="textual-inversion")
    assert predicts_v["modelspec.prediction_type"] == "v"
    assert predicts_v["modelspec.architecture"].endswith("/textual-inversion")


def test_a_single_file_is_named_and_hashed_as_the_web_ui_does(
    sd: TextToImage, tmp_path: Path
) -> None:
    path = tmp_path / "base.safetensors"
    save_single_file(sd, path)
    data = path.read_bytes()
    assert len(data) > 0x100000, "the old hash looks behind the first MiB"
    said = model_facts(sd, file=path)
    assert said["ss_sd_model_name"] == "base.safetensors"
    assert said["ss_new_sd_model_hash"] == hashlib.sha256(data).hexdigest() == file_hash(path)
    window = data[0x100000:0x110000]
    assert said["ss_sd_model_hash"] == hashlib.sha256(window).hexdigest()[:8] == legacy_hash(path)


def test_the_hashes_of_a_lora_are_those_of_its_tensors(sd: TextToImage, tmp_path: Path) -> None:
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    first = lora_of(sd, small, seed=1)
    again = lora_of(sd, small, seed=2, modelspec_title="another title")
    assert first["sshs_model_hash"] == again["sshs_model_hash"] == tensor_hash(small)
    assert first["sshs_legacy_hash"] == "e3b0c442"  # SHA-256 of nothing: the file ends before 1 MiB
    said = lora_of(sd, large, rank=200, seed=1)
    assert said["sshs_model_hash"] == tensor_hash(large) != first["sshs_model_hash"]
    trained = {key: text for key, text in said.items() if key.startswith("ss_")}
    data = save(load_file(large), trained)
    assert said["sshs_legacy_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]


def test_inspect_and_read_lora_show_them(sd: TextToImage, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    lora_of(
        sd,
        path,
        network_module="networks.lora",
        network_alpha=4,
        network_dim=2,
        tag_frequency=tag_frequency({"cats": ["my cat, red", "my cat"]}),
        modelspec_trigger_phrase="my cat",
    )
    report = inspect(path, hashes=True)
    assert report["base model"] == f"sdcore_{sd.defaults.name}"
    assert report["network"] == "networks.lora" and report["alpha"] == "4"
    assert report["trigger phrase"] == "my cat" and report["tags"] == ["my cat (2)", "red (1)"]
    assert report["sshs_model_hash"] == "agrees with the tensors"
    assert report["ranks"] == {2: len(read_lora(path).changes)}
    lora = read_lora(path)
    assert lora.trigger_words == "my cat" and lora.tag_counts == {"my cat": 2, "red": 1}
    command = [sys.executable, "-m", "sdcore", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for shown in ("trigger phrase: my cat", "my cat (2)", "networks.lora", "ss_network_dim"):
        assert shown in done.stdout


def test_a_huge_set_of_captions_leaves_a_header_that_can_be_read(
    sd: TextToImage, tmp_path: Path
) -> None:
    captions = {"many": [f"tag {n}" for n in range(20_000)]}
    path = tmp_path / "mine.safetensors"
    said = lora_of(sd, path, tag_frequency=tag_frequency(captions))
    assert len(json.loads(said["ss_tag_frequency"])["many"]) == 5000
    assert len(read_lora(path).tag_counts) == 5000


def test_hashes_belong_to_kohyas_spelling(sd: TextToImage, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    change = LowRank({"down": random(2, 32), "up": random(32, 2)}, 1.0)
    place = Place("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    save_lora(path, {place: change}, metadata={"mine": "1"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"mine": "1", "format": "pt"}
    assert torch.equal(load_file(path)[f"{place}.lora_B.weight"], change.up)
