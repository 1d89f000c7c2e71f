"""LoRAs as training leaves them: saved in each spelling, and read by PEFT, diffusers and ourselves.

A network with PEFT's layers and random numbers in them is the reference; what reads the saved file
must give the same, within 1e-5.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from sdcore import TextToImage, apply_loras, read_lora, save_lora
from sdcore.adapters.lora_math import Change, Kronecker, LowRank
from sdcore.adapters.lora_names import Place
from sdcore.errors import UsageError
from sdcore.training.peft_layers import (
    AdapterSettings,
    add_adapters,
    changes_of,
    target_layers,
)
from tests.adapters.test_lora import answer_of, random
from tests.reference.test_lora import reference_answer

KINDS = ("lora", "dora", "rslora", "locon", "loha", "lokr")
SPELLINGS = {
    "kohya": KINDS,
    "diffusers": ("lora", "dora", "rslora", "locon"),
    "peft": KINDS,
}
PAIRS = [(kind, spelling) for spelling, kinds in SPELLINGS.items() for kind in kinds]
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sdxl_folder)


def settings_of(kind: str, *targets: str) -> AdapterSettings:
    wanted = {"kind": kind, "rank": 4, "alpha": 3, "targets": list(targets or ("all",))}
    return AdapterSettings.model_validate(wanted)


def randomise(network: nn.Module) -> None:
    """Fresh adapters change nothing; these do, and not tenfold, so that 1e-5 means something."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=draws))
            elif parameter.requires_grad:
                size = 0.3 if "hada" in name else 0.1
                parameter.copy_(size * torch.randn(parameter.shape, generator=draws))


def train(pipe: TextToImage, settings: AdapterSettings, *parts: str) -> Any:
    """The model with PEFT's layers in copies of some networks, as if they had been trained."""
    networks = {part: copy.deepcopy(pipe.part(part)) for part in parts or ("unet",)}
    for part, network in networks.items():
        add_adapters(network, target_layers(network, part, settings.layers), settings, 0)
        randomise(network)
    return pipe.replace(**networks)


def changes_in(pipe: TextToImage, *parts: str) -> dict[Place, Change]:
    return {
        place: change
        for part in parts or ("unet",)
        for place, change in changes_of(pipe.part(part), part).items()
    }


def file_of(folder: Path, spelling: str) -> Path:
    return folder / ("adapter_model.safetensors" if spelling == "peft" else "lora.safetensors")


@pytest.mark.parametrize(("kind", "spelling"), PAIRS)
def test_what_was_trained_is_what_is_read_again(
    kind: str, spelling: str, sd: TextToImage, tmp_path: Path
) -> None:
    trained = train(sd, settings_of(kind))
    expected = answer_of(trained)
    assert (expected - answer_of(sd)).abs().mean() > 0.01
    path = file_of(tmp_path, spelling)
    save_lora(path, changes_in(trained), spelling=spelling)
    lora = read_lora(path)
    assert not lora.unused
    for merge in (False, True):
        applied = apply_loras(sd, [(lora, 1)], merge=merge)
        assert not applied.loras[0].unused
        torch.testing.assert_close(answer_of(applied), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_diffusers_spelling_has_no_such_kinds(kind: str, sd: TextToImage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be saved"):
        save_lora(tmp_path / "a.safetensors", changes_in(train(sd, settings_of(kind))))


# --- diffusers ---------------------------------------------------------------------------------

READ_BY_DIFFUSERS = [
    ("kohya", "lora"),
    ("kohya", "rslora"),
    ("kohya", "locon"),
    ("diffusers", "lora"),
    ("diffusers", "dora"),
    ("diffusers", "rslora"),
    ("diffusers", "locon"),
]


@pytest.mark.parametrize(("spelling", "kind"), READ_BY_DIFFUSERS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_loads_the_file(
    family: str, spelling: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """UNet and text encoders. Of kohya's files diffusers leaves DoRA's lengths out: not those."""
    ours: TextToImage = request.getfixturevalue(family)
    folder: Path = request.getfixturevalue(f"{family}_folder")
    parts = ("unet", *ours.kind.text_encoders)
    trained = train(ours, settings_of(kind), *parts)
    path = tmp_path / "lora.safetensors"
    save_lora(path, changes_in(trained, *parts), spelling=spelling)
    pipelines = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
    theirs: Any = pipelines[family].from_pretrained(folder)
    plain = reference_answer(theirs)
    theirs.load_lora_weights(path)
    expected, got = answer_of(trained), reference_answer(theirs)
    assert (expected - plain).abs().mean() > 0.01
    torch.testing.assert_close(got, expected, **CLOSE)
    ids = theirs.tokenizer("a red fox", padding="max_length", return_tensors="pt").input_ids
    for part in ours.kind.text_encoders:
        with torch.no_grad():
            theirs_text = theirs.components[part](ids, output_hidden_states=True).hidden_states
            ours_text = trained.part(part)(ids).hidden_states
        torch.testing.assert_close(theirs_text[-1], ours_text[-1], **CLOSE)


# --- PEFT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_the_folder(kind: str, sd: TextToImage, sd_folder: Path, tmp_path: Path) -> None:
    trained = train(sd, settings_of(kind))
    save_lora(file_of(tmp_path, "peft"), changes_in(trained), spelling="peft")
    network = UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet")
    wrapped: Any = peft.PeftModel.from_pretrained(network, tmp_path).eval()  # pyright: ignore[reportArgumentType]
    noise, text = random(2, 4, 8, 8), random(2, 9, 32)
    with torch.no_grad():
        got, expected = wrapped(noise, 500, text).sample, trained.unet(noise, 500, text)
    torch.testing.assert_close(got, expected, **CLOSE)


def test_peft_saves_the_same_keys_and_shapes(sd: TextToImage, tmp_path: Path) -> None:
    for kind in KINDS:
        settings = settings_of(kind)
        trained = train(sd, settings)
        save_lora(file_of(tmp_path / kind, "peft"), changes_in(trained), spelling="peft")
        ours = load_file(file_of(tmp_path / kind, "peft"))
        theirs = peft.get_peft_model_state_dict(trained.unet)
        shapes = {f"base_model.model.{key}": t.shape for key, t in theirs.items()}
        assert {key: t.shape for key, t in ours.items()} == shapes


def test_peft_reads_a_text_encoder(sd: TextToImage, sd_folder: Path, tmp_path: Path) -> None:
    trained = train(sd, settings_of("lora"), "text_encoder")
    path = file_of(tmp_path, "peft")
    save_lora(path, changes_in(trained, "text_encoder"), spelling="peft")
    network = CLIPTextModel.from_pretrained(sd_folder, subfolder="text_encoder")
    wrapped: Any = peft.PeftModel.from_pretrained(network, tmp_path).eval()  # pyright: ignore[reportArgumentType]
    ids = sd.tokenizer("a red fox").ids
    with torch.no_grad():
        got = wrapped.base_model.model(ids).last_hidden_state
        expected, plain = (pipe.text_encoder(ids).last_hidden_state for pipe in (trained, sd))
    assert (expected - plain).abs().mean() > 0.01
    torch.testing.assert_close(got, expected, **CLOSE)


def test_each_layer_keeps_its_own_rank_and_alpha(
    sd: TextToImage, sd_folder: Path, tmp_path: Path
) -> None:
    names = target_layers(sd.unet, "unet", ["attention"])
    changes: dict[Place, Change] = {}
    for number, name in enumerate(names):
        out, into = sd.unet.get_submodule(name).weight.shape  # pyright: ignore
        rank = 2 + number % 3
        tensors = {"down": random(rank, into), "up": random(out, rank)}
        changes[Place("unet", name)] = LowRank(tensors, 0.25 * (1 + number % 2))
    save_lora(file_of(tmp_path, "peft"), changes, spelling="peft")
    again = read_lora(file_of(tmp_path, "peft"))
    for place, change in changes.items():
        assert again.changes[f"base_model.model.{place.layer}"].scale == pytest.approx(change.scale)
    network = UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet")
    wrapped: Any = peft.PeftModel.from_pretrained(network, tmp_path).eval()  # pyright: ignore[reportArgumentType]
    noise, text = random(2, 4, 8, 8), random(2, 9, 32)
    with torch.no_grad():
        expected = apply_loras(sd, [(again, 1)]).unet(noise, 500, text)
        torch.testing.assert_close(wrapped(noise, 500, text).sample, expected, rtol=0, atol=2e-5)


def test_what_peft_cannot_hold_is_refused(sd: TextToImage, tmp_path: Path) -> None:
    path = file_of(tmp_path, "peft")
    names = [Place("unet", f"layer{n}") for n in range(2)]
    plain = LowRank({"down": random(2, 8), "up": random(8, 2)}, 1.0)
    core = {"down": random(2, 8, 1, 1), "mid": random(2, 2, 3, 3), "up": random(8, 2, 1, 1)}
    long = {"down": random(2, 8), "up": random(8, 2), "magnitude": random(8, 1)}
    divided = Kronecker({"lokr_w1": random(1, 8), "lokr_w2": random(8, 1)}, 1.0)
    wrong: dict[str, dict[Place, Change]] = {
        "a core": {names[0]: LowRank(core, 1.0)},
        "several kinds": {names[0]: plain, names[1]: LowRank(long, 1.0)},
        "text_encoder": {names[0]: plain, Place("text_encoder", "layer"): plain},
        "other shapes": {names[0]: divided},
    }
    for why, changes in wrong.items():
        with pytest.raises(UsageError, match="cannot be saved") as caught:
            save_lora(path, changes, spelling="peft")
        assert why in caught.value.why
    with pytest.raises(UsageError, match="cannot be saved"):
        save_lora(tmp_path / "mine.safetensors", {names[0]: plain}, spelling="peft")
    assert not list(tmp_path.iterdir())


# --- the web UI's and ComfyUI's rules over names of keys ---------------------------------------


def layer_keys(folder: Path, part: str) -> dict[str, Tensor]:
    """The weights of a published network by the layer's name, as diffusers' folder has them."""
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    tensors = load_file(folder / part / f"{stem}.safetensors")
    named = {k.removesuffix(".weight"): t for k, t in tensors.items() if k.endswith(".weight")}
    if part == "text_encoder" and not any(k.startswith("text_model.") for k in named):
        named = {f"text_model.{k}": t for k, t in named.items()}
    return {name: tensor for name, tensor in named.items() if tensor.ndim in (2, 4)}


def known_to_web_ui_and_comfy(folder: Path, family: str) -> dict[str, Tensor]:
    """lora_unet_, lora_te_ or lora_te1_ and lora_te2_ with diffusers' name in underscores."""
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    if family == "sdxl":
        prefixes |= {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    return {
        prefix + name.replace(".", "_"): tensor
        for part, prefix in prefixes.items()
        for name, tensor in layer_keys(folder, part).items()
    }


def low_rank(t: dict[str, Tensor]) -> Tensor:
    down, up = t["lora_down.weight"], t["lora_up.weight"]
    return up.flatten(1) @ down.flatten(1)


def hadamard(t: dict[str, Tensor]) -> Tensor:
    return (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])


def kronecker(t: dict[str, Tensor]) -> Tensor:
    second = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    first = t["lokr_w1"]
    return torch.kron(first if second.ndim == 2 else first[:, :, None, None], second)


# Tensors of a layer -> rank tensor (its first side), how the change is computed.
FORMS: dict[frozenset[str], tuple[str, Callable[[dict[str, Tensor]], Tensor]]] = {
    frozenset({"lora_down.weight", "lora_up.weight"}): ("lora_down.weight", low_rank),
    frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}): ("hada_w1_b", hadamard),
    frozenset({"lokr_w1", "lokr_w2"}): ("", kronecker),
    frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}): ("lokr_w2_b", kronecker),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_no_key_is_unknown_to_the_web_ui_and_comfyui(
    family: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each key belongs to a layer that they know, and gives the change that was trained."""
    ours: TextToImage = request.getfixturevalue(family)
    folder: Path = request.getfixturevalue(f"{family}_folder")
    parts = ("unet", *ours.kind.text_encoders)
    trained = train(ours, settings_of(kind), *parts)
    changes = changes_in(trained, *parts)
    path = tmp_path / "lora.safetensors"
    save_lora(path, changes, spelling="kohya")
    layers = known_to_web_ui_and_comfy(folder, family)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        name, _, rest = key.partition(".")
        assert name in layers, key
        groups.setdefault(name, {})[rest] = tensor
    assert len(groups) == len(changes)
    prefixes = ["lora_unet_", "lora_te_" if family == "sd" else "lora_te1_", "lora_te2_"]
    found = {prefix: [n for n in groups if n.startswith(prefix)] for prefix in prefixes}
    assert all(found[prefix] for prefix in prefixes[: len(parts)])
    for (place, change), (name, tensors) in zip(
        sorted(changes.items(), key=lambda one: web_ui_name(one[0], family)),
        sorted(groups.items()),
        strict=True,
    ):
        assert name == web_ui_name(place, family)
        alpha, length = tensors.pop("alpha"), tensors.pop("dora_scale", None)
        rank_of, compute = FORMS[frozenset(tensors)]
        assert alpha.shape == () and alpha > 0
        scale = alpha.item() / tensors[rank_of].shape[0] if rank_of else 1.0
        weight = layers[name].float()
        delta = scale * compute(tensors).reshape(weight.shape)
        if length is not None:
            assert length.shape == (weight.shape[0], *[1] * (weight.ndim - 1))
            turned = weight + delta
            norms = turned.flatten(1).norm(dim=1).reshape(length.shape)
            delta = turned * length / norms - weight
        torch.testing.assert_close(change.delta(weight), delta, rtol=1e-5, atol=1e-6)


def web_ui_name(place: Place, family: str) -> str:
    first = "lora_te" if family == "sd" else "lora_te1"
    prefix = {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}
    return f"{prefix[place.part]}_{place.layer.replace('.', '_')}"


def test_settings_that_peft_writes_are_those_that_we_write(sd: TextToImage, tmp_path: Path) -> None:
    """Every setting of ours is one of PEFT's, in the class that reads it."""
    kinds = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}
    for kind, config in kinds.items():
        trained = train(sd, settings_of(kind, "cross"))
        save_lora(file_of(tmp_path / kind, "peft"), changes_in(trained), spelling="peft")
        settings = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert set(settings) <= set(config.__dataclass_fields__)
        read: Any = peft.PeftConfig.from_pretrained(tmp_path / kind)
        assert type(read) is config and (kind == "lokr" or read.r == 4)
