"""Arguments as diffusers names them, and what they are called here.

One that means the same is taken; one that does not, or not quite, is answered with what to use.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

import torch

from sdcore.errors import UsageError

# Of a call -> ours, with the same value.
CALL = {
    "num_inference_steps": "steps",
    "num_images_per_prompt": "images_per_prompt",
    "mask_image": "mask",
    "sampler": "scheduler",
    "cfg_scale": "guidance_scale",
}
# Of `from_pretrained` -> ours.
LOADING = {"torch_dtype": "dtype", "local_files_only": "offline"}
# What makes no difference at these values, and is refused at others with the hint.
AT_EASE: dict[str, tuple[tuple[Any, ...], str]] = {
    "output_type": (("pil", None), "Results have .images, PIL pictures, and .latents, a tensor."),
    "return_dict": ((True, None), "A result has .images."),
    "eta": ((0, 0.0, None), 'Use scheduler="euler a" or another one that adds noise.'),
    "callback_steps": ((1, None), "Go through pipe.painting(job) for the latents of each step."),
    "padding_mask_crop": ((None,), "Use sdcore.make_jobs with only_masked, and pipe.paint."),
    "cross_attention_kwargs": ((None, {}), "Use sdcore.apply_loras for LoRAs with a weight."),
    "use_safetensors": ((True, None), "No pickles are read; `sdcore convert` makes safetensors."),
    "safety_checker": ((None,), "No safety checker is run."),
    "requires_safety_checker": ((False, None), "No safety checker is run."),
    "feature_extractor": ((None,), "No safety checker is run."),
    "image_encoder": (
        (None,),
        "There is no IP-Adapter; sdcore.trace works on a pipeline with one.",
    ),
    "low_cpu_mem_usage": ((True, False, None), "It is always so."),
    "add_watermarker": ((False, None), "No watermark is added."),
    "device_map": ((None,), 'Use device="cuda".'),
}
_EMBEDS = "Use a dialect of prompts for weights, or sdcore.trace on a pipeline of diffusers."
_STEPS = "Go through pipe.painting(job), which gives the latents after each step."
_JOB = "Make a Job with source=Noise(latents[0]), and pipe.paint it."
ANSWERS = {
    "callback_on_step_end": _STEPS,
    "callback_on_step_end_tensor_inputs": _STEPS,
    "callback": _STEPS,
    "latents": _JOB,
    **dict.fromkeys(("size", "resolution"), "Use width and height."),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), _EMBEDS),
    **dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), _EMBEDS),
    **dict.fromkeys(("prompt_2", "negative_prompt_2"), "Both text encoders read the prompt."),
    **dict.fromkeys(("ip_adapter_image", "ip_adapter_image_embeds"), "Use sdcore.trace there."),
    **dict.fromkeys(
        ("original_size", "target_size", "crops_coords_top_left"),
        "Make a Job with size_conditioning=SizeConditioning(original, crop, target).",
    ),
    **dict.fromkeys(("timesteps", "sigmas"), "Use the name of a scheduler with its noise levels."),
    "denoising_start": "Use sdcore.refine, or a Job with source=Handover(latents, start).",
    "custom_pipeline": "No code that comes with a model is run.",
    "cache_dir": "Set the variable HF_HOME of the environment.",
    "token": "Set the variable HF_TOKEN of the environment.",
    "subfolder": "Give the folder itself.",
    "config": "Families are told from the tensors; nothing needs to be given.",
}


# What a pipeline of diffusers can do -> how it is done here.
METHODS = {
    "load_lora_weights": "Use sdcore.apply_loras(pipe, [file]), which gives another model.",
    "unload_lora_weights": "apply_loras gives another model: go on with the first one.",
    "fuse_lora": "Use sdcore.apply_loras(pipe, [file], merge=True).",
    "set_adapters": "Use sdcore.apply_loras with an sdcore.LoraWeight for each.",
    "load_textual_inversion": "Use sdcore.apply_embeddings(pipe, [file]).",
    "load_ip_adapter": "There is none; sdcore.trace works on a pipeline of diffusers with one.",
    "enable_freeu": "There is none; sdcore.trace works on a pipeline of diffusers with it.",
    "enable_attention_slicing": 'Use sdcore.use_attention(pipe.unet, "chunked").',
    "enable_xformers_memory_efficient_attention": (
        'Use sdcore.use_attention(pipe.unet, "xformers").'
    ),
    "enable_vae_tiling": "Make a Job with tiled=True, and pipe.paint it.",
    "enable_vae_slicing": "Pictures are decoded one after the other; nothing needs to be done.",
    "enable_model_cpu_offload": 'Use dtype=torch.float16 and pipe.to("cuda").',
    "enable_sequential_cpu_offload": 'Use dtype=torch.float16 and pipe.to("cuda").',
    "set_progress_bar_config": "Use progress=False.",
    "vae": "It is called autoencoder.",
    "safety_checker": "There is none.",
    "components": "The parts are attributes: tokenizer, text_encoder, unet and so on.",
    "encode_prompt": "Use pipe.text_encoder(pipe.tokenizer(prompt).ids).",
    "save_pretrained": "Use sdcore.save_folder(pipe, folder).",
    "from_single_file": "Use TextToImage.from_pretrained, which takes single files too.",
}


def in_our_words(
    others: Mapping[str, Any],
    given: Mapping[str, Any],
    names: Mapping[str, str],
    further: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The arguments of a call with those that came under other names.

    Args:
        others: under names that the call does not have.
        given: under its own; None, and what is false, was not given.
        names: other names -> ours.
        further: names that are taken as they are.

    Raises:
        UsageError: a name that is not known, with the nearest; two names for one thing; a value
            that means something else here.
    """
    found = dict(given)
    for name, value in others.items():
        if _changes_nothing(name, value) or (name == "generator" and "seed" in given):
            continue
        if name not in names and name not in further:
            raise _unknown(name, value, (*given, *further))
        _take(found, names.get(name, name), value, name)
    if "seed" in given and "generator" in others:
        _take(found, "seed", _seed_of(others["generator"], found), "generator")
    return found


def _take(found: dict[str, Any], ours: str, value: Any, name: str) -> None:
    """Set an argument of ours. UsageError where it is given under its own name too."""
    if value is None:
        return
    if found.get(ours) is not None and found[ours] is not False:
        raise UsageError(
            f"{name} and {ours} are both given.",
            "They are two names for one thing.",
            f"Leave {name} out.",
        )
    found[ours] = value


def _changes_nothing(name: str, value: Any) -> bool:
    if name not in AT_EASE or isinstance(value, torch.Tensor):
        return False
    return any(value is usual or value == usual for usual in AT_EASE[name][0])


def _seed_of(generator: Any, given: Mapping[str, Any]) -> int | list[int] | None:
    """The seeds that generators began with; diffusers wants one for all, or one for each image."""
    several = isinstance(generator, list | tuple)
    generators: list[Any] = [*cast("list[Any]", generator)] if several else [generator]
    if generators == [None]:
        return None
    if not all(_is_fresh(each) for each in generators):
        raise UsageError(
            "The generator cannot be used.",
            "It is no torch.Generator of the CPU, or it has drawn already.",
            "Pass seed=7.",
        )
    seeds = [int(each.initial_seed()) for each in generators]
    images = given.get("images_per_prompt") or 1
    if not several:
        if images == 1 and isinstance(given["prompt"], str):
            return seeds[0]
        raise UsageError(
            "One generator is given for several images.",
            "diffusers draws all of them from it in a row; here image i is that of seed + i.",
            f"Pass seed={seeds[0]}.",
        )
    first = seeds[::images]  # of each prompt
    if seeds != [seed + i for seed in first for i in range(images)]:
        raise UsageError(
            "The seeds of the generators cannot be used.",
            "The images of one prompt have seeds that count on from the first.",
            f"Pass seed={first}.",
        )
    return first


def _is_fresh(generator: Any) -> bool:
    """Whether it is a generator of the CPU that has drawn nothing yet."""
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        return False
    same = torch.Generator().manual_seed(generator.initial_seed())
    return torch.equal(generator.get_state(), same.get_state())


def _unknown(name: str, value: Any, known: tuple[str, ...]) -> UsageError:
    if name in AT_EASE:
        usual, hint = AT_EASE[name]
        return UsageError(f"{name} is {value!r:.80}.", f"Here it is always {usual[0]!r}.", hint)
    if name in ANSWERS:
        hint: str = ANSWERS[name]
        return UsageError(
            f"There is no argument {name!r:.80}.", "It is done in another way here.", hint
        )
    near = get_close_matches(name, known, n=1)
    return UsageError(
        f"There is no argument {name!r:.80}.",
        f"There are {', '.join(known)}.",
        f"Did you mean {near[0]}?" if near else "Leave it out.",
    )
