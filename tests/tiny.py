"""Tiny random models in the layouts of Stable Diffusion, built and saved by diffusers itself.

Random networks tend to give flat or saturated pictures, on which any two programs agree. The
decoder's last layer is therefore scaled so that pixels spread over the whole range.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
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
NOISE_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in GPT-2's and CLIP's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges: bytes, bytes that end a word, and what builds `WORDS` up."""
    tokens = byte_alphabet()
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
    tokens += [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def make_tokenizer(length: int = 77, pad_token: str = END) -> CLIPTokenizer:
    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=length, pad_token=pad_token)


def make_text_config(**changes: Any) -> CLIPTextConfig:
    tokens, _ = vocabulary()
    settings: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": 32,
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


def with_mean(encoder: Any) -> Any:
    """Shift a text encoder's vectors, which have a mean in trained ones: some dialects keep it."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("final_layer_norm.bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def make_unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    unet = UNet2DConditionModel(**{**settings, **changes})
    # A fresh network hardly reads its text; the prompt must change the picture to test anything.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".attn2." in name:
                parameter.mul_(4.0)
    return unet


def make_autoencoder(**changes: Any) -> AutoencoderKL:
    settings: dict[str, Any] = {
        "block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 8,
        "sample_size": 64,
    }
    autoencoder = AutoencoderKL(**{**settings, **changes})
    with torch.no_grad():
        probe = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        deviation = autoencoder.decode(probe / autoencoder.config["scaling_factor"]).sample.std()
        autoencoder.decoder.conv_out.weight.mul_(0.4 / deviation)
        autoencoder.decoder.conv_out.bias.zero_()
    return autoencoder


def write_sd(folder: Path) -> Path:
    torch.manual_seed(0)
    _pipeline(
        make_unet(),
        make_text_config(),
        PNDMScheduler(
            **NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
        ),
        make_tokenizer(),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_sd2(folder: Path) -> Path:
    torch.manual_seed(2)
    _pipeline(
        make_unet(attention_head_dim=(4, 8), use_linear_projection=True),
        make_text_config(hidden_act="gelu"),
        DDIMScheduler(
            **NOISE_SCHEDULE,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        make_tokenizer(pad_token="!"),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def _pipeline(unet: Any, text_config: Any, scheduler: Any, tokenizer: Any) -> Any:
    return StableDiffusionPipeline(
        vae=make_autoencoder(),
        text_encoder=with_mean(CLIPTextModel(text_config)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def told_the_scale(source: Path, folder: Path) -> Path:
    """A copy of a model's folder whose UNet is told the guidance scale, as distilled ones are."""
    shutil.copytree(source, folder)
    old = UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(31)
    new = UNet2DConditionModel.from_config({**old.config, "time_cond_proj_dim": 20})
    missing, surplus = new.load_state_dict(old.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"] and not surplus
    new.save_pretrained(folder / "unet")
    return folder


def write_sdxl(folder: Path) -> Path:
    torch.manual_seed(3)
    unet = make_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(4, 8),
        use_linear_projection=True,
        cross_attention_dim=32 + 40,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    second = make_text_config(hidden_size=40, hidden_act="gelu", num_attention_heads=5)
    StableDiffusionXLPipeline(
        vae=make_autoencoder(scaling_factor=0.13025),
        text_encoder=with_mean(CLIPTextModel(make_text_config())),
        text_encoder_2=with_mean(CLIPTextModelWithProjection(second)),
        tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer(pad_token="!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            **NOISE_SCHEDULE, timestep_spacing="leading", steps_offset=1
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_edm(folder: Path, base: Path, kind: str) -> Path:
    """A copy of an SDXL model for EDM noise: as Playground 2.5 (`playground`), or CosXL."""
    shutil.copytree(base, folder)
    if kind == "playground":
        scheduler: Any = EDMDPMSolverMultistepScheduler(sigma_data=0.5)
        path = folder / "vae" / "config.json"
        of_latents = {"latents_mean": [-1.6, 1.1, 3.3, -3.2], "latents_std": [8.5, 5.9, 7.4, 6.6]}
        of_latents["scaling_factor"] = 0.5
        path.write_text(json.dumps({**json.loads(path.read_text()), **of_latents}))
    else:
        scheduler = EDMEulerScheduler(
            prediction_type="v_prediction", sigma_max=120.0, sigma_data=1.0,
            sigma_schedule="exponential",
        )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("EulerDiscreteScheduler", type(scheduler).__name__))
    return folder


def write_refiner(folder: Path, base: Path) -> Path:
    """SDXL's refiner: a base model's second text encoder alone, five numbers about the size."""
    parts = StableDiffusionXLPipeline.from_pretrained(base)
    torch.manual_seed(21)
    unet = make_unet(
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(4, 8),
        use_linear_projection=True,
        cross_attention_dim=40,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 5 * 8,
    )
    StableDiffusionXLImg2ImgPipeline(
        vae=parts.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=parts.text_encoder_2,
        tokenizer_2=parts.tokenizer_2,
        unet=unet,
        scheduler=parts.scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
