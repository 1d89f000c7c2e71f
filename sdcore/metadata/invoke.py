"""Recipes from what InvokeAI writes: JSON, of another shape before, at first a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcore.files.jsonfile import is_list, is_object
from sdcore.job.adapters import LoraSettings
from sdcore.metadata.named_settings import (
    FROM_PICTURE,
    Said,
    listed,
    make_recipe,
    name_of,
    parsed,
)
from sdcore.metadata.recipe import (
    INVOKE,
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST_STEPS,
    Recipe,
    sampler_named,
)

INVOKE_TEXTS = ("invokeai_metadata", "sd-metadata", "Dream")
# What makes no difference, or is said with what does.
_AS_IS = (
    *("negative_style_prompt", "generation_mode", "app_version", "canvas_v2_metadata"),
    *(f"refiner_{name}" for name in ("cfg_scale", "steps", "scheduler", "start")),
    *("refiner_positive_aesthetic_score", "refiner_negative_aesthetic_score"),
)


def recipe_of_invoke(texts: Mapping[str, str]) -> Recipe:
    """InvokeAI's, of any of its versions. Raises ValueError: it cannot be followed."""
    if "invokeai_metadata" in texts:
        return _of_invoke_now(parsed(texts["invokeai_metadata"]))
    if "sd-metadata" in texts:
        return _of_invoke_before(parsed(texts["sd-metadata"]))
    return _of_dream(texts["Dream"])


def _of_invoke_now(settings: Mapping[str, Any]) -> Recipe:
    said = Said(settings)
    model, loras = said.get("model"), list[LoraSettings]()
    for entry in listed(said.get("loras")):
        if is_object(entry):
            named = entry.get("model", entry.get("lora", entry.get("name")))
            loras.append(said.lora(name_of(named), entry.get("weight", 1)))
    if said.get("rand_device") not in (None, "cpu"):
        said.differences.append("the noise was drawn on a GPU, here on the CPU: other picture")
    said.differs(FROM_PICTURE, "init_image", "strength")
    said.differs("ControlNet is not there", "controlnets", "control_layers")
    said.differs("IP-Adapter is not there", "ipAdapters", "t2iAdapters")
    said.differs("a refiner painted the last steps", "refiner_model")
    said.differs("its second pass is not run", "hrf_enabled", "hrf_method", "hrf_strength")
    said.differs("a VAE of its own was used", "vae")
    said.differs("tiling is not there", "seamless_x", "seamless_y")
    said.differs("regions had prompts of their own", "regions", "ref_images")
    said.differs("its style prompts are not used", "positive_style_prompt")
    said.drop(*_AS_IS)
    return make_recipe(
        INVOKE,
        said,
        sampler_named(said.text("scheduler") or "euler"),
        prompt=said.text("positive_prompt"),
        negative=said.text("negative_prompt"),
        seed=said.whole(LARGEST_SEED, "seed"),
        steps=said.whole(MOST_STEPS, "steps"),
        scale=said.decimal(1000, "cfg_scale"),
        rescale=said.decimal(1, "cfg_rescale_multiplier"),
        size=(said.whole(LARGEST_SIDE, "width"), said.whole(LARGEST_SIDE, "height")),
        model=name_of(model),
        dialect="compel",
        clip_skip=said.whole(12, "clip_skip") or 0,
        loras=loras,
    )


def _of_invoke_before(settings: Mapping[str, Any]) -> Recipe:
    """InvokeAI 2: the picture's settings lie within those of the program."""
    inner = settings.get("image")
    if not is_object(inner):
        raise ValueError("it says nothing of the image")
    said = Said(inner)
    given = said.get("prompt")
    prompts = given if is_list(given) else [given]
    texts = [entry.get("prompt") if is_object(entry) else entry for entry in prompts]
    prompt, negative = _without_brackets(" ".join(t for t in texts if isinstance(t, str)))
    said.differs("its noise was changed", "perlin", "threshold", "variations")
    said.differs("tiling is not there", "seamless")
    said.differs("its second pass is not run", "hires_fix")
    said.differs("it was worked on afterwards", "postprocessing", "facetool_strength", "upscale")
    said.differs(FROM_PICTURE, "init_image_path", "fit")
    said.drop("type", "strength", "rand_device", "orig_hash")
    return make_recipe(
        INVOKE,
        said,
        sampler_named(said.text("sampler") or "lms"),
        prompt=prompt,
        negative=negative,
        seed=said.whole(LARGEST_SEED, "seed"),
        steps=said.whole(MOST_STEPS, "steps"),
        scale=said.decimal(1000, "cfg_scale"),
        size=(said.whole(LARGEST_SIDE, "width"), said.whole(LARGEST_SIDE, "height")),
        model=str(settings.get("model_weights") or ""),
        model_hash=str(settings.get("model_hash") or ""),
        dialect="compel",
    )


_DREAM = re.compile(r'\s*"(.*)"([^"]*)', re.DOTALL)


def _of_dream(text: str) -> Recipe:
    """InvokeAI 1: the command line that painted it."""
    found = _DREAM.fullmatch(text)
    if found is None:
        raise ValueError("it is no command line of InvokeAI")
    prompt, negative = _without_brackets(found[1])
    words = found[2].split()
    flags = {
        word[1:]: following
        for word, following in zip(words, [*words[1:], ""], strict=True)
        if re.fullmatch(r"-[a-zA-Z_]+", word)
    }
    said = Said(flags)
    said.differs(FROM_PICTURE, "I", "f")
    said.differs("it was worked on afterwards", "G", "U", "ft")
    said.differs("its noise was changed", "V", "v", "perlin", "threshold")
    return make_recipe(
        INVOKE,
        said,
        sampler_named(said.text("A") or "lms"),
        prompt=prompt,
        negative=negative,
        seed=said.whole(LARGEST_SEED, "S"),
        steps=said.whole(MOST_STEPS, "s"),
        scale=said.decimal(1000, "C"),
        size=(said.whole(LARGEST_SIDE, "W"), said.whole(LARGEST_SIDE, "H")),
        dialect="compel",
    )


def _without_brackets(text: str) -> tuple[str, str]:
    """A prompt of an old InvokeAI, and what stands in [...] in it, which is the negative one."""
    negative = ", ".join(part.strip() for part in re.findall(r"\[([^\[\]]*)\]", text))
    return " ".join(re.sub(r"\[[^\[\]]*\]", " ", text).split()), negative
