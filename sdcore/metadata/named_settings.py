"""Settings by name, as other programs write them, and a recipe made of them.

What is known of them is read; what cannot be the same is named, and so is every setting that is not
known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdcore.checks import as_finite
from sdcore.diffusion.sampler_names import Found
from sdcore.errors import name_some
from sdcore.files.jsonfile import is_list, is_object, parse_json_object
from sdcore.job.adapters import LoraSettings
from sdcore.job.job import Job
from sdcore.metadata.recipe import (
    Recipe,
    base_name,
    decimal,
    number_of,
    size_of,
    whole_number,
)

FROM_PICTURE = "it began from a picture, which the file does not hold"
NOTHING: tuple[Any, ...] = (None, "", "None", "none", "Automatic", "Default", False, 0, "0", [], {})


class Said:
    """Settings by name: those that were asked for are known, the rest is named at the end."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._left = dict(settings)
        self.differences: list[str] = []

    def get(self, *names: str) -> Any:
        """The first of these that is there."""
        found = [self._left.pop(name) for name in names if name in self._left]
        return next((value for value in found if value is not None), None)

    def text(self, *names: str) -> str:
        value = self.get(*names)
        return value if isinstance(value, str) else ""

    def whole(self, most: int, *names: str) -> int | None:
        value = self.get(*names)
        number = whole_number(int(value) if _is_whole(value) else value, most)
        if number is None and value is not None:
            self.differences.append(f"{names[0]} {value!r:.60} cannot be used")
        return number

    def decimal(self, most: float, *names: str) -> float | None:
        value = self.get(*names)
        number = decimal(value, most)
        if number is None and value is not None:
            self.differences.append(f"{names[0]} {value!r:.60} cannot be used")
        return number

    def lora(self, name: Any, weight: Any) -> LoraSettings:
        """One of the LoRAs that were named, with its weight."""
        known = base_name(name) if isinstance(name, str) else ""
        number = as_finite(number_of(weight), -100, 100)
        if number is None:
            why = f"weight {weight!r:.60} of LoRA {known!r:.60} cannot be used; 1 is"
            self.differences.append(why)
        strength = 1.0 if number is None else float(number)
        return LoraSettings(known, strength, strength, "")

    def differs(self, why: str, *names: str) -> None:
        """Say why, where one of these is there and stands at something."""
        if any(self._left.pop(name, None) not in NOTHING for name in names):
            self.differences.append(why)

    def drop(self, *names: str) -> None:
        """Known to make no difference."""
        for name in names:
            self._left.pop(name, None)

    def all_differences(self, more: Iterable[str] = ()) -> tuple[str, ...]:
        left = sorted(name for name, value in self._left.items() if value not in NOTHING)
        unknown = [f"settings that are not known here: {name_some(left, 8)}"] if left else []
        return tuple(dict.fromkeys([*self.differences, *more, *unknown]))


def make_recipe(
    origin: str,
    said: Said,
    found: Found,
    *,
    prompt: str,
    negative: str,
    seed: int | None,
    steps: int | None,
    scale: float | None,
    size: tuple[int | None, int | None],
    dialect: str,
    model: str = "",
    model_hash: str = "",
    rescale: float | None = None,
    clip_skip: int = 0,
    loras: Iterable[LoraSettings] = (),
    more: Iterable[str] = (),
) -> Recipe:
    return Recipe(
        origin=origin,
        job=Job(
            prompt=prompt,
            negative_prompt=negative or None,
            seed=seed,
            steps=steps or None,
            guidance_scale=scale,
            guidance_rescale=rescale or None,
            scheduler=found.name,
            size=size_of(*size),
            dialect=dialect,
            clip_skip=clip_skip,
            loras=tuple(lora for lora in loras if lora.name not in NOTHING),
        ),
        model=base_name(model) or None,
        model_hash=model_hash.lower() if re.fullmatch(r"[0-9a-fA-F]{6,64}", model_hash) else None,
        differences=said.all_differences([*found.differences, *more]),
    )


def parsed(text: str) -> dict[str, Any]:
    return parse_json_object(text.encode("utf-8", "surrogatepass"))


def listed(value: Any) -> list[Any]:
    """A list, or what stands for one: JSON, or names with commas between them."""
    if isinstance(value, str):
        if value.startswith("["):
            try:
                return listed(parsed(f'{{"list": {value}}}')["list"])
            except ValueError:
                return []
        return [] if value in NOTHING else [part.strip() for part in value.split(",")]
    return list(value) if is_list(value) else []


def name_of(model: Any) -> str:
    """A model's name, given as such or in a record of it."""
    if is_object(model):
        model = model.get("name", model.get("model_name"))
    return model if isinstance(model, str) else ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
