"""How to paint a picture again, as far as the picture tells, and what cannot be the same.

What other programs wrote is data: text and numbers within limits. A name in it is a name to look
for among files that the user pointed to; it is never a path that is opened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdcore.checks import as_finite, as_int
from sdcore.metadata.image_settings import (
    EmbeddingSettings,
    HiresSettings,
    ImageSettings,
    LoraSettings,
)

SDCORE, WEB_UI, COMFY = "sdcore", "Stable Diffusion web UI", "ComfyUI"

LARGEST_SEED = 2**63 - 1
MOST_STEPS, LARGEST_SIDE = 1000, 8192


@dataclass(frozen=True)
class Recipe:
    """The run that a picture tells of. None, or nothing, is what it does not say.

    Attributes:
        origin: `SDCORE`, `WEB_UI` or `COMFY`.
        clip_skip: as diffusers counts for SD 1.x; see `clip_skip_for`.
        model: its name, without folder and suffix.
        model_hash: SHA-256 of its weights, or the first digits of it.
        loras: with the first digits of a hash, or an empty one where the picture gives none.
        hires: the second pass.
        settings: the whole record, of a picture of ours.
        differences: what cannot be the same, one line each.
    """

    origin: str
    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    clip_skip: int | None = None
    dialect: str | None = None
    model: str | None = None
    model_hash: str | None = None
    loras: tuple[LoraSettings, ...] = ()
    embeddings: tuple[EmbeddingSettings, ...] = ()
    hires: HiresSettings | None = None
    settings: ImageSettings | None = None
    differences: tuple[str, ...] = ()

    def clip_skip_for(self, xl: bool) -> int | None:
        """The layers to leave out for this kind of model.

        SDXL begins from the penultimate layer, which ComfyUI counts as 1 and we as 0. The web UI's
        CLIP skip has no effect on SDXL.
        """
        if self.clip_skip is None or not xl or self.origin == SDCORE:
            return self.clip_skip
        return max(self.clip_skip - 1, 0) if self.origin == COMFY else 0


def recipe_of_settings(settings: ImageSettings) -> Recipe:
    """The recipe of a run of ours: all of it."""
    names = Recipe.__dataclass_fields__.keys() & ImageSettings.__dataclass_fields__.keys()
    return Recipe(SDCORE, settings=settings, **{name: getattr(settings, name) for name in names})


def base_name(name: str) -> str:
    """A model's or LoRA's name from a path of another machine, without folder and suffix."""
    last = re.split(r"[/\\]", name.strip())[-1]
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin)$", "", last, flags=re.IGNORECASE)


def whole_number(value: object, most: int) -> int | None:
    """0 to `most`, from a number or its digits; None for anything else."""
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"[0-9]{1,19}", value.strip()) else None
    return as_int(value, 0, most)


def decimal(value: object, most: float) -> float | None:
    """0 to `most`, from a number or its digits; None for anything else."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,30})?", value.strip())
        value = float(value) if plain else None
    number = as_finite(value, 0, most)
    return None if number is None else float(number)
