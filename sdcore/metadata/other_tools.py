"""Recipes from what SwarmUI, Fooocus, NovelAI and Easy Diffusion write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcore.checks import as_int
from sdcore.diffusion.sampler_names import from_comfy
from sdcore.files.jsonfile import is_list, is_object
from sdcore.metadata.named_settings import (
    FROM_PICTURE,
    NOTHING,
    Said,
    listed,
    make_recipe,
    parsed,
)
from sdcore.metadata.recipe import (
    EASY,
    FOOOCUS,
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST_STEPS,
    NOVELAI,
    SWARM,
    Recipe,
    number_of,
    sampler_named,
    whole_number,
)

EASY_TEXTS = ("use_stable_diffusion_model", "Stable Diffusion model", "Stable Diffusion Model")
NOVELAI_TEXTS = ("Comment", "Description", "Source")
# What makes no difference, or is said with what does.
_SWARM_AS_IS = (
    *("swarm_version", "images", "batchsize", "aspectratio", "automaticvae", "date"),
    *("generation_time", "prep_time", "personalnote", "donotsave", "original_prompt"),
)
_FOOOCUS_AS_IS = (
    *("full_prompt", "full_negative_prompt", "metadata_scheme", "version", "performance"),
    *("refiner_switch", "vae", "created_by", "adaptive_cfg", "refiner_swap_method"),
)
_NOVELAI_AS_IS = (
    *("signed_hash", "n_samples", "uncond_scale", "extra_passthrough_testing", "strength"),
    *("legacy", "legacy_v3_extend", "v4_prompt", "v4_negative_prompt", "lora_clip_weights"),
    *("lora_unet_weights", "dynamic_thresholding_percentile", "sm_weight", "noise"),
    *("hide_debug_overlay", "dynamic_thresholding_mimic_scale", "controlnet_strength"),
    *("controlnet_model", "version", "add_original_image", "stream", "prefer_brownian"),
    *("deliberate_euler_ancestral_bug", "cfg_sched_eligibility", "explike_fine_detail"),
    *("minimize_sigma_inf", "uncond_per_vibe", "wonky_vibe_correlation"),
)


def recipe_of_json(text: str) -> Recipe | None:
    """The recipe in a `parameters` text that is JSON: SwarmUI's or Fooocus'; None for others.

    Raises:
        ValueError: it is one of theirs and cannot be followed.
    """
    if not text.lstrip().startswith("{"):
        return None
    data = parsed(text)
    if is_object(inner := data.get("sui_image_params")):
        return _of_swarm(inner)
    if "base_model" in data or "metadata_scheme" in data:
        return _of_fooocus(data)
    raise ValueError("it is JSON of a program that is not known")


def _of_swarm(settings: Mapping[str, Any]) -> Recipe:
    said = Said(settings)
    names, weights = listed(said.get("loras")), listed(said.get("loraweights"))
    loras = [
        said.lora(name, w) for name, w in zip(names, weights or ["1"] * len(names), strict=False)
    ]
    found = from_comfy(said.text("sampler") or "euler", said.text("scheduler") or "normal")
    last = as_int(number_of(said.get("clipstopatlayer")), -24, -1)
    said.differs(FROM_PICTURE, "initimage", "initimagecreativity", "maskimage")
    said.differs("a variation seed was mixed in", "variationseed", "variationseedstrength")
    said.differs(
        "a refiner painted on", "refinermodel", "refinermethod", "refinercontrolpercentage"
    )
    said.differs("it was enlarged afterwards", "refinerupscale", "refinerupscalemethod")
    said.differs("a VAE of its own was used", "vae")
    said.drop(*_SWARM_AS_IS)
    return make_recipe(
        SWARM,
        said,
        found,
        prompt=said.text("prompt"),
        negative=said.text("negativeprompt"),
        seed=said.whole(LARGEST_SEED, "seed"),
        steps=said.whole(MOST_STEPS, "steps"),
        scale=said.decimal(1000, "cfgscale"),
        size=(said.whole(LARGEST_SIDE, "width"), said.whole(LARGEST_SIDE, "height")),
        model=said.text("model"),
        dialect="comfy",
        clip_skip=0 if last is None else -last - 1,
        loras=loras,
    )


def _of_fooocus(settings: Mapping[str, Any]) -> Recipe:
    said = Said(settings)
    loras = [
        said.lora(entry[0], entry[1])
        for entry in listed(said.get("loras"))
        if is_list(entry) and len(entry) >= 2
    ]
    sides = re.findall(r"\d{1,5}", said.text("resolution"))
    width, height = (whole_number(side, LARGEST_SIDE) for side in (sides * 2)[:2] or (None, None))
    styles = said.get("styles")
    if styles not in (*NOTHING, "[]"):
        said.differences.append(f"its styles {styles!s:.200} added texts of their own")
    said.differs("its prompt was expanded by a language model", "prompt_expansion")
    said.differs("a refiner painted the last steps", "refiner_model")
    said.differs("sharpness is not there", "sharpness")
    said.differs("its scaling of SDXL's size conditioning is not there", "adm_guidance")
    said.differs("FreeU is not there", "freeu")
    said.drop(*_FOOOCUS_AS_IS)
    found = from_comfy(said.text("sampler") or "dpmpp_2m_sde_gpu", said.text("scheduler"))
    skip = said.whole(12, "clip_skip")
    return make_recipe(
        FOOOCUS,
        said,
        found,
        prompt=said.text("prompt"),
        negative=said.text("negative_prompt"),
        seed=said.whole(LARGEST_SEED, "seed"),
        steps=said.whole(MOST_STEPS, "steps"),
        scale=said.decimal(1000, "guidance_scale"),
        size=(width, height),
        model=said.text("base_model"),
        model_hash=said.text("base_model_hash"),
        dialect="a1111",
        clip_skip=max((skip or 1) - 1, 0),
        loras=loras,
    )


def recipe_of_novelai(texts: Mapping[str, str]) -> Recipe:
    """NovelAI's. Raises ValueError: it cannot be followed."""
    said = Said(parsed(texts["Comment"]))
    source = texts.get("Source", "")
    model, _, digits = source.rpartition(" ")
    prompt = said.text("prompt") or texts.get("Description", "")
    if any(sign in prompt for sign in "{}[]"):
        said.differences.append("its weights { } and [ ] are not known here; they stand as text")
    why = "it is no Stable Diffusion model" if re.search(r"V[4-9]", source) else ""
    found = sampler_named(said.text("sampler") or "k_euler", _native(said.text("noise_schedule")))
    said.differs("its own sampling tricks (SMEA) are not there", "sm", "sm_dyn")
    said.differs("dynamic thresholding is not there", "dynamic_thresholding")
    said.differs("its second guidance is not there", "uncond_scale_of_its_own")
    said.differs("regions or characters had prompts of their own", "reference_strength")
    said.differs(
        "it began from a picture, which the file does not hold", "strength", "noise", "mask"
    )
    said.drop(
        "request_type", "signed_hash", "n_samples", "uncond_scale", "extra_passthrough_testing"
    )
    said.drop("legacy", "legacy_v3_extend", "v4_prompt", "v4_negative_prompt", "lora_clip_weights")
    said.drop(
        "lora_unet_weights", "dynamic_thresholding_percentile", "sm_weight", "hide_debug_overlay"
    )
    said.drop(
        "dynamic_thresholding_mimic_scale", "controlnet_strength", "controlnet_model", "version"
    )
    said.drop("add_original_image", "stream", "deliberate_euler_ancestral_bug", "prefer_brownian")
    said.drop(
        "cfg_sched_eligibility", "explike_fine_detail", "minimize_sigma_inf", "uncond_per_vibe"
    )
    return make_recipe(
        NOVELAI,
        said,
        found,
        prompt=prompt,
        negative=said.text("uc"),
        seed=said.whole(LARGEST_SEED, "seed"),
        steps=said.whole(MOST_STEPS, "steps"),
        scale=said.decimal(1000, "scale"),
        rescale=said.decimal(1, "cfg_rescale"),
        size=(said.whole(LARGEST_SIDE, "width"), said.whole(LARGEST_SIDE, "height")),
        model=model if re.fullmatch(r"[0-9A-F]{8}", digits) else source,
        dialect="plain",
        more=(why,) if why else (),
    )


def _native(schedule: str) -> str:
    return "" if schedule == "native" else schedule


def recipe_of_easy(texts: Mapping[str, str]) -> Recipe:
    """Easy Diffusion's, which writes a text for each setting. Raises ValueError."""
    said = Said({_EASY.get(name, name): value for name, value in texts.items()})
    loras = [said.lora(name, 1) for name in listed(said.get("use_lora_model"))]
    strengths = listed(said.get("lora_alpha"))
    loras = [
        said.lora(lora.name, strength)
        for lora, strength in zip(loras, strengths or [1] * len(loras), strict=False)
    ]
    said.differs("a VAE of its own was used", "use_vae_model")
    said.differs("hypernetworks are not there", "use_hypernetwork_model")
    said.differs("ControlNet is not there", "use_controlnet_model", "control_alpha")
    said.differs("faces were restored afterwards", "use_face_correction")
    said.differs("it was enlarged afterwards", "use_upscale")
    said.differs("tiling is not there", "tiling")
    said.differs(FROM_PICTURE, "prompt_strength")
    said.drop("upscale_amount", "hypernetwork_strength", "preserve_init_image_color_profile")
    skip = said.get("clip_skip")
    return make_recipe(
        EASY,
        said,
        sampler_named(said.text("sampler_name") or "euler_a", said.text("scheduler_name")),
        prompt=said.text("prompt"),
        negative=said.text("negative_prompt"),
        seed=said.whole(LARGEST_SEED, "seed"),
        steps=said.whole(MOST_STEPS, "num_inference_steps"),
        scale=said.decimal(1000, "guidance_scale"),
        size=(said.whole(LARGEST_SIDE, "width"), said.whole(LARGEST_SIDE, "height")),
        model=said.text("use_stable_diffusion_model"),
        dialect="compel",
        clip_skip=int(str(skip).lower() == "true"),
        loras=loras,
    )


_EASY = {
    "Prompt": "prompt",
    "Negative Prompt": "negative_prompt",
    "Seed": "seed",
    "Steps": "num_inference_steps",
    "Guidance Scale": "guidance_scale",
    "Prompt Strength": "prompt_strength",
    "Width": "width",
    "Height": "height",
    "Sampler": "sampler_name",
    "Scheduler": "scheduler_name",
    "Clip Skip": "clip_skip",
    "Stable Diffusion model": "use_stable_diffusion_model",
    "Stable Diffusion Model": "use_stable_diffusion_model",
    "VAE model": "use_vae_model",
    "LoRA model": "use_lora_model",
    "LoRA Strength": "lora_alpha",
    "Hypernetwork model": "use_hypernetwork_model",
    "Hypernetwork Strength": "hypernetwork_strength",
    "Use Face Correction": "use_face_correction",
    "Use Upscaling": "use_upscale",
    "Upscale By": "upscale_amount",
    "Seamless Tiling": "tiling",
}
EASY_SETTINGS = (*_EASY, *dict.fromkeys(_EASY.values()))
