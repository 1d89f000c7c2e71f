"""A recipe from the `parameters` text of Stable Diffusion web UI and the tools that write it."""

from __future__ import annotations

import json
import math
import re

from sdcore.checks import as_finite
from sdcore.diffusion.methods import STOCHASTIC
from sdcore.diffusion.sampler_names import Found, from_web_ui, split_name
from sdcore.errors import UsageError
from sdcore.files.jsonfile import is_list, is_object, parse_json_object
from sdcore.job.adapters import EmbeddingSettings, HiresSettings, LoraSettings
from sdcore.job.job import GENEROUS, Job
from sdcore.metadata.parameters import Parameters, read_parameters
from sdcore.metadata.recipe import (
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST_STEPS,
    SDCORE,
    WEB_UI,
    Recipe,
    base_name,
    decimal,
    number_of,
    sampler_named,
    size_of,
    whole_number,
)
from sdcore.prompt.dialects import DIALECTS, parse_prompt

_SAID_ELSEWHERE = {
    *("Steps", "Sampler", "Schedule type", "CFG scale", "CFG rescale", "Seed", "Size", "Clip skip"),
    *("Model", "Model hash", "Lora hashes", "TI hashes", "RNG", "ENSD", "Emphasis", "Dialect"),
    *("Denoising strength", "Version", "Batch size", "Batch pos", "User", "Hires upscaler"),
    *("Hires resize", "Hires upscale", "Hires steps", "First pass size", "Hashes", "Width"),
    *("Height", "Parser", "App", "Pipeline", "Operations", "Backend", "Batch", "Index", "Template"),
    *("Negative Template", "Created Date", "Civitai metadata", "Civitai resources", "Time taken"),
    *("Discard penultimate sigma", "Downcast alphas_cumprod", "Pad conds", "SGM noise multiplier"),
    *("Performance", "Lora weights"),
    *("Diffusion in Low Bits", "Generator", "Source Identifier", "Model VAE", "Token merging"),
}
# Where a key alone tells what cannot be the same. Keys of one feature share a reason.
_REASONS = {
    "Variation seed": "a variation seed was mixed in, which is not there",
    "Seed resize from": "the noise was resized from another size, which is not there",
    "Hypernet": "hypernetworks are not there",
    "VAE": "a VAE of its own was used",
    "Refiner": "a refiner painted the last steps",
    "Face restoration": "faces were restored afterwards",
    "Eta": "its own eta is not there",
    "Tiling": "tiling is not there",
    "Hires": "its second pass had a prompt, model or sampler of its own",
    "Mask": "it was inpainted, and the file does not hold the picture and the mask",
    "ADetailer": "ADetailer repainted parts of it",
    "ControlNet": "ControlNet is not there",
    "Sharpness": "sharpness is not there",
    "ADM Guidance": "its scaling of SDXL's size conditioning is not there",
    "Styles": "its styles added texts of their own",
    "freeu": "FreeU is not there",
    "FreeU": "FreeU is not there",
    "Cfg end": "guidance ended before the last step",
    "Skip Early CFG": "guidance began after the first step",
    "NGMS": "guidance was left out where it changed little",
    "Token merging ratio": "tokens were merged",
    "hypertile": "attention was computed in tiles",
    "Distilled CFG": "its guidance is of another kind of model",
    "Module": "parts of another model were used",
    "Init image": "it began from a picture, which the file does not hold",
    "Second pass": "its second pass had a prompt, model or sampler of its own",
    "Regional Prompter": "regions had prompts of their own",
    "RP ": "regions had prompts of their own",
    "AnimateDiff": "AnimateDiff is not there",
    "Dynamic thresholding": "dynamic thresholding is not there",
    "Beta schedule": "its own numbers for the noise levels are not there",
    "Schedule max sigma": "its own noise levels are not there",
    "Schedule min sigma": "its own noise levels are not there",
    "Schedule rho": "its own noise levels are not there",
    "Sampler ": "options of the sampler are not there",
}
# SD.Next says which of its readers of prompts was at work.
_PARSERS = {"full": "a1111", "a1111": "a1111", "compel": "compel", "fixed": "plain"}
_FRACTION = re.compile(r"(?<=[0-9]),(?=[0-9])")
_SHOWN = 60


def recipe_of_parameters(text: str) -> Recipe:
    """What the text says, in our words. Raises ValueError where it has no line of settings."""
    parameters = read_parameters(text)
    pairs = parameters.pairs
    GENEROUS.check("letters", len(parameters.prompt), "Its prompt")
    if not pairs:
        raise ValueError("it holds no settings, so only a prompt is known")
    ours = pairs.get("Version", "").startswith("sdcore")
    sampler = _sampler(pairs.get("Sampler", "Euler"), pairs.get("Schedule type"))
    width, height, differences = _read_size(pairs)
    steps = _number(pairs, "Steps", MOST_STEPS, differences)
    seed = _number(pairs, "Seed", LARGEST_SEED, differences)
    skip = _number(pairs, "Clip skip", 12, differences)
    differences += [] if ours else sampler.differences
    differences += _other_differences(parameters, sampler.name)
    differences += _of_civitai(pairs.get("Civitai resources"))
    loras = _loras(parameters, differences)
    hires = _read_hires(pairs, width, height, differences)
    dialect, unsure = _dialect(pairs)
    return Recipe(
        origin=SDCORE if ours else WEB_UI,
        job=Job(
            prompt=parameters.prompt,
            negative_prompt=parameters.negative_prompt or None,
            seed=seed,
            steps=steps or None,
            guidance_scale=_decimal(pairs, "CFG scale", 1000, differences),
            guidance_rescale=_decimal(pairs, "CFG rescale", 1, differences),
            scheduler=sampler.name,
            size=size_of(width, height),
            dialect=dialect,
            clip_skip=max(skip - 1, 0) if skip is not None else 0,
            loras=loras,
            embeddings=tuple(EmbeddingSettings(*pair) for pair in _hashes(pairs.get("TI hashes"))),
            hires=hires,
        ),
        model=base_name(pairs["Model"]) if "Model" in pairs else None,
        model_hash=_digits(pairs.get("Model hash")) or _hashes_of_all(pairs).get("model"),
        differences=tuple(dict.fromkeys([*differences, *unsure])),
    )


def _sampler(name: str, levels: str | None) -> Found:
    """By the web UI's name; other programs write such a text with names of their own."""
    found = from_web_ui(name, levels)
    if any("is not there" in why for why in found.differences):
        other = sampler_named(name, levels or "")
        return found if any("is not there" in why for why in other.differences) else other
    return found


def _read_size(pairs: dict[str, str]) -> tuple[int | None, int | None, list[str]]:
    size = pairs.get("Size")
    if size is None and "Width" in pairs and "Height" in pairs:
        size = f"{pairs['Width']}x{pairs['Height']}"
    if size is None:
        return None, None, []
    if _is_first_pass_of_old(pairs):
        size = _old_first_pass(size, pairs["First pass size"])
    width, _, height = size.lower().replace("\u00d7", "x").partition("x")
    sides = [whole_number(side, LARGEST_SIDE) for side in (width, height)]
    if None in sides:
        return None, None, [f"Size {size!r:.{_SHOWN}} cannot be used; the model's own is"]
    return sides[0], sides[1], []


def _read_hires(
    pairs: dict[str, str], width: int | None, height: int | None, differences: list[str]
) -> HiresSettings | None:
    """The second pass: its size, by `Hires resize` or `Hires upscale` times the first's."""
    again = any(key in pairs for key in ("Hires upscale", "Hires resize"))
    again = again or _is_first_pass_of_old(pairs)
    if "Denoising strength" in pairs and not again:
        differences.append("it began from a picture, which the file does not hold")
    if not again:
        return None
    strength = _decimal(pairs, "Denoising strength", 1, differences)
    size = _hires_size(pairs, width, height)
    if not strength or size is None:
        differences.append("its second pass cannot be understood and is left out")
        return None
    upscaler = pairs.get("Hires upscaler", "Latent" if _is_first_pass_of_old(pairs) else "")
    if upscaler != "Lanczos":
        differences.append(f"its upscaler {upscaler!r:.{_SHOWN}} is not there; the nearest is used")
    upscale = "latents" if upscaler.startswith("Latent") else "pixels"
    steps = _number(pairs, "Hires steps", MOST_STEPS, differences)
    return HiresSettings(*size, strength, steps or None, upscale)


def _hires_size(
    pairs: dict[str, str], width: int | None, height: int | None
) -> tuple[int, int] | None:
    resize = (
        pairs.get("Size", "") if _is_first_pass_of_old(pairs) else pairs.get("Hires resize", "")
    )
    sides = [whole_number(side, LARGEST_SIDE) for side in resize.split("x")]
    if len(sides) == 2 and sides[0] and sides[1]:
        return sides[0], sides[1]
    factor = decimal(pairs.get("Hires upscale"), 16)
    if not factor or not width or not height or max(width, height) * factor > LARGEST_SIDE:
        return None
    # The web UI rounds down to what its latents can hold.
    return int(width * factor) // 8 * 8, int(height * factor) // 8 * 8


_OLD_AREA, _OLD_STEP = 512 * 512, 64


def _is_first_pass_of_old(pairs: dict[str, str]) -> bool:
    """Before 2023 `Size` was that of the second pass, and the first had one of its own."""
    return "First pass size" in pairs and "Denoising strength" in pairs


def _old_first_pass(size: str, first: str) -> str:
    """The size of the first pass; 0x0 stood for as many pixels as a model of 512 x 512 has."""
    sides = [whole_number(side, LARGEST_SIDE) for side in first.split("x")]
    whole = [whole_number(side, LARGEST_SIDE) for side in size.split("x")]
    if sides != [0, 0] or len(whole) != 2 or not whole[0] or not whole[1]:
        return first
    scale = (_OLD_AREA / (whole[0] * whole[1])) ** 0.5
    width, height = (math.ceil(scale * side / _OLD_STEP) * _OLD_STEP for side in whole if side)
    return f"{width}x{height}"


def _number(pairs: dict[str, str], key: str, most: int, differences: list[str]) -> int | None:
    if key not in pairs:
        return None
    number = whole_number(pairs[key], most)
    if number is None:
        differences.append(f"{key} {pairs[key]!r:.{_SHOWN}} cannot be used")
    return number


def _decimal(pairs: dict[str, str], key: str, most: float, differences: list[str]) -> float | None:
    number = decimal(pairs.get(key), most)
    if number is None and key in pairs:
        differences.append(f"{key} {pairs[key]!r:.{_SHOWN}} cannot be used")
    return number


def _is_comfy(pairs: dict[str, str]) -> bool:
    return pairs.get("Version", "").startswith("ComfyUI")


def _dialect(pairs: dict[str, str]) -> tuple[str, list[str]]:
    emphasis = pairs.get("Emphasis", "Original")
    named = {"Original": "a1111", "No norm": "a1111-nonorm"}
    if "Parser" in pairs:
        parser = pairs["Parser"].lower().split(" ")[0]
        why = [f"its prompt was read by {pairs['Parser']!r:.{_SHOWN}}"]
        return _PARSERS.get(parser, "a1111"), [] if parser in ("a1111", "compel") else why
    if _is_comfy(pairs):
        return "comfy", []
    dialect = pairs.get("Dialect", named.get(emphasis))
    if dialect in DIALECTS:
        return dialect, []
    unknown = pairs.get("Dialect", f"Emphasis {emphasis}")
    return "a1111", [f"the dialect {unknown!r:.{_SHOWN}} is not there; a1111 is used"]


def _other_differences(parameters: Parameters, scheduler: str) -> list[str]:
    pairs = parameters.pairs
    found: list[str] = []
    # Some nodes of ComfyUI, which draws on the CPU, write such a text.
    rng = pairs.get("RNG", "CPU" if _is_comfy(pairs) else "GPU")
    if rng != "CPU":
        found.append(
            f"the noise was drawn on a GPU (RNG {rng!r:.{_SHOWN}}), here on the CPU: other picture"
        )
    if pairs.get("ENSD", "0") != "0" and split_name(scheduler)[0] in STOCHASTIC:
        found.append("ENSD moved the seed of the noise in each step, which is not there")
    for key in pairs:
        if key in _SAID_ELSEWHERE or (key == "VAE hash" and "VAE" in pairs):
            continue
        reason = next((why for name, why in _REASONS.items() if key.startswith(name)), None)
        found.append(reason or f"{key!r:.{_SHOWN}} is a setting that is not known here")
    return found


def _loras(parameters: Parameters, differences: list[str]) -> tuple[LoraSettings, ...]:
    """The LoRAs that the prompt names, with the hashes that are told."""
    hashes = {
        name.removeprefix("lora:"): digits
        for name, digits in _hashes_of_all(parameters.pairs).items()
    }
    hashes |= dict(_hashes(parameters.pairs.get("Lora hashes")))
    try:
        tags = parse_prompt(parameters.prompt, "a1111").loras
    except UsageError as error:
        differences.append(error.what)
        return ()
    named = [
        LoraSettings(
            *(tag.name, tag.unet, tag.text_encoder, hashes.get(_plain(tag.name), "")),
            blocks=tag.blocks,
        )
        for tag in tags
    ]
    # Fooocus names them apart from the prompt; its hashes are of another kind.
    there = {lora.name for lora in named}
    listed = _FRACTION.sub(".", parameters.pairs.get("Lora weights", ""))
    weights = {n.strip(): w for n, _, w in (e.rpartition(":") for e in listed.split(","))}
    for name, weight in weights.items():
        strength = as_finite(number_of(weight), -100, 100)
        if strength is None and (name or weight.strip()):
            differences.append(f"Lora weights {f'{name}:{weight}'!r:.{_SHOWN}} cannot be used")
        elif strength is not None and name and name not in there:
            named.append(LoraSettings(name, float(strength), float(strength), ""))
    return tuple(named)


def _of_civitai(text: str | None) -> list[str]:
    """The LoRAs that Civitai's own generator lists, which have titles and no file names."""
    try:
        listed: object = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    found: list[str] = []
    for entry in listed[:_SHOWN] if is_list(listed) else ():
        if is_object(entry) and str(entry.get("type")).lower() in ("lora", "locon", "lycoris"):
            title = f"{entry.get('modelName', '')} {entry.get('modelVersionName', '')}".strip()
            weight = as_finite(entry.get("weight"))
            found.append(f"LoRA {title!r:.{_SHOWN}} of Civitai, weight {weight}, is not applied")
    return found


def _plain(name: str) -> str:
    """A name as it is written among hashes."""
    return name.replace(":", "").replace(",", "")


def _hashes(text: str | None) -> list[tuple[str, str]]:
    """(name, digits) of "name: digits, name: digits"."""
    pairs = [entry.rpartition(":") for entry in (text or "").split(",")]
    found = [(name.strip(), _digits(digits.strip())) for name, _, digits in pairs]
    return [(name, digits) for name, digits in found if name and digits]


def _hashes_of_all(pairs: dict[str, str]) -> dict[str, str]:
    """`Hashes: {"model": "...", "lora:ink": "..."}`: what each part's name is followed by."""
    try:
        told = parse_json_object(pairs.get("Hashes", "").encode("utf-8", "surrogatepass"))
    except ValueError:
        return {}
    found = {name: _digits(value) for name, value in told.items() if isinstance(value, str)}
    return {name: digits for name, digits in found.items() if digits}


def _digits(text: str | None) -> str | None:
    return text.lower() if text and re.fullmatch(r"[0-9a-fA-F]{6,64}", text) else None
