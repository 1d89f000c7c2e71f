"""Random models of every family, small enough to paint in a blink, as diffusers saves them.

Their decoders are scaled so that pixels spread over the whole range, and their cross-attention so
that the prompt changes the picture: on flat pictures any two programs agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    *("a", "an", "red", "green", "blue", "apple", "cat", "dog", "fox", "on", "in", "the", "of"),
    *("photo", "bad", "drawing", "small", "big", "tree"),
)
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WIDTH, WIDTH_2, RANK = 32, 40, 3


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges: bytes, bytes that end a word, and what builds `WORDS` up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens += [token + "</w>" for token in tokens]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens += sorted({first + second for first, second in merges} - set(tokens))
    return {token: number for number, token in enumerate([*tokens, START, END])}, merges


def tokenizer(pad_token: str = END) -> CLIPTokenizer:
    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=77, pad_token=pad_token)


def text_config(**changes: Any) -> CLIPTextConfig:
    tokens, _ = vocabulary()
    settings: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "projection_dim": 24,
        "bos_token_id": tokens[START],
        "eos_token_id": tokens[END],
        "pad_token_id": tokens[END],
    }
    return CLIPTextConfig(**{**settings, **changes})


def text_encoder(**changes: Any) -> CLIPTextModel:
    return _shifted(CLIPTextModel(text_config(**changes)).eval())


def second_encoder() -> CLIPTextModelWithProjection:
    config = text_config(hidden_size=WIDTH_2, hidden_act="gelu", num_attention_heads=5)
    return _shifted(CLIPTextModelWithProjection(config).eval())


def _shifted(encoder: Any) -> Any:
    """A fresh last norm gives a mean of 0, by which the web UI's rule for weights divides."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("final_layer_norm.bias"):
            torch.nn.init.normal_(parameter, mean=0.2, std=0.3)
    return encoder


def unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    made = UNet2DConditionModel(**{**settings, **changes})
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".attn2." in name:
                parameter.mul_(4.0)
    return made


def xl_unet(text_width: int, numbers: int) -> UNet2DConditionModel:
    return unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(4, 8),
        use_linear_projection=True,
        cross_attention_dim=text_width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + numbers * 8,
    )


def autoencoder(**changes: Any) -> AutoencoderKL:
    settings: dict[str, Any] = {
        "block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 8,
        "sample_size": 64,
    }
    made = AutoencoderKL(**{**settings, **changes})
    with torch.no_grad():
        probe = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        deviation = made.decode(probe / made.config["scaling_factor"]).sample.std()
        made.decoder.conv_out.weight.mul_(0.4 / deviation)
        made.decoder.conv_out.bias.zero_()
    return made


def write_sd1(folder: Path, kind: Any = StableDiffusionPipeline, **changes: Any) -> None:
    torch.manual_seed(0)
    kind(
        vae=autoencoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(**changes),
        scheduler=PNDMScheduler(
            **NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def write_inpainting(folder: Path) -> None:
    write_sd1(folder, StableDiffusionInpaintPipeline, in_channels=9)


def write_sd2(folder: Path) -> None:
    torch.manual_seed(2)
    StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(hidden_act="gelu"),
        tokenizer=tokenizer(pad_token="!"),
        unet=unet(attention_head_dim=(4, 8), use_linear_projection=True),
        scheduler=DDIMScheduler(
            **NOISE,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def write_sdxl(folder: Path) -> None:
    torch.manual_seed(3)
    StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=text_encoder(),
        text_encoder_2=second_encoder(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(pad_token="!"),
        unet=xl_unet(WIDTH + WIDTH_2, numbers=6),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)


def write_refiner(folder: Path) -> None:
    torch.manual_seed(4)
    StableDiffusionXLImg2ImgPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        text_encoder_2=second_encoder(),
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        tokenizer_2=tokenizer(pad_token="!"),
        unet=xl_unet(WIDTH_2, numbers=5),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)


WRITERS = {
    "sd1": write_sd1,
    "sd2": write_sd2,
    "sdxl": write_sdxl,
    "refiner": write_refiner,
    "inpainting": write_inpainting,
}


# --- what is put on a model ----------------------------------------------------------------------


def write_lora(path: Path, model: Path, spelling: str, seed: int) -> None:
    """A LoRA on the attention of the UNet, and in most spellings on the text encoder's."""
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for part, file in (
        ("unet", "unet/diffusion_pytorch_model.safetensors"),
        ("text_encoder", "text_encoder/model.safetensors"),
    ):
        for name, weight in sorted(load_file(model / file).items()):
            layer = name.removesuffix(".weight")
            attends = ".attn1.to_" in layer or ".attn2.to_" in layer or "self_attn" in layer
            if name.endswith(".weight") and attends and weight.ndim == 2:
                tensors |= lora_tensors(spelling, part, layer, weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def lora_tensors(spelling: str, part: str, layer: str, weight: Tensor) -> dict[str, Tensor]:
    """One layer in a spelling: kohya, peft, diffusers, older, dora, loha or lokr."""
    outputs, inputs = weight.shape
    down, up = 0.3 * torch.randn(RANK, inputs), 0.3 * torch.randn(outputs, RANK)
    if spelling == "peft":
        if part != "unet":
            return {}
        name = f"base_model.model.{layer}"
        return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    if spelling == "diffusers":
        return {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}
    if spelling == "older":
        if part != "unet":
            return {}
        return {f"{part}.{layer}.lora.down.weight": down, f"{part}.{layer}.lora.up.weight": up}
    name = f"lora_{'unet' if part == 'unet' else 'te'}_{layer.replace('.', '_')}"
    alpha = {f"{name}.alpha": torch.tensor(2.0)}
    if spelling == "loha":
        pairs = {"hada_w1_b": down, "hada_w1_a": up}
        pairs |= {"hada_w2_b": torch.randn(RANK, inputs), "hada_w2_a": torch.randn(outputs, RANK)}
        return {**alpha, **{f"{name}.{key}": value for key, value in pairs.items()}}
    if spelling == "lokr":
        small, large = torch.randn(4, 4), 0.3 * torch.randn(outputs // 4, inputs // 4)
        return {f"{name}.lokr_w1": small, f"{name}.lokr_w2": large}
    tensors = {**alpha, f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    if spelling == "dora":
        length = weight.float().norm(dim=1, keepdim=True)
        tensors[f"{name}.dora_scale"] = length * (1 + 0.2 * torch.randn(outputs, 1))
    return tensors


def write_embedding(path: Path, xl: bool) -> None:
    torch.manual_seed(5)
    first, second = torch.randn(2, WIDTH), torch.randn(2, WIDTH_2)
    save_file({"clip_l": first, "clip_g": second} if xl else {"emb_params": first}, path)
