"""What a model is, said in no time, without opening what is not safe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdcore.checkpoint.inspection import inspect, lines
from sdcore.errors import FileError
from sdcore.files.hashes import tensor_hash


def test_a_model_folder(sd2_folder):
    report = inspect(sd2_folder)
    assert report["kind"] == "a model in diffusers layout"
    assert report["prediction type"] == "v_prediction" and report["family"] == "no known one"
    unet = report["components"]["unet"]
    model = torch.nn.ModuleDict()
    from sdcore import UNet

    model = UNet.from_pretrained(sd2_folder, subfolder="unet")
    assert unet["parameters"] == sum(p.numel() for p in model.parameters())
    assert unet["types"] == {"F32": unet["parameters"]} and unet["class"] == "UNet2DConditionModel"


def test_a_component_and_its_variants(sd_folder, tmp_path):
    from sdcore import UNet

    unet = UNet.from_pretrained(sd_folder, subfolder="unet")
    unet.save_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    report = inspect(tmp_path)
    assert report["variants"] == ["fp16"] and list(report["types"]) == ["F16"]
    unet.save_pretrained(tmp_path)
    assert list(inspect(tmp_path)["types"]) == ["F32"]
    assert list(inspect(tmp_path, variant="fp16")["types"]) == ["F16"]


def test_the_layout_hash_is_of_names_shapes_and_types(tmp_path):
    def layout(**tensors):
        save_file(tensors, tmp_path / "x.safetensors")
        return inspect(tmp_path / "x.safetensors")["layout hash"]

    first = layout(a=torch.zeros(2, 3), b=torch.zeros(1))
    assert layout(a=torch.ones(2, 3), b=torch.ones(1)) == first
    others = [{"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).half()}, {"c": torch.zeros(2, 3)}]
    assert len({first, *(layout(b=torch.zeros(1), **other) for other in others)}) == 4


def write_lora(path: Path, **metadata: str) -> Path:
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": torch.ones(4, 8), f"{layer}.alpha": torch.ones(())}
    save_file({**tensors, f"{layer}.lora_up.weight": torch.ones(8, 4)}, path, metadata=metadata)
    return path


def test_a_lora(tmp_path):
    tags = {"10_cat": {"a cat": 7, " red": 9}, "5_dog": {"a cat": 1}}
    path = write_lora(
        tmp_path / "lora.safetensors",
        ss_base_model_version="sdxl_base_v1-0",
        ss_network_alpha="4",
        ss_tag_frequency=json.dumps(tags),
        evil="\x1b[2Jgone\nkind: a saint" + "x" * 1000,
    )
    report = inspect(path)
    assert report["kind"] == "a LoRA" and report["ranks"] == {4: 1} and report["alpha"] == "4"
    assert report["base model"] == "sdxl_base_v1-0" and report["tags"] == ["red (9)", "a cat (8)"]
    text = "\n".join(lines(report))
    assert "\x1b" not in text and sum(line.startswith("kind:") for line in text.split("\n")) == 1
    assert len(text) < 2500


def test_hashes(tmp_path):
    path = write_lora(tmp_path / "lora.safetensors")
    noted = tensor_hash(path)
    path = write_lora(path, sshs_model_hash=noted)
    report = inspect(path, hashes=True)
    assert report["sha256 of the tensors"] == noted
    assert report["sshs_model_hash"] == "agrees with the tensors"
    assert report["sha256"].startswith(report["web UI hash"]) and len(report["web UI hash"]) == 10
    other = inspect(write_lora(path, sshs_model_hash="0" * 64), hashes=True)
    assert other["sshs_model_hash"] == "is of other tensors"


def test_an_embedding(tmp_path):
    save_file({"emb_params": torch.ones(3, 768)}, tmp_path / "cat.safetensors")
    report = inspect(tmp_path / "cat.safetensors")
    assert "embedding" in report["kind"] and report["vectors"] == {"emb_params": [3, 768]}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_named_and_not_opened(tmp_path, zipped):
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    report = inspect(path)
    assert "pickle checkpoint" in report["kind"] and "sdcore convert" in report["note"]


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileError):
        inspect(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError):
        inspect(tmp_path / "empty")
