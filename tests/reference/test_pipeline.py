"""Whole runs against diffusers' own pipelines, from the same folder and initial latents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sdcore import TextToImage
from tests.painting import paint
from tests.tiny import told_the_scale, write_edm

# How diffusers' own documentation makes the sampler of each name from a model's config.
BY_DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    # As in the published configs of Stable Diffusion; diffusers' own default clips x0 to [-1, 1].
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    # In diffusers it goes from end to end only where the model's own steps do.
    "euler karras": (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "timestep_spacing": "linspace"},
    ),
    "euler exponential": (
        "EulerDiscreteScheduler",
        {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},
    ),
    "euler trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2m sde karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm++ 2m sde heun": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "dpm++ 3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpm++ 2s": ("DPMSolverSinglestepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc bh1": (
        "UniPCMultistepScheduler",
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ),
    "sa-solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
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
        if scheduler == "tcd":
            theirs["eta"] = 0.3  # its own default, which the pipeline would set to 0
        expected = self.reference(prompts, latents=noise.clone(), **theirs).images
        ours = {"steps": STEPS, "scheduler": scheduler, **how}
        got = paint(self.ours, prompts, latents=noise, seed=0, **ours).images
        self.reference.scheduler = published
        return _stack(got), _stack(expected)


def by_diffusers(name: str, config: Any) -> Any:
    if "sigma_data" in config:
        cls = "EDMEulerScheduler" if name == "euler" else "EDMDPMSolverMultistepScheduler"
        changes = {"sigma_schedule": "exponential"} if name.endswith("exponential") else {}
        changes |= {"algorithm_type": "sde-dpmsolver++"} if "sde" in name else {}
        return getattr(diffusers, cls).from_config(config, **changes)
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
ONE_OF_EACH_CLASS = list({cls: name for name, (cls, _) in BY_DIFFUSERS.items()}.values())
CASES = [("sd", name, 7.5) for name in BY_DIFFUSERS]
CASES += [("sd2", name, 7.5) for name in ONE_OF_EACH_CLASS]
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


@pytest.mark.parametrize(("model", "name"), [("sd2", "ddim"), ("sdxl", "euler"), ("sdxl", None)])
def test_a_zero_terminal_snr_model(model, name, request) -> None:
    pair: Pair = request.getfixturevalue(model)
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    changes |= {"prediction_type": "v_prediction"}
    kept: list[SchedulerMixin] = [pair.ours.scheduler, pair.reference.scheduler]
    try:
        for pipe in (pair.ours, pair.reference):
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
        pictures = pair.paint(PROMPTS[0], name, guidance_scale=7.5, guidance_rescale=0.7)
        assert_same_picture(pictures)
    finally:
        pair.ours.scheduler, pair.reference.scheduler = kept


def test_the_seed_gives_the_latents_that_diffusers_draws(sd: Pair) -> None:
    how = {"guidance_scale": 3.0}
    generators = [torch.Generator().manual_seed(seed) for seed in (41, 42)]
    expected = sd.reference(PROMPTS, num_inference_steps=STEPS, generator=generators, **how).images
    got = paint(sd.ours, PROMPTS, steps=STEPS, seed=41, **how).images
    assert_same_picture((_stack(got), _stack(expected)))


@pytest.mark.parametrize("changes", [{}, {"clip_sample": True, "steps_offset": 0}])
def test_a_folder_whose_settings_diffusers_repairs(sd_folder, tmp_path, changes) -> None:
    shutil.copytree(sd_folder, tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config = {k: v for k, v in config.items() if k not in ("clip_sample", "steps_offset")}
    path.write_text(json.dumps({**config, "_class_name": "DDIMScheduler", **changes}))
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", "DDIMScheduler"))
    pair = Pair(tmp_path / "model", StableDiffusionPipeline)
    assert_same_picture(pair.paint(PROMPTS[0], guidance_scale=7.5))


@pytest.mark.parametrize("guidance_scale", [1.0, 8.0])
def test_a_unet_that_is_told_the_guidance_scale(sd_folder, tmp_path, guidance_scale) -> None:
    folder = told_the_scale(sd_folder, tmp_path / "lcm")
    pair = Pair(folder, StableDiffusionPipeline)
    assert_same_picture(pair.paint(PROMPTS[0], "lcm", guidance_scale=guidance_scale))


@pytest.mark.parametrize("kind", ["playground", "cosxl"])
@pytest.mark.parametrize("name", [None, "euler", "dpm++ 2m", "dpm++ 2m sde exponential"])
def test_models_trained_with_edm_noise(sdxl_folder, tmp_path, kind, name) -> None:
    pair = Pair(write_edm(tmp_path / kind, sdxl_folder, kind), StableDiffusionXLPipeline)
    assert_same_picture(pair.paint(PROMPTS[0], name, guidance_scale=3.0))
