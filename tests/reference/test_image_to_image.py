"""Image to image, inpainting and the refiner against diffusers' pipelines, on the same folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sdcore import TextToImage
from sdcore.size import SizeConditioning
from tests import tiny
from tests.painting import paint
from tests.reference.test_pipeline import (
    ONE_OF_EACH_CLASS,
    PROMPTS,
    assert_same_picture,
    by_diffusers,
)

PIPELINES = {
    "sd": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
}
PIPELINES["sd2"] = PIPELINES["sd"]
SEED, STEPS = 11, 5


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Soft coloured clouds."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def mask(box: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("L", size, 0)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return image


class Both:
    """One folder opened by both, and the same run of each."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ours = TextToImage.from_pretrained(folder)
        self.theirs: Any = getattr(diffusers, name).from_pretrained(folder)
        self.theirs.set_progress_bar_config(disable=True)

    def paint(
        self,
        prompt: Any = PROMPTS[0],
        *,
        scheduler: str | None = None,
        ours: dict[str, Any],
        theirs: dict[str, Any],
        **both: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        published = self.theirs.scheduler
        if scheduler is not None:
            self.theirs.scheduler = by_diffusers(scheduler, published.config)
        if scheduler == "tcd":
            theirs = {**theirs, "eta": 0.3}  # its own default, which the pipeline would set to 0
        both = {"guidance_scale": 4.0, "negative_prompt": "bad drawing", **both}
        steps = ours.get("steps", STEPS)
        ours = {"steps": steps, "seed": SEED, "scheduler": scheduler, **both, **ours}
        got = paint(self.ours, prompt, **ours).images
        if isinstance(prompt, list):
            both["negative_prompt"] = [both["negative_prompt"]] * len(prompt)
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(got))]
        each = {"num_inference_steps": steps, "generator": generators, **both, **theirs}
        expected = self.theirs(prompt, **each).images
        self.theirs.scheduler = published
        return stack(got), stack(expected)


def stack(images: list) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.fixture(scope="module")
def folders(sd_folder, sd2_folder, sdxl_folder) -> dict[str, Path]:
    return {"sd": sd_folder, "sd2": sd2_folder, "sdxl": sdxl_folder}


@pytest.fixture(scope="module")
def from_picture(folders) -> dict[str, Both]:
    return {model: Both(folder, PIPELINES[model][0]) for model, folder in folders.items()}


@pytest.fixture(scope="module")
def inpaint(folders) -> dict[str, Both]:
    return {model: Both(folder, PIPELINES[model][1]) for model, folder in folders.items()}


@pytest.fixture(scope="module")
def inpaint9(folders, tmp_path_factory) -> dict[str, Both]:
    """Models whose UNet reads mask and masked picture beside the latents."""
    both = {}
    for model in ("sd", "sdxl"):
        name = PIPELINES[model][1]
        reference = getattr(diffusers, name).from_pretrained(folders[model])
        changes = {"in_channels": 9, "sample_size": 8}
        torch.manual_seed(9)
        if model == "sdxl":
            old = reference.unet.config
            keys = ("down_block_types", "up_block_types", "transformer_layers_per_block")
            keys += ("attention_head_dim", "use_linear_projection", "cross_attention_dim")
            keys += ("addition_embed_type", "addition_time_embed_dim")
            keys += ("projection_class_embeddings_input_dim",)
            changes |= {key: old[key] for key in keys}
        reference.register_modules(unet=tiny.make_unet(**changes))
        folder = tmp_path_factory.mktemp(f"{model}9")
        reference.save_pretrained(folder)
        both[model] = Both(folder, name)
    return both


# Where a run begins is an affair of the class.
@pytest.mark.parametrize("scheduler", ONE_OF_EACH_CLASS)
def test_same_picture_from_a_picture(from_picture, scheduler) -> None:
    given = {"image": picture(), "strength": 0.7}
    assert_same_picture(from_picture["sd"].paint(scheduler=scheduler, ours=given, theirs=given))


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpm++ 2m sde karras"])
@pytest.mark.parametrize("model", ["sd2", "sdxl"])
def test_same_picture_from_a_picture_in_other_families(from_picture, model, scheduler) -> None:
    given = {"image": picture(), "strength": 0.7}
    assert_same_picture(from_picture[model].paint(scheduler=scheduler, ours=given, theirs=given))


@pytest.mark.parametrize(
    ("model", "strength"), [("sd", 0.2), ("sd", 0.5), ("sd", 1.0), ("sdxl", 0.2)]
)
def test_same_picture_at_any_strength(from_picture, model, strength) -> None:
    given = {"image": picture(), "strength": strength}
    pictures = from_picture[model].paint(scheduler="euler a", ours=given, theirs=given)
    assert_same_picture(pictures)
    if strength == 1:
        return  # hardly anything of it is left
    other = {**given, "image": picture(1)}
    changed, _ = from_picture[model].paint(scheduler="euler a", ours=other, theirs=other)
    assert np.abs(changed - pictures[0]).max() > 5, "the picture matters"


def test_same_batch_of_pictures(from_picture) -> None:
    images, given = [picture(1), picture(2)], {"strength": 0.5, "images_per_prompt": 2}
    theirs = {"image": [i for i in images for _ in range(2)], "strength": 0.5}
    pictures = from_picture["sd"].paint(
        PROMPTS, scheduler="euler a", ours={"image": images, **given},
        theirs={**theirs, "num_images_per_prompt": 2},
    )  # fmt: skip
    assert_same_picture(pictures)
    assert len(pictures[0]) == 4


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_sizes_are_rounded_down_by_resizing_as_in_diffusers(from_picture, model) -> None:
    given = {"image": picture(3, (77, 45)), "strength": 0.5}
    pictures = from_picture[model].paint(ours=given, theirs=given)
    assert_same_picture(pictures)
    assert pictures[0].shape == (1, 40, 72, 3)


def keep_outside(pictures: tuple, image: Image.Image, where: Image.Image) -> tuple:
    """diffusers gives back what its autoencoder makes of the kept part; here it is the picture."""
    got, expected = pictures
    repainted = np.asarray(where)[None, :, :, None] > 0
    assert (got == np.where(repainted, got, np.asarray(image))).all(), "kept to the bit"
    return got, np.where(repainted, expected, np.asarray(image))


# At full strength the run begins from noise alone, which is scaled as the scheduler says; how it
# goes on is the same.
@pytest.mark.parametrize(
    ("scheduler", "strength"),
    [(name, 0.6) for name in ONE_OF_EACH_CLASS] + [(n, 1.0) for n in ("ddim", "euler", "lcm")],
)
def test_same_inpainting_with_any_model(inpaint, scheduler, strength) -> None:
    image, where = picture(4), mask((19, 8, 64, 51))
    pictures = inpaint["sd"].paint(
        scheduler=scheduler,
        strength=strength,
        ours={"image": image, "mask": where, "mask_cells": "corner"},
        theirs={"image": image, "mask_image": where, "height": 64, "width": 64},
    )
    assert_same_picture(keep_outside(pictures, image, where))


@pytest.mark.parametrize(("scheduler", "strength"), [("ddim", 1.0), ("euler a", 0.6)])
def test_same_inpainting_in_sdxl(inpaint, scheduler, strength) -> None:
    image, where = picture(4), mask((19, 8, 64, 51))
    pictures = inpaint["sdxl"].paint(
        scheduler=scheduler,
        strength=strength,
        ours={"image": image, "mask": where, "mask_cells": "corner"},
        theirs={"image": image, "mask_image": where, "height": 64, "width": 64},
    )
    assert_same_picture(keep_outside(pictures, image, where))


# The nine channels are joined after the scheduler has scaled its four, once or twice with guidance.
@pytest.mark.parametrize(
    ("scheduler", "strength", "guidance_scale"),
    [("pndm", 1.0, 4.0), ("euler a", 0.6, 4.0), ("heun", 0.6, 1.0)],
)
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_same_inpainting_with_inpainting_models(
    inpaint9, model, scheduler, strength, guidance_scale
) -> None:
    image, where = picture(5), mask((0, 13, 40, 64))
    pictures = inpaint9[model].paint(
        scheduler=scheduler,
        strength=strength,
        guidance_scale=guidance_scale,
        negative_prompt="bad drawing" if guidance_scale > 1 else None,
        ours={"image": image, "mask": where, "mask_cells": "corner"},
        theirs={"image": image, "mask_image": where, "height": 64, "width": 64},
    )
    assert_same_picture(keep_outside(pictures, image, where))


@pytest.mark.parametrize("box", [(60, 40, 100, 70), (100, 80, 128, 96)])
def test_same_part_around_the_mask(inpaint, box) -> None:
    image, where = picture(6, (128, 96)), mask(box, (128, 96))
    got, expected = inpaint["sd"].paint(
        scheduler="ddim",
        strength=1.0,
        ours={
            "image": image,
            "mask": where,
            "mask_cells": "corner",
            "only_masked": 7,
            "width": 64,
            "height": 64,
        },
        theirs={"image": image, "mask_image": where, "padding_mask_crop": 7}
        | {"height": 64, "width": 64},
    )
    assert_same_picture((got, expected))
    repainted = np.asarray(where)[None, :, :, None] > 0
    assert (got == np.where(repainted, got, np.asarray(image))).all()


# --- SDXL's refiner ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refiner(refiner_folder) -> Both:
    return Both(refiner_folder, "StableDiffusionXLImg2ImgPipeline")


@pytest.fixture(scope="module")
def base(sdxl_folder) -> Both:
    return Both(sdxl_folder, "StableDiffusionXLPipeline")


def test_same_refined_picture(refiner) -> None:
    assert refiner.ours.defaults.strength == 0.3 and refiner.ours.tokenizer is None
    given = {"image": picture(7), "strength": 0.5}
    assert_same_picture(refiner.paint(ours=given, theirs=given))
    scores = {
        "size_conditioning": SizeConditioning((48, 80), (4, 8), (64, 64), aesthetic=3.0),
        "negative_size_conditioning": SizeConditioning((50, 60), (2, 1), (64, 64), aesthetic=1.5),
    }
    theirs = {"original_size": (48, 80), "crops_coords_top_left": (4, 8), "aesthetic_score": 3.0}
    theirs |= {"negative_original_size": (50, 60), "negative_crops_coords_top_left": (2, 1)}
    theirs |= {"negative_aesthetic_score": 1.5}
    scored = refiner.paint(ours={**given, **scores}, theirs={**given, **theirs})
    assert_same_picture(scored)


@pytest.mark.parametrize(
    ("scheduler", "share"),
    [("ddim", 0.5), ("euler", 0.8), ("dpm++ 2m", 0.5), ("dpm++ 2m karras", 0.8), ("unipc", 0.5)],
)
def test_same_hand_over_from_base_to_refiner(base, refiner, scheduler, share) -> None:
    how = {"guidance_scale": 4.0, "negative_prompt": "bad drawing"}
    ours = {"steps": STEPS, "seed": SEED, "scheduler": scheduler, **how}
    begun = paint(base.ours, PROMPTS[0], denoising_end=share, **ours)
    assert not begun.images
    got = paint(refiner.ours, PROMPTS[0], image=begun.latents, denoising_start=share, **ours).images

    pair = (base.theirs, refiner.theirs)
    kept = [pipe.scheduler for pipe in pair]
    theirs = {"num_inference_steps": STEPS, **how}
    try:
        for pipe in pair:
            pipe.scheduler = by_diffusers(scheduler, pipe.scheduler.config)
        generator = [torch.Generator().manual_seed(SEED)]
        latents = base.theirs(
            PROMPTS[0], denoising_end=share, output_type="latent", generator=generator, **theirs
        ).images
        expected = refiner.theirs(
            PROMPTS[0], image=latents, denoising_start=share, generator=generator, **theirs
        ).images
    finally:
        for pipe, scheduler_before in zip(pair, kept, strict=True):
            pipe.scheduler = scheduler_before
    torch.testing.assert_close(begun.latents, latents, atol=1e-4, rtol=1e-4)
    assert_same_picture((stack(got), stack(expected)))


def test_same_size_conditioning(base) -> None:
    ours = {
        "size_conditioning": SizeConditioning((30, 90), (5, 3), (64, 64)),
        "negative_size_conditioning": SizeConditioning((16, 16), (1, 2), (32, 32)),
    }
    theirs = {"original_size": (30, 90), "crops_coords_top_left": (5, 3), "target_size": (64, 64)}
    theirs |= {"negative_original_size": (16, 16), "negative_crops_coords_top_left": (1, 2)}
    theirs |= {"negative_target_size": (32, 32)}
    told = base.paint(ours=ours, theirs=theirs)
    assert_same_picture(told)
    plain = base.paint(ours={}, theirs={})
    assert np.abs(told[0] - plain[0]).max() > 2, "the size matters"
