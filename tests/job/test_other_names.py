"""Arguments under the names of diffusers: taken where they mean the same, else answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdcore
from sdcore import TextToImage
from sdcore.errors import UsageError
from sdcore.job.other_names import ANSWERS, METHODS

FAST: dict[str, Any] = {"steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.images, other.images, strict=True)
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in pairs)


def test_what_means_the_same_is_taken(pipe: TextToImage) -> None:
    ours = pipe("a fox", seed=7, steps=2, guidance_scale=2.0, images_per_prompt=1)
    theirs = pipe(
        "a fox",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=generator(7),
        num_images_per_prompt=1,
        output_type="pil",
        return_dict=True,
        eta=0.0,
    )
    assert same(ours, theirs)
    both = pipe("a fox", num_images_per_prompt=2, generator=[generator(7), generator(8)], **FAST)
    assert same(both, pipe("a fox", images_per_prompt=2, seed=7, **FAST))
    skipped = pipe("a fox", seed=7, clip_skip=1, **FAST)
    assert skipped.jobs[0].clip_skip == 1
    picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)
    assert same(
        pipe("a fox", image=picture, mask_image=mask, seed=1, **FAST),
        pipe("a fox", image=picture, mask=mask, seed=1, **FAST),
    )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"generator": generator(7), "num_images_per_prompt": 2}, "Pass seed=7"),
        ({"generator": 7}, "no torch.Generator"),
        ({"num_inference_steps": 3, "steps": 2}, "two names for one thing"),
        ({"output_type": "latent"}, r"\.latents"),
        ({"callback_on_step_end": print}, r"pipe\.painting"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "source=Noise"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, "sdcore.trace"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "apply_loras"),
        ({"size": (64, 64)}, "Use width and height"),
        ({"guidence_scale": 3}, "Did you mean guidance_scale"),
        ({"safety_checker": print}, "No safety checker"),
    ],
)
def test_what_does_not_is_answered(pipe: TextToImage, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipe("a fox", **how)


def test_a_generator_that_has_drawn_is_refused(pipe: TextToImage) -> None:
    used = generator(7)
    torch.rand(1, generator=used)
    with pytest.raises(UsageError, match="has drawn already"):
        pipe("a fox", generator=used, **FAST)


def test_loading_by_diffusers_names(sd_folder: Path) -> None:
    how = {"use_safetensors": True, "safety_checker": None, "local_files_only": True}
    half = TextToImage.from_pretrained(sd_folder, torch_dtype=torch.float16, **how)
    assert half.dtype == torch.float16
    with pytest.raises(UsageError, match="HF_HOME"):
        TextToImage.from_pretrained(sd_folder, cache_dir="x")
    with pytest.raises(UsageError, match="Did you mean variant"):
        TextToImage.from_pretrained(sd_folder, varient="fp16")


def test_methods_of_a_pipeline_are_answered(pipe: TextToImage) -> None:
    for name, hint in METHODS.items():
        assert not hasattr(pipe, name)
        with pytest.raises(UsageError) as error:
            getattr(pipe, name)
        assert error.value.hint == hint
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pipe.nonsense


def test_what_the_answers_name_is_there() -> None:
    words = " ".join([*METHODS.values(), *ANSWERS.values()])
    for part in words.replace("(", " ").replace(",", " ").replace(".\n", " ").split():
        if part.startswith("sdcore.") and len(part) > 7:
            assert hasattr(sdcore, part.removeprefix("sdcore.").rstrip("."))


@pytest.mark.parametrize(
    ("name", "ours"),
    [("A1111", "a1111"), ("ComfyUI", "comfy"), ("Web UI", "a1111"), ("Compel", "compel")],
)
def test_dialects_have_names_in_any_case(name: str, ours: str) -> None:
    assert sdcore.Job("a fox", dialect=name).dialect == ours
