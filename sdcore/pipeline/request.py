"""The arguments of one `TextToImage` call, checked before anything is computed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from sdcore.checkpoint.defaults import ModelDefaults
from sdcore.errors import UsageError
from sdcore.sampling.guidance import Guidance

_LARGEST_SEED = 2**63 - 1
# 8 also where one latent covers less: the rule of Stable Diffusion and of diffusers' pipelines.
SIZE_UNIT = 8


@dataclass(frozen=True)
class Request:
    """What is to be painted: one entry in each list for each image."""

    prompts: list[str]
    negative_prompts: list[str | None]
    seeds: list[int]
    guidance: Guidance
    width: int
    height: int


def make_request(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    seed: int | Sequence[int] | None,
    images_per_prompt: int,
    choices: ModelDefaults,
    factor: int,
) -> Request:
    """Check the arguments; `factor` is the autoencoder's. Raises UsageError."""
    images_per_prompt = whole(images_per_prompt)
    if type(images_per_prompt) is not int or images_per_prompt < 1:
        raise UsageError(
            f"images_per_prompt is {images_per_prompt!r}.",
            "It counts pictures.",
            "Use a whole number from 1 up.",
        )
    prompts = _texts(prompt, "prompt")
    negatives = _negative_texts(negative_prompt, len(prompts))
    unit = max(factor, SIZE_UNIT)
    return Request(
        prompts=[text for text in prompts for _ in range(images_per_prompt)],
        negative_prompts=[text for text in negatives for _ in range(images_per_prompt)],
        seeds=_seeds(seed, len(prompts), images_per_prompt),
        guidance=Guidance(choices.guidance_scale, choices.guidance_rescale),
        width=check_size(choices.width, "width", unit),
        height=check_size(choices.height, "height", unit),
    )


def whole(value: Any) -> Any:
    """A whole number of any kind (NumPy's too) as an int; everything else as it is."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_whole else value


def _texts(prompt: str | Sequence[str], name: str) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, Sequence) or not all(isinstance(text, str) for text in prompt):
        raise UsageError(
            f"The {name} is not text.",
            f"It is {prompt!r:.80}.",
            "Pass a string, or a list of strings.",
        )
    if not prompt:
        raise UsageError(
            f"The list of {name}s is empty.", "There is nothing to paint.", "Pass at least one."
        )
    return list(prompt)


def _negative_texts(prompt: str | Sequence[str] | None, count: int) -> list[str | None]:
    if prompt is None or isinstance(prompt, str):
        return [prompt] * count
    texts = _texts(prompt, "negative prompt")
    if len(texts) != count:
        raise UsageError(
            f"There are {len(texts)} negative prompts for {count} prompts.",
            "A list needs one for each prompt.",
            "Pass one string to use it for all prompts.",
        )
    return [*texts]


def _seeds(seed: int | Sequence[int] | None, prompts: int, images: int) -> list[int]:
    """The seed of each image: one number counts on through all, a list has one for each prompt."""
    if seed is None:
        seed = secrets.randbelow(2**32)  # short enough to be typed again
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        first, images = check_seed(seed, prompts * images), prompts * images
        return [first + i for i in range(images)]
    if len(seed) != prompts:
        raise UsageError(
            f"There are {len(seed)} seeds for {prompts} prompts.",
            "A list needs one for each prompt.",
            "Pass one number to count on from it.",
        )
    return [check_seed(one, images) + i for one in seed for i in range(images)]


def check_seed(seed: Any, count: int = 1) -> int:
    """The seed of the first of `count` images as an int, if all of them are seeds."""
    last, seed = _LARGEST_SEED - count + 1, whole(seed)
    if type(seed) is not int or not 0 <= seed <= last:
        raise UsageError(
            f"The seed is {seed!r}.",
            f"It must be a whole number from 0 to {last}.",
            "Leave it out for a random one.",
        )
    return seed


def check_steps_before(steps: Any) -> int:
    """How many steps an earlier pass had, as an int."""
    steps = whole(steps)
    if type(steps) is not int or steps < 0:
        raise UsageError(
            f"steps_before is {steps!r}.",
            "It counts the steps of an earlier pass.",
            "Pass its steps_run, or leave it out.",
        )
    return steps


def check_size(size: Any, name: str, unit: int = SIZE_UNIT) -> int:
    """A width or height in pixels as an int, if pictures of it can be painted."""
    size = whole(size)
    if type(size) is not int or size < unit or size % unit:
        near = max(unit, round(size / unit) * unit) if type(size) is int else 64 * unit
        raise UsageError(
            f"The {name} is {size!r} pixels.",
            f"It must be a multiple of {unit}, {unit} or more.",
            f"Use {near}.",
        )
    return size
