"""Kinds of changes as LyCORIS and PEFT compute them, and the spellings of other programs."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from sdcore import LoraWeight, TextToImage, apply_loras, fit_lora, read_lora, save_lora
from sdcore.adapters.lora_blocks import LAYOUTS, read_blocks
from sdcore.adapters.lora_names import Place, layers_of, ldm_layers
from sdcore.adapters.lora_words import in_our_words
from sdcore.errors import FileError, UsageError
from tests.adapters.test_lora import answer_of, kohya_name, lora_tensors, random, whole_lora, write

Tensors = dict[str, Tensor]
LAYERS = (
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.proj_in",
    "down_blocks.0.downsamplers.0.conv",
)


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sdxl_folder)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# --- LyCORIS: the weight that its own modules merge ----------------------------------------------

LYCORIS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full.FullModule", {}),
    "ia3, outputs": ("ia3.IA3Module", {}),
    "ia3, inputs": ("ia3.IA3Module", {"train_on_input": True}),
    "glora": ("glora.GLoRAModule", {"lora_dim": 4, "alpha": 2}),
    "oft": ("diag_oft.DiagOFTModule", {"lora_dim": 4}),
    "oft, constrained": ("diag_oft.DiagOFTModule", {"lora_dim": 4, "constraint": 0.01}),
    "oft, rescaled": ("diag_oft.DiagOFTModule", {"lora_dim": 4, "rescaled": True}),
    "boft": ("boft.ButterflyOFTModule", {"lora_dim": 4}),
    "boft, rescaled": ("boft.ButterflyOFTModule", {"lora_dim": 4, "rescaled": True}),
    "norm": ("norms.NormModule", {}),
}


def lycoris_module(kind: str, layer: nn.Module) -> Any:
    pytest.importorskip("lycoris")
    module, _, name = LYCORIS[kind][0].rpartition(".")
    made = getattr(importlib.import_module(f"lycoris.modules.{module}"), name)(
        "x", copy.deepcopy(layer), 1.0, **LYCORIS[kind][1]
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(random(*parameter.shape))
    return made


def lycoris_tensors(kind: str, module: Any) -> Tensors:
    if kind == "full":  # before it is trained, its state is no difference
        found = {"diff": module.weight, "diff_b": module.bias}
    elif kind == "glora":
        found = module.custom_state_dict()
    else:
        found = {k: v for k, v in module.state_dict().items() if not k.startswith("org_module")}
    return {k: v.detach().clone() for k, v in found.items() if v is not None}


@pytest.mark.parametrize("kind", LYCORIS)
def test_as_lycoris_merges_it(kind: str, sd: TextToImage, tmp_path: Path) -> None:
    norms = ("mid_block.attentions.0.norm", f"{LAYERS[0].removesuffix('.attn1.to_q')}.norm1")
    for name in norms if kind == "norm" else LAYERS:
        layer: Any = sd.unet.get_submodule(name)
        module, key = lycoris_module(kind, layer), f"lora_unet_{name.replace('.', '_')}"
        tensors = {f"{key}.{k}": v for k, v in lycoris_tensors(kind, module).items()}
        lora = read_lora(write(tmp_path / "a.safetensors", tensors))
        weight, bias = (None if t is None else t.detach() for t in module.get_merged_weight())
        fitted = fit_lora(lora, sd)
        assert not fitted.unused
        for again in (fitted.changes, saved(fitted.changes, sd, tmp_path)):
            change = again[Place("unet", name)]
            close(layer.weight + change.delta(layer.weight), weight)
            more = change.delta_bias(layer.bias)
            if bias is not None:
                assert more is not None
                close(layer.bias + more, bias)
            else:
                assert more is None
        one_at_a_time(sd, lora, name, layer)


def saved(changes: Any, pipe: TextToImage, folder: Path) -> Any:
    """kohya's spelling has every kind of LyCORIS."""
    save_lora(folder / "saved.safetensors", changes, spelling="kohya")
    return fit_lora(read_lora(folder / "saved.safetensors"), pipe).changes


def one_at_a_time(pipe: TextToImage, lora: Any, name: str, layer: Any) -> None:
    """Beside and merged, at another weight than 1, the layer computes the same."""
    grid = (5, 5) if layer.weight.ndim == 4 or isinstance(layer, nn.GroupNorm) else ()
    x = random(2, layer.weight.shape[-1 if not grid else min(1, layer.weight.ndim - 1)], *grid)
    if isinstance(layer, nn.GroupNorm):
        x = random(2, layer.num_channels, *grid)
    both = [apply_loras(pipe, [(lora, 0.7)], merge=merge) for merge in (False, True)]
    with torch.no_grad():
        beside, merged = (styled.unet.get_submodule(name)(x) for styled in both)
        assert not torch.equal(beside, layer(x))
    torch.testing.assert_close(beside, merged, rtol=1e-4, atol=1e-5)


# --- PEFT: what its wrapped network computes ------------------------------------------------------

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
CONVOLUTIONS = ["conv1", "conv_in", "proj_in", "conv_shortcut"]
PEFT: dict[str, Callable[[], Any]] = {
    "oft": lambda: peft.OFTConfig(oft_block_size=8, r=0, target_modules=LINEAR),
    "oft, exact": lambda: peft.OFTConfig(
        oft_block_size=8, r=0, target_modules=LINEAR, use_cayley_neumann=False
    ),
    "oft, shared, few terms": lambda: peft.OFTConfig(
        oft_block_size=8, r=0, target_modules=LINEAR, block_share=True, num_cayley_neumann_terms=3
    ),
    "oft, constrained": lambda: peft.OFTConfig(
        oft_block_size=8, r=0, target_modules=LINEAR, coft=True, eps=0.1
    ),
    "boft": lambda: peft.BOFTConfig(boft_block_size=8, target_modules=LINEAR),
    "ia3": lambda: peft.IA3Config(
        target_modules=LINEAR + CONVOLUTIONS, feedforward_modules=["ff.net.2", "conv1"]
    ),
    "lora with bias": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=LINEAR + CONVOLUTIONS, lora_bias=True
    ),
}


def wrapped(config: Any, folder: Path) -> Any:
    network = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    made: Any = peft.get_peft_model(network, config).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if any(mark in name for mark in ("oft_R", "boft_", "ia3_l", "lora_")):
                parameter.add_(random(*parameter.shape) / 3)
    return made


@pytest.mark.filterwarnings("ignore")  # PEFT looks for CUDA, and for layers without a bias
@pytest.mark.parametrize("kind", PEFT)
def test_as_peft_computes_it(kind: str, sd: TextToImage, sd_folder: Path, tmp_path: Path) -> None:
    reference = wrapped(PEFT[kind](), sd_folder)
    reference.save_pretrained(str(tmp_path))
    noise, text = random(2, 4, 8, 8), random(2, 9, 32)
    lora = read_lora(tmp_path)
    with torch.no_grad():
        expected = reference(noise, 500, text).sample
        assert (expected - sd.unet(noise, 500, text)).abs().max() > 0.05
        for merge in (False, True):
            got = apply_loras(sd, [(lora, 1)], merge=merge).unet(noise, 500, text)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_several_grids_of_boft(tmp_path: Path) -> None:
    """PEFT runs one alone on a CPU; its own functions say what several are."""
    from peft.tuners.boft.layer import Linear

    config = peft.BOFTConfig(boft_block_size=4)
    theirs: Any = Linear(nn.Linear(32, 8), "default", config)
    blocks = random(3, 8, 4, 4)
    whole = torch.eye(32)
    for number, grid in enumerate(blocks):
        order = theirs.block_butterfly_perm(32, 8 // 2**number, 2, 2)
        mixed = theirs.perm2mat(order)
        whole = mixed @ torch.block_diag(*theirs.cayley_batch(grid)) @ mixed.T @ whole
    (rotation,) = in_our_words("x", {"boft_R": blocks}, {})["rotation"]
    close(rotation, whole)


def test_the_older_order_of_glora(sd: TextToImage, tmp_path: Path) -> None:
    key = f"lora_unet_{LAYERS[0].replace('.', '_')}"
    a1, a2, b1, b2 = random(64, 3), random(3, 64), random(64, 3, seed=1), random(3, 64, seed=1)
    orders = {"new": (a1, a2, b1, b2), "old": (a2, a1, b2, b1)}
    deltas: list[Tensor] = []
    for name, tensors in orders.items():
        named = zip(("a1", "a2", "b1", "b2"), tensors, strict=True)
        file = write(tmp_path / name, {f"{key}.{n}.weight": t.clone() for n, t in named})
        weight = layers_of(sd)[Place("unet", LAYERS[0])].weight
        deltas.append(fit_lora(read_lora(file), sd).changes[Place("unet", LAYERS[0])].delta(weight))
    close(deltas[0], deltas[1])


# --- spellings -----------------------------------------------------------------------------------


def comfy_key(place: Place, pipe: TextToImage) -> str:
    if place.part == "unet":
        return f"diffusion_model.{ldm_layers(pipe)[place]}"
    letter = "g" if place.part == "text_encoder_2" else "l"
    return f"text_encoders.clip_{letter}.transformer.{place.layer}"


def lycoris_key(place: Place, pipe: TextToImage) -> str:
    return f"lycoris_{place.layer.replace('.', '_')}"


def respelled(
    pipe: TextToImage, key: Callable[[Place, TextToImage], str], ends: dict[str, str], parts: str
) -> Tensors:
    tensors: Tensors = {}
    for place, layer in layers_of(pipe).items():
        if place.part.startswith(parts):
            for name, tensor in lora_tensors("x", layer).items():
                end = name.removeprefix("x.")
                tensors[f"{key(place, pipe)}.{ends.get(end, end)}"] = tensor
    return tensors


PEFT_ENDS = {"lora_down.weight": "lora_A.default.weight", "lora_up.weight": "lora_B.default.weight"}
SPELLINGS: dict[str, tuple[Callable[[Place, TextToImage], str], dict[str, str], str]] = {
    "ComfyUI": (comfy_key, {}, ""),
    "LyCORIS": (lycoris_key, {}, "unet"),
    "PEFT's state": (lambda place, _: f"base_model.model.{place}", PEFT_ENDS, ""),
    "kohya's words with an adapter's name": (
        kohya_name,
        {e: f"{e.removesuffix('.weight')}.my-style.v1.weight" for e in PEFT_ENDS},
        "",
    ),
    "PEFT's state in a pipeline": (
        lambda place, _: f"{place.part}.base_model.model.{place.layer}",
        PEFT_ENDS,
        "",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_spellings(
    spelling: str, model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pipe: TextToImage = request.getfixturevalue(model)
    key, ends, parts = SPELLINGS[spelling]
    ours = {
        name: tensor
        for name, tensor in whole_lora(pipe).items()
        if not parts or name.startswith("lora_unet")
    }
    tensors = respelled(pipe, key, ends, parts)
    assert len(tensors) == len(ours)
    expected, got = (
        answer_of(apply_loras(pipe, [(read_lora(write(tmp_path / name, t)), 0.5)]))
        for name, t in (("a", ours), ("b", tensors))
    )
    assert torch.equal(got, expected)


def test_several_adapters_in_one_file(sd: TextToImage, tmp_path: Path) -> None:
    tensors = {
        f"{LAYERS[0]}.lora_{matrix}.{name}.weight": random(4, 4)
        for name in ("first", "second")
        for matrix in "AB"
    }
    with pytest.raises(FileError, match="several adapters: first, second"):
        read_lora(write(tmp_path / "a.safetensors", tensors))


# --- learned words in a file, block weights ------------------------------------------------------


@pytest.mark.parametrize("kind", ["emb_params", "string_to_param.*", "clip_l"])
def test_learned_words_in_a_lora(kind: str, sd: TextToImage, tmp_path: Path) -> None:
    from sdcore import apply_embeddings, read_embedding

    vectors = random(2, 32)
    tensors = whole_lora(sd) | {f"bundle_emb.myfox.{kind}": vectors}
    path = write(tmp_path / "a.safetensors", tensors)
    if kind == "clip_l":
        kind = "emb_params"  # with one text encoder there is no difference
    styled = apply_loras(sd, [(read_lora(path), 0.5)])
    taught = apply_embeddings(
        apply_loras(sd, [(read_lora(write(tmp_path / "b.safetensors", whole_lora(sd))), 0.5)]),
        [read_embedding(write(tmp_path / "myfox.safetensors", {"emb_params": vectors}))],
    )
    prompt = "a myfox cat"
    ours, theirs = (pipe(prompt, steps=1, seed=2) for pipe in (styled, taught))
    assert torch.equal(ours.latents, theirs.latents)
    assert ours.settings[0].job.embeddings == ()  # it comes with the LoRA
    assert styled.embeddings[0].word == "myfox" and not styled.loras[0].unused
    in_comfy = apply_loras(sd, [(read_lora(path), 0.5)], dialect="comfy")
    assert in_comfy.embeddings[0].word == "embedding:myfox"


def test_words_that_cannot_be(sd: TextToImage, tmp_path: Path) -> None:
    for key in ("bundle_emb.fox.other", "bundle_emb..clip_l", "bundle_emb.fox"):
        path = write(tmp_path / "a.safetensors", whole_lora(sd) | {key: random(2, 32)})
        with pytest.raises(FileError, match="a word that cannot be"):
            read_lora(path)


def test_block_weights(sd: TextToImage, tmp_path: Path) -> None:
    """Each block as much as its number says; the tiny model's blocks are IN00-IN03, OUT00-OUT03."""
    lora = read_lora(write(tmp_path / "a.safetensors", whole_lora(sd)))
    numbers = {"BASE": 0.5, "IN01": 0.25, "MID": 2.0, "OUT03": -1.0}
    text = ",".join(str(numbers.get(block, 0)) for block in LAYOUTS[26])
    styled = apply_loras(sd, [(lora, LoraWeight(0.5, 0.5, text))], merge=True)
    whole = apply_loras(sd, [(lora, LoraWeight(0.5, 0.5))], merge=True)
    blocks = {
        "down_blocks.0.attentions.0.proj_in": 0.25,  # input_blocks.1.1
        "down_blocks.0.downsamplers.0.conv": 0.0,  # input_blocks.2.0
        "mid_block.resnets.1.conv2": 2.0,
        "up_blocks.1.resnets.1.conv1": -1.0,  # output_blocks.3.0
        "time_embedding.linear_1": 1.0,  # in no block
    }
    for name, factor in blocks.items():
        base, full, some = (p.unet.get_submodule(name).weight for p in (sd, whole, styled))
        torch.testing.assert_close(some - base, factor * (full - base), rtol=1e-3, atol=1e-5)
    name = "text_model.encoder.layers.0.mlp.fc1"
    base, full, some = (p.text_encoder.get_submodule(name).weight for p in (sd, whole, styled))
    torch.testing.assert_close(some - base, 0.5 * (full - base), rtol=1e-3, atol=1e-5)
    assert styled.loras[0].blocks == text
    assert styled("a fox", steps=1).settings[0].job.loras[0].blocks == text


def test_block_weights_that_cannot_be() -> None:
    assert read_blocks("MIDD")["MID"] == 1 and read_blocks("MIDD")["OUT09"] == 0
    assert {len(read_blocks(",".join(["1"] * count))) for count in LAYOUTS} == {12, 17, 20, 26}
    for text in ("MIDL", "1,2", "a,b", "nan" + ",1" * 16, ","):
        with pytest.raises(UsageError, match="cannot be used"):
            read_blocks(text)


def test_full_changes_of_every_kind_of_layer(sd: TextToImage, tmp_path: Path) -> None:
    places = {
        "text_model.embeddings.token_embedding": "text_encoder",
        "text_model.final_layer_norm": "text_encoder",
        "conv_norm_out": "unet",
        "conv_in": "unet",
    }
    tensors: Tensors = {}
    for name, part in places.items():
        weight: Tensor = sd.networks[part].get_submodule(name).weight  # pyright: ignore[reportAssignmentType]
        tensors[f"{kohya_name(Place(part, name), sd)}.diff"] = random(*weight.shape)
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    for merge in (False, True):
        styled = apply_loras(sd, [(lora, 0.5)], merge=merge)
        for name, part in places.items():
            layer: Any = styled.networks[part].get_submodule(name)
            base: Any = sd.networks[part].get_submodule(name)
            if merge or name != "conv_in":
                key = f"{kohya_name(Place(part, name), sd)}.diff"
                close(layer.weight, base.weight + 0.5 * tensors[key])
    name = "lora_unet_conv_norm_out"
    wrong = {f"{name}.lora_down.weight": random(2, 32), f"{name}.lora_up.weight": random(32, 2)}
    with pytest.raises(FileError, match="full changes alone"):
        apply_loras(sd, [(read_lora(write(tmp_path / "b.safetensors", wrong)), 1)])
