"""Whole runs against diffusers' own pipelines, from the same folder and initial latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sdcore import TextToImage
from sdcore.diffusion.schedulers import SCHEDULERS, make_scheduler
from tests.painting import paint

# How diffusers' own documentation makes the sampler of each name from a model's config.
BY_DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    # As in the published configs of Stable Diffusion; diffusers' own default clips x0 to [-1, 1].
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2m sde karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
PROMPTS = ["a red apple on a tree", "photo of the big blue fox"]
STEPS = 4


class Pair:
    """One folder opened by both, and a picture of each for the same arguments."""

    def __init__(self, folder: Path, reference: type) -> None:
        self.ours = TextToImage.from_pretrained(folder)
        self.reference: Any = reference.from_pretrained(folder)
        self.reference.set_progress_bar_config(disable=True)

    def paint(
        self, prompts: Any, scheduler: str | None = None, size: tuple[int, int] = (8, 8), **how: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        published = self.reference.scheduler
        config = published.config
        if scheduler is not None:
            self.reference.scheduler = by_diffusers(scheduler, config)
        images = len(prompts) if isinstance(prompts, list) else 1
        count = images * how.get("images_per_prompt", 1)
        noise = torch.randn(count, 4, *size, generator=torch.Generator().manual_seed(5))
        theirs = {
            "num_images_per_prompt": how.get("images_per_prompt", 1),
            **{key: value for key, value in how.items() if key != "images_per_prompt"},
            "num_inference_steps": how.get("steps", STEPS),
            "generator": [torch.Generator().manual_seed(i) for i in range(count)],
            "height": 8 * size[0],
            "width": 8 * size[1],
        }
        theirs.pop("steps", None)
        expected = self.reference(prompts, latents=noise.clone(), **theirs).images
        ours = {"steps": STEPS, "scheduler": scheduler, **how}
        got = paint(self.ours, prompts, latents=noise, seed=0, **ours).images
        self.reference.scheduler = published
        return _stack(got), _stack(expected)


def by_diffusers(name: str, config: Any) -> Any:
    if name not in BY_DIFFUSERS:  # "dpm++ sde" is our own solver; here only the loop is compared
        return make_scheduler(name, config)
    cls, changes = BY_DIFFUSERS[name]
    return getattr(diffusers, cls).from_config(config, **changes)


def _stack(images: list) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def assert_same_picture(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    got, expected = pictures
    assert got.shape == expected.shape
    # A flat or saturated picture would agree with anything.
    assert expected.std() > 30 and np.isin(expected, (0, 255)).mean() < 0.2
    assert np.abs(got - expected).max() <= 1


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> Pair:
    return Pair(sd_folder, StableDiffusionPipeline)


@pytest.fixture(scope="module")
def sd2(sd2_folder: Path) -> Pair:
    return Pair(sd2_folder, StableDiffusionPipeline)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> Pair:
    return Pair(sdxl_folder, StableDiffusionXLPipeline)


# A scheduler reads the model's config, which differs between epsilon (sd) and v (sd2), and no more
# of the family; guidance is formed before it. So the rest needs one scheduler of each kind: with
# and without a scale of its own, and one that draws noise.
CASES = [(model, name, 7.5) for model in ("sd", "sd2") for name in SCHEDULERS]
CASES += [("sdxl", name, 7.5) for name in ("ddim", "euler karras", "dpm++ 2m sde")]
CASES += [(model, "euler", 1.0) for model in ("sd", "sd2", "sdxl")]


@pytest.mark.parametrize(("model", "name", "guidance_scale"), CASES)
def test_same_picture(model, name, guidance_scale, request) -> None:
    pair: Pair = request.getfixturevalue(model)
    pictures = pair.paint(PROMPTS[0], name, guidance_scale=guidance_scale)
    assert_same_picture(pictures)


@pytest.mark.parametrize("model", ["sd", "sd2", "sdxl"])
def test_same_batch_with_negative_prompts(model, request) -> None:
    pair: Pair = request.getfixturevalue(model)
    negative = ["bad drawing", "a small cat"]
    pictures = pair.paint(
        PROMPTS, guidance_scale=7.5, negative_prompt=negative, images_per_prompt=2, size=(8, 11)
    )
    assert_same_picture(pictures)
    plain, _ = pair.paint(PROMPTS, guidance_scale=7.5, images_per_prompt=2, size=(8, 11))
    assert np.abs(plain - pictures[0]).max() > 5, "the negative prompt changes the picture"


def test_an_empty_negative_prompt_differs_from_none_in_sdxl(sdxl: Pair) -> None:
    empty = sdxl.paint(PROMPTS[0], guidance_scale=7.5, negative_prompt="")
    none = sdxl.paint(PROMPTS[0], guidance_scale=7.5)
    assert_same_picture(empty)
    assert_same_picture(none)
    assert np.abs(empty[0] - none[0]).max() > 2


def test_same_guidance_rescale(sd: Pair) -> None:
    pictures = sd.paint(PROMPTS[0], guidance_scale=7.5, guidance_rescale=0.7)
    assert_same_picture(pictures)
    plain, _ = sd.paint(PROMPTS[0], guidance_scale=7.5)
    assert np.abs(plain - pictures[0]).max() > 2


def test_same_clip_skip_in_sdxl(sdxl: Pair) -> None:
    pictures = sdxl.paint(PROMPTS[0], guidance_scale=7.5, clip_skip=1)
    assert_same_picture(pictures)
    plain, _ = sdxl.paint(PROMPTS[0], guidance_scale=7.5)
    assert np.abs(plain - pictures[0]).max() > 2


@torch.no_grad()
def test_same_clip_skip(sd: Pair) -> None:
    # transformers 5 has renamed what diffusers' own clip_skip looks for: its steps, done here.
    reference, encoder = sd.reference, sd.reference.text_encoder
    ids = reference.tokenizer(
        PROMPTS[0], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    states = encoder(ids, output_hidden_states=True).hidden_states
    text = encoder.final_layer_norm(states[-2])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    expected = reference(
        prompt_embeds=text,
        negative_prompt="bad drawing",
        latents=noise.clone(),
        num_inference_steps=STEPS,
        guidance_scale=7.5,
    ).images
    got = paint(
        sd.ours,
        PROMPTS[0],
        negative_prompt="bad drawing",
        latents=noise,
        steps=STEPS,
        guidance_scale=7.5,
        clip_skip=1,
    ).images
    assert_same_picture((_stack(got), _stack(expected)))


def test_a_zero_terminal_snr_model(sd2: Pair) -> None:
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    kept: list[SchedulerMixin] = [sd2.ours.scheduler, sd2.reference.scheduler]
    try:
        for pipe in (sd2.ours, sd2.reference):
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
        assert_same_picture(sd2.paint(PROMPTS[0], "ddim", guidance_scale=7.5, guidance_rescale=0.7))
    finally:
        sd2.ours.scheduler, sd2.reference.scheduler = kept


def test_the_seed_gives_the_latents_that_diffusers_draws(sd: Pair) -> None:
    how = {"guidance_scale": 3.0}
    generators = [torch.Generator().manual_seed(seed) for seed in (41, 42)]
    expected = sd.reference(PROMPTS, num_inference_steps=STEPS, generator=generators, **how).images
    got = paint(sd.ours, PROMPTS, steps=STEPS, seed=41, **how).images
    assert_same_picture((_stack(got), _stack(expected)))
