"""Our modules in place of diffusers' and transformers' own, inside diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from sdcore import CLIPTextEncoder, UNet, trace
from sdcore.attention import AttentionLayer
from sdcore.checkpoint.interop import as_diffusers_unet, as_transformers_text_encoder
from sdcore.errors import UsageError

PIPELINES = {
    "sd_folder": StableDiffusionPipeline,
    "sd2_folder": StableDiffusionPipeline,
    "sdxl_folder": StableDiffusionXLPipeline,
}


def replace_modules(pipe: Any, folder: Path) -> None:
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            ours = CLIPTextEncoder.from_pretrained(folder, subfolder=name)
            setattr(pipe, name, as_transformers_text_encoder(ours))
    pipe.unet = as_diffusers_unet(UNet.from_pretrained(folder, subfolder="unet"))


def paint(pipe: Any, **how: Any) -> np.ndarray:
    images = pipe(
        "a red apple",
        negative_prompt="bad drawing",
        num_inference_steps=5,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(0),
        **how,
    ).images
    return np.asarray(images[0]).astype(int)


@pytest.mark.parametrize("layout", PIPELINES)
def test_same_picture_in_diffusers_own_pipeline(layout, request) -> None:
    folder: Path = request.getfixturevalue(layout)
    pipe: Any = PIPELINES[layout].from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    expected = paint(pipe)
    replace_modules(pipe, folder)
    got = paint(pipe)
    assert expected.std() > 30
    assert np.abs(got - expected).max() <= 1


def test_other_pipelines_of_diffusers_take_them_too(sd_folder: Path) -> None:
    pipe: Any = StableDiffusionImg2ImgPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    expected = paint(pipe, image=picture, strength=0.8)
    replace_modules(pipe, sd_folder)
    assert np.abs(paint(pipe, image=picture, strength=0.8) - expected).max() <= 1


def test_the_clip_skip_of_diffusers_finds_our_layer_norm(sd_folder: Path) -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    replace_modules(pipe, sd_folder)
    assert np.abs(paint(pipe, clip_skip=1) - paint(pipe)).max() > 2


def test_what_our_unet_does_not_do_is_refused(sd_folder: Path) -> None:
    unet = as_diffusers_unet(UNet.from_pretrained(sd_folder, subfolder="unet"))
    latents, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, 77, 32)
    assert unet(latents, 5, text).sample.shape == latents.shape
    with pytest.raises(UsageError, match="mid_block_additional_residual"):
        unet(latents, 5, text, mid_block_additional_residual=latents)
    with pytest.raises(UsageError, match="image_embeds"):
        unet(latents, 5, text, added_cond_kwargs={"image_embeds": text})


@pytest.mark.parametrize("layout", PIPELINES)
def test_a_pipeline_with_our_modules_is_saved_as_one_of_diffusers(
    layout: str, request: Any, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(layout)
    pipe: Any = PIPELINES[layout].from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    expected = paint(pipe)
    replace_modules(pipe, folder)
    pipe.save_pretrained(tmp_path)
    again: Any = PIPELINES[layout].from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.unet, UNet2DConditionModel)
    assert np.abs(paint(again) - expected).max() <= 1


def test_what_is_done_in_another_way_is_said(sd_folder: Path) -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    replace_modules(pipe, sd_folder)
    expected = paint(pipe)
    assert (paint(pipe, cross_attention_kwargs={"scale": 1.0}) == expected).all()
    with pytest.raises(UsageError, match="apply_loras"):
        paint(pipe, cross_attention_kwargs={"scale": 0.5})
    with pytest.raises(UsageError, match=r"sdcore\.trace"):
        _ = pipe.unet.attn_processors
    with pytest.raises(UsageError, match=r"sdcore\.trace"):
        pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    lora = {
        f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_{side}.weight": value
        for side, value in {"A": torch.ones(2, 32), "B": torch.ones(64, 2)}.items()
    }
    with pytest.raises(UsageError, match="apply_loras"):
        pipe.load_lora_weights(lora)
    with pytest.raises(UsageError, match="is one of sdcore's"), trace(pipe):
        pass
    pipe.enable_attention_slicing()
    assert np.abs(paint(pipe) - expected).max() <= 1
    layers = [m for m in pipe.unet.unet.modules() if isinstance(m, AttentionLayer)]
    assert {layer.backend for layer in layers} == {"chunked"}
