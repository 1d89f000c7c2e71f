"""Trainable layers beside those of a network: which, what they begin as, what is frozen."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from sdcore import TextToImage
from sdcore.adapters.lora_names import layers_of
from sdcore.errors import UsageError
from sdcore.training.peft_layers import (
    AdapterSettings,
    add_adapters,
    changes_of,
    target_layers,
)
from sdcore.training.settings import load_settings
from tests.adapters.test_lora import random

KINDS = ("lora", "dora", "rslora", "locon", "loha", "lokr")


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sdxl_folder)


def adapted(network: nn.Module, part: str, settings: AdapterSettings, seed: int = 0) -> nn.Module:
    network = copy.deepcopy(network)
    add_adapters(network, target_layers(network, part, settings.layers), settings, seed)
    return network


def trained(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


# --- which layers ------------------------------------------------------------------------------


def test_words_name_layers_by_what_they_do_and_where_they_are(sdxl: TextToImage) -> None:
    unet = sdxl.unet
    attention = target_layers(unet, "unet", ["attention"])
    cross, own = target_layers(unet, "unet", ["cross"]), target_layers(unet, "unet", ["self"])
    assert all(".attn2." in name for name in cross) and all(".attn1." in name for name in own)
    assert attention == [name for name in attention if name in cross or name in own]
    assert (
        len(attention)
        == len(cross) + len(own)
        == 8 * sum(name.endswith("attn1.to_q") for name in attention)
    )
    up = target_layers(unet, "unet", ["cross+up"])
    assert up == [name for name in cross if name.startswith("up_blocks.")] and up
    assert target_layers(unet, "unet", ["up"]) == [
        name for name in attention if name.startswith("up_blocks.")
    ]
    both = target_layers(unet, "unet", ["cross+mid", "self+down"])
    assert {name.split(".")[0] for name in both} == {"mid_block", "down_blocks"}
    assert all(".ff.net." in name for name in target_layers(unet, "unet", ["mlp"]))
    kinds = {type(unet.get_submodule(name)) for name in target_layers(unet, "unet", ["conv"])}
    assert all(issubclass(kind, nn.Conv2d) for kind in kinds) and kinds


def test_all_is_what_other_programs_read(sdxl: TextToImage) -> None:
    every = {place.layer for place in layers_of(sdxl) if place.part == "unet"}
    rest = every - set(target_layers(sdxl.unet, "unet", ["all"]))
    assert {name.split(".")[0] for name in rest} == {
        *("conv_in", "conv_out", "time_embedding", "add_embedding")
    }
    assert target_layers(sdxl.unet, "unet", ["conv_in", "add_embedding.*"]) == [
        *("add_embedding.linear_1", "add_embedding.linear_2", "conv_in")
    ]
    second = target_layers(sdxl.text_encoder_2, "text_encoder_2", ["all"])
    assert len(second) == 3 * 6 and "text_projection" not in second


def test_a_text_encoder_has_attention_and_mlp_alone(sd: TextToImage) -> None:
    names = target_layers(sd.text_encoder, "text_encoder", ["attention", "cross", "conv"])
    assert len(names) == 3 * 4 and all(".self_attn." in name for name in names)
    assert len(target_layers(sd.text_encoder, "text_encoder", ["mlp"])) == 3 * 2
    with pytest.raises(UsageError, match="Nothing of the text_encoder would be trained"):
        target_layers(sd.text_encoder, "text_encoder", ["cross+up"])


def test_names_and_patterns(sd: TextToImage) -> None:
    names = target_layers(sd.unet, "unet", ["*.attn2.to_k", "mid_block.resnets.0.conv1"])
    assert "mid_block.resnets.0.conv1" in names
    assert all(name.endswith("attn2.to_k") for name in names if "resnets" not in name)
    assert names == [place.layer for place in layers_of(sd) if place.layer in names]


@pytest.mark.parametrize("target", ["crossed", "cross+left", "to_k", "", "cross+"])
def test_an_unknown_word_is_refused_with_the_known_ones(
    target: str, sd: TextToImage, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is unknown") as direct:
        target_layers(sd.unet, "unet", [target])
    path = tmp_path / "settings.yaml"
    path.write_text(json.dumps({"targets": ["cross", target]}))
    with pytest.raises(UsageError, match=r"targets: .* is unknown") as in_settings:
        load_settings(AdapterSettings, path)
    for said in (direct.value.hint, in_settings.value.why):
        assert "cross, self, attention, mlp, conv, all, down, mid, up" in said
        assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k" in said


def test_a_name_that_fits_no_layer_is_refused(sd: TextToImage) -> None:
    for target in ("mid_block.nothing", "*.attn3.*"):
        with pytest.raises(UsageError, match=r"fits no layer|is unknown"):
            target_layers(sd.unet, "unet", ["cross", target])


def test_locon_takes_the_convolutions_besides(sd: TextToImage) -> None:
    assert AdapterSettings(kind="locon").layers == ("attention", "conv")
    assert AdapterSettings(kind="locon", targets=["conv+up"]).layers == ("conv+up",)
    assert AdapterSettings(kind="lora").layers == ("attention",)


# --- what they begin as ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_first_answer_is_unchanged(kind: str, dtype: torch.dtype, sd: TextToImage) -> None:
    settings = AdapterSettings.model_validate({"kind": kind, "rank": 4, "targets": ["all"]})
    ids = sd.tokenizer("a red fox").ids
    unet, encoder = (copy.deepcopy(net).to(dtype) for net in (sd.unet, sd.text_encoder))
    noise, text = random(2, 4, 8, 8).to(dtype), random(2, 9, 32).to(dtype)
    with_layers = adapted(unet, "unet", settings), adapted(encoder, "text_encoder", settings)
    assert torch.equal(with_layers[0](noise, 500, text), unet(noise, 500, text))
    ours, plain = (net(ids).last_hidden_state for net in (with_layers[1], encoder))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_all_else_is_frozen_and_what_is_trained_is_float32(kind: str, sd: TextToImage) -> None:
    settings = AdapterSettings.model_validate({"kind": kind, "rank": 4})
    network = adapted(copy.deepcopy(sd.unet).to(torch.bfloat16), "unet", settings)
    parts = trained(network)
    assert {p.dtype for p in parts.values()} == {torch.float32}
    assert all(any(w in name for w in ("lora_", "hada_", "lokr_")) for name in parts)
    rest = [p for name, p in network.named_parameters() if name not in parts]
    assert len(rest) == len(list(sd.unet.parameters()))
    assert {p.dtype for p in rest} == {torch.bfloat16}
    network(random(1, 4, 8, 8).bfloat16(), 500, random(1, 9, 32).bfloat16()).sum().backward()
    with_gradient = [n for n, p in network.named_parameters() if p.grad is not None]
    assert with_gradient == list(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_follows_from_the_seed_and_the_name_alone(kind: str, sd: TextToImage) -> None:
    settings = AdapterSettings.model_validate({"kind": kind, "rank": 4})
    torch.manual_seed(1)
    first = trained(adapted(sd.unet, "unet", settings, seed=7))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    fewer = AdapterSettings.model_validate({"kind": kind, "rank": 4, "targets": ["cross"]})
    second = trained(adapted(sd.unet, "unet", fewer, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < len(second) < len(first)
    assert all(torch.equal(first[name], second[name]) for name in second)
    other = trained(adapted(sd.unet, "unet", settings, seed=8))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_rank_and_alpha_are_those_of_the_settings(sd: TextToImage) -> None:
    for kind, scale in (("lora", 0.5), ("rslora", 1.0), ("loha", 0.5), ("lokr", 0.5)):
        settings = AdapterSettings.model_validate({"kind": kind, "rank": 4, "alpha": 2})
        changes = changes_of(adapted(sd.unet, "unet", settings), "unet")
        assert {change.scale for change in changes.values()} == {scale}
    plain = changes_of(adapted(sd.unet, "unet", AdapterSettings()), "unet")
    assert {c.scale for c in plain.values()} == {1.0}
    assert {c.rank(c.tensors()) for c in plain.values()} == {16}


def test_adapters_are_added_once(sd: TextToImage) -> None:
    settings = AdapterSettings()
    network = adapted(sd.unet, "unet", settings)
    with pytest.raises(UsageError, match="cannot be added"):
        add_adapters(network, ["mid_block.resnets.0.conv1"], settings, 0)
    with pytest.raises(UsageError, match="cannot be added"):
        add_adapters(copy.deepcopy(sd.unet), [], settings, 0)
    with pytest.raises(UsageError, match="Nothing was trained"):
        changes_of(sd.unet, "unet")


def test_dropout_is_pefts(sd: TextToImage) -> None:
    for kind in ("lora", "loha"):
        settings = AdapterSettings.model_validate({"kind": kind, "dropout": 0.25, "rank": 2})
        network = adapted(sd.unet, "unet", settings)
        layers = [m for m in network.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
        for layer in layers:
            assert layer.lora_dropout["default"].p == 0.25
        assert layers or all(
            m.rank_dropout["default"] == 0.25
            for m in network.modules()
            if isinstance(m, peft.tuners.loha.LoHaLayer)
        )
