"""LoRA files as diffusers and peft read and compute them: same text, same prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from sdcore import TextToImage, apply_loras, fit_lora, read_lora, save_lora
from sdcore.adapters.lora_file import Lora
from sdcore.adapters.lora_names import Place, layers_of
from sdcore.checkpoint.interop import as_diffusers_unet
from sdcore.checkpoint.ldm_names import UNET_PREFIX, table
from tests.adapters.test_lora import answer_of, lora_tensors, random, whole_lora, write

PIPELINES = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request, sd_folder: Path, sdxl_folder: Path) -> tuple[Path, type]:
    return {"sd": sd_folder, "sdxl": sdxl_folder}[request.param], PIPELINES[request.param]


@pytest.fixture(scope="module")
def ours(folder) -> TextToImage:
    return TextToImage.from_pretrained(folder[0])


@pytest.fixture(scope="module")
def read_by_diffusers(folder) -> Any:
    path, cls = folder
    return cls.from_pretrained(path)


@pytest.fixture
def theirs(read_by_diffusers) -> Iterator[Any]:
    unet = read_by_diffusers.unet
    yield read_by_diffusers
    read_by_diffusers.unet = unet
    read_by_diffusers.unload_lora_weights()


@torch.no_grad()
def reference_answer(pipe: Any) -> Tensor:
    """As tests.adapters.test_lora.answer_of, with diffusers' and transformers' networks."""
    ids = pipe.tokenizer("a red fox", padding="max_length", return_tensors="pt").input_ids
    added = None
    if hasattr(pipe, "text_encoder_2"):
        first = pipe.text_encoder(ids, output_hidden_states=True)
        second = pipe.text_encoder_2(ids, output_hidden_states=True)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        added = {"text_embeds": second.text_embeds, "time_ids": time_ids}
    else:
        text = pipe.text_encoder(ids).last_hidden_state
    noise = random(1, 4, 8, 8)
    return pipe.unet(noise, 500, text, added_cond_kwargs=added).sample


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# --- spellings: the same file opened by diffusers ----------------------------------------------


def with_ldm_words(pipe: TextToImage, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """kohya's names for SDXL, from the table of single files."""
    words = {
        "lora_unet_" + entry.parameters[0].removesuffix(".weight").replace(".", "_"): "lora_unet_"
        + entry.name.removeprefix(UNET_PREFIX).removesuffix(".weight").replace(".", "_")
        for entry in table({"unet": pipe.unet})["unet"]
    }
    return {
        ".".join([words.get(name, name), *rest]): value
        for (name, *rest), value in ((key.split("."), v) for key, v in tensors.items())
    }


def dotted(pipe: TextToImage, text: tuple[str, str], image: tuple[str, str]) -> dict[str, Tensor]:
    """diffusers' spellings of a LoRA without alpha; `text` and `image` are down's and up's ends."""
    tensors: dict[str, Tensor] = {}
    for place, layer in layers_of(pipe).items():
        down, up = image if place.part == "unet" else text
        one = lora_tensors("x", layer)
        tensors[f"{place}{down}"] = one["x.lora_down.weight"]
        tensors[f"{place}{up}"] = one["x.lora_up.weight"]
    return tensors


def oldest(pipe: TextToImage) -> dict[str, Tensor]:
    """Attention alone, by processors in the UNet and to_q_lora in the text encoders."""
    tensors: dict[str, Tensor] = {}
    for place, layer in layers_of(pipe).items():
        parent, _, last = place.layer.removesuffix(".0").rpartition(".")
        one = lora_tensors("x", layer)
        if parent.endswith(("attn1", "attn2")):
            name = f"{place.part}.{parent}.processor.{last}"
        elif parent.endswith("self_attn"):
            name = f"{place.part}.{parent}.to_{last.removesuffix('_proj')}"
        else:
            continue
        tensors[f"{name}_lora.down.weight"] = one["x.lora_down.weight"]
        tensors[f"{name}_lora.up.weight"] = one["x.lora_up.weight"]
    return tensors


PEFT_ENDS = (".lora_A.weight", ".lora_B.weight")
SPELLINGS: dict[str, Callable[[TextToImage], dict[str, Tensor]]] = {
    "kohya": whole_lora,
    "kohya, LDM's words": lambda pipe: with_ldm_words(pipe, whole_lora(pipe)),
    "PEFT": lambda pipe: dotted(pipe, PEFT_ENDS, PEFT_ENDS),
    "older": lambda pipe: dotted(
        pipe,
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        (".lora.down.weight", ".lora.up.weight"),
    ),
    "oldest": oldest,
}


def without_what_diffusers_drops(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers 0.42 loses two kinds of keys with a warning at most: the text projection, and
    SDXL's add_embedding in diffusers' words."""
    lost = ("text_projection", "lora_unet_add_embedding")
    return {key: value for key, value in tensors.items() if not any(name in key for name in lost)}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling, ours, theirs, tmp_path):
    if spelling == "kohya, LDM's words" and ours.text_encoder_2 is None:
        pytest.skip("only SDXL's LoRAs have LDM's words")
    tensors = without_what_diffusers_drops(SPELLINGS[spelling](ours))
    path = write(tmp_path / "lora.safetensors", tensors)
    plain = answer_of(ours)
    close(plain, reference_answer(theirs))
    theirs.load_lora_weights(path)
    lora = read_lora(path)
    for weight, merge in ((0.5, False), (-0.3, True)):
        theirs.set_adapters(["default_0"], adapter_weights=[weight])
        expected = reference_answer(theirs)
        assert (expected - plain).abs().mean() > 0.02
        applied = apply_loras(ours, [(lora, weight)], merge=merge)
        close(answer_of(applied), expected)
        assert not applied.loras[0].unused


def test_two_at_once(ours, theirs, tmp_path):
    paths = []
    for number in (0, 1):
        tensors = without_what_diffusers_drops(whole_lora(ours, seed=20 * number))
        paths.append(write(tmp_path / f"{number}.safetensors", tensors))
        theirs.load_lora_weights(paths[-1], adapter_name=f"number_{number}")
    theirs.set_adapters(["number_0", "number_1"], adapter_weights=[0.2, -0.4])
    expected = reference_answer(theirs)
    pairs = [(read_lora(paths[0]), 0.2), (read_lora(paths[1]), -0.4)]
    for merge in (False, True):
        close(answer_of(apply_loras(ours, pairs, merge=merge)), expected)


def test_diffusers_reads_what_we_save(ours, theirs, tmp_path):
    tensors = without_what_diffusers_drops(whole_lora(ours))
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    expected, changes = answer_of(apply_loras(ours, [(lora, 1)])), fit_lora(lora, ours).changes
    for spelling in ("diffusers", "kohya"):
        save_lora(tmp_path / f"{spelling}.safetensors", changes, spelling=spelling)
    for spelling in ("diffusers", "kohya"):
        theirs.load_lora_weights(tmp_path / f"{spelling}.safetensors")
        # alpha / rank is rounded into lora_B, and all layers have this LoRA at full strength
        torch.testing.assert_close(reference_answer(theirs), expected, rtol=1e-3, atol=1e-3)
        theirs.unload_lora_weights()


def test_our_networks_with_a_lora_in_a_pipeline_of_diffusers(ours, theirs, tmp_path):
    lora = read_lora(write(tmp_path / "a.safetensors", whole_lora(ours)))
    how: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    how |= {"latents": random(1, 4, 8, 8), "height": 64, "width": 64}
    theirs.set_progress_bar_config(disable=True)
    theirs.unet = as_diffusers_unet(ours.unet)
    plain = theirs("a red fox", **how).images
    painted = []
    for merge in (False, True):
        styled = apply_loras(ours, [(lora, 0.1)], merge=merge)
        theirs.unet = as_diffusers_unet(styled.unet)
        painted.append(theirs("a red fox", **how).images)
    close(painted[0], painted[1])
    assert (painted[0] - plain).abs().mean() > 1e-3


def test_alpha_in_the_header_that_diffusers_writes(sd_folder, tmp_path):
    theirs = StableDiffusionPipeline.from_pretrained(sd_folder)
    ours = TextToImage.from_pretrained(sd_folder)
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["to_q", "to_k"], alpha_pattern={"attn2.to_k": 12}
    )
    theirs.unet.add_adapter(config)
    randomise(theirs.unet)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        peft.get_peft_model_state_dict(theirs.unet),
        unet_lora_adapter_metadata=theirs.unet.peft_config["default"].to_dict(),
    )
    lora = read_lora(tmp_path)
    assert {change.scale for change in lora.changes.values()} == {0.5, 3.0}
    close(answer_of(apply_loras(ours, [(lora, 1)])), reference_answer(theirs))


# --- the mathematics of each kind, as peft computes it -----------------------------------------

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
EVERYTHING = [*LINEAR, "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj", "conv", "conv_in"]
KINDS = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=EVERYTHING),
    "rslora": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=EVERYTHING, use_rslora=True
    ),
    "patterns": lambda: peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=EVERYTHING,
        rank_pattern={"to_k": 2},
        alpha_pattern={"attn1.to_q": 1, "to_k": 5},
    ),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=EVERYTHING, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=2, target_modules=EVERYTHING),
    "loha, cores": lambda: peft.LoHaConfig(
        r=3, alpha=2, target_modules=EVERYTHING, use_effective_conv2d=True
    ),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=EVERYTHING),
    "lokr, both": lambda: peft.LoKrConfig(
        r=2, alpha=3, target_modules=EVERYTHING, decompose_both=True, decompose_factor=8
    ),
    "lokr, cores": lambda: peft.LoKrConfig(
        r=2, alpha=3, target_modules=EVERYTHING, use_effective_conv2d=True
    ),
    "lokr, whole": lambda: peft.LoKrConfig(r=64, alpha=3, target_modules=EVERYTHING),
}


def randomise(model: nn.Module) -> None:
    """Fresh adapters change nothing; these do."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif any(mark in name for mark in ("lora_", "hada_", "lokr_")):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.3 * noise)


@pytest.fixture(scope="module")
def unet_pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, sd_folder, unet_pipe, tmp_path):
    reference = UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet")
    wrapped: Any = peft.get_peft_model(reference, KINDS[kind]()).eval()  # pyright: ignore[reportArgumentType]
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path)
    noise, text = random(2, 4, 8, 8), random(2, 9, 32)
    with torch.no_grad():
        expected = wrapped(noise, 500, text).sample
        plain = unet_pipe.unet(noise, 500, text)
        assert (expected - plain).abs().mean() > 0.05
        lora = read_lora(tmp_path)
        assert not lora.unused and len(lora.changes) > 30
        for merge in (False, True):
            styled = apply_loras(unet_pipe, [(lora, 1)], merge=merge)
            close(styled.unet(noise, 500, text), expected)
        check_saved(unet_pipe, lora, noise, text, expected, tmp_path / "k.safetensors")


def check_saved(
    pipe: TextToImage, lora: Lora, noise: Tensor, text: Tensor, expected: Tensor, path: Path
) -> None:
    """kohya's spelling has every kind."""
    save_lora(path, fit_lora(lora, pipe).changes, spelling="kohya")
    close(apply_loras(pipe, [(read_lora(path), 1)]).unet(noise, 500, text), expected)


def test_the_core_of_a_convolution_is_down_mid_up(unet_pipe):
    """LoCon's CP form is by definition three convolutions after one another."""
    from sdcore.adapters.lora_math import LowRank

    name = "down_blocks.0.downsamplers.0.conv"  # stride 2
    layer = layers_of(unet_pipe)[Place("unet", name)]
    assert isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)
    out, into = layer.weight.shape[:2]
    tensors = {
        "down": random(3, into, 1, 1),
        "mid": random(3, 3, 3, 3),
        "up": random(out, 3, 1, 1),
    }
    x = random(2, into, 7, 6)
    small = nn.functional.conv2d(x, tensors["down"])
    small = nn.functional.conv2d(small, tensors["mid"], stride=2, padding=1)
    expected = 0.5 * nn.functional.conv2d(small, tensors["up"])
    change = LowRank(tensors, 0.5)
    assert change.fault(layer.weight.shape) is None
    close(change(x, layer), expected)
    delta = change.delta(layer.weight)
    close(nn.functional.conv2d(x, delta, stride=2, padding=1), expected)
