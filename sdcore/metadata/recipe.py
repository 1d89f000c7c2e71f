"""How to paint a picture again, as far as the picture tells, and what cannot be the same.

What other programs wrote is data: text and numbers within limits. A name in it is a name to look
for among files that the user pointed to; it is never a path that is opened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdcore.checks import as_finite, as_int
from sdcore.diffusion.methods import STOCHASTIC
from sdcore.diffusion.sampler_names import Found, canonical_name, from_web_ui, split_name
from sdcore.errors import UsageError
from sdcore.job.job import LARGEST_SEED as LARGEST_SEED
from sdcore.job.job import Job
from sdcore.job.record import ImageSettings
from sdcore.size import Size

SDCORE, WEB_UI, COMFY = "sdcore", "Stable Diffusion web UI", "ComfyUI"
SWARM, FOOOCUS, INVOKE = "SwarmUI", "Fooocus", "InvokeAI"
NOVELAI, EASY = "NovelAI", "Easy Diffusion"
# Those that count SDXL's penultimate layer as the first that may be left out.
_COUNT_AS_COMFY = (COMFY, SWARM, FOOOCUS)

MOST_STEPS, LARGEST_SIDE = 1000, 8192


@dataclass(frozen=True)
class Recipe:
    """The run that a picture tells of. None, or nothing, is what it does not say.

    Attributes:
        origin: the program: `SDCORE`, `WEB_UI`, `COMFY`, `SWARM`, `FOOOCUS`, `INVOKE`, `NOVELAI` or
            `EASY`.
        job: with LoRAs by the first digits of a hash, or an empty one where the picture gives none;
            its `clip_skip` is as the program counts for SD 1.x, see `job_for`.
        model: its name, without folder and suffix.
        model_hash: SHA-256 of its weights, or the first digits of it.
        settings: the whole record, of a picture of ours.
        differences: what cannot be the same, one line each.
    """

    origin: str
    job: Job
    model: str | None = None
    model_hash: str | None = None
    settings: ImageSettings | None = None
    differences: tuple[str, ...] = ()

    def clip_skip_for(self, penultimate: bool) -> int:
        """The layers to leave out for this kind of model.

        SDXL begins from the penultimate layer, which ComfyUI counts as 1 and we as 0. The web UI's
        CLIP skip has no effect on SDXL.
        """
        skip = self.job.clip_skip
        if not penultimate or self.origin == SDCORE:
            return skip
        return max(skip - 1, 0) if self.origin in _COUNT_AS_COMFY else 0


def recipe_of_settings(settings: ImageSettings) -> Recipe:
    """The recipe of a run of ours: all of it."""
    return Recipe(SDCORE, settings.job, settings.model, settings.model_hash, settings)


def size_of(width: int | None, height: int | None) -> Size | None:
    """The size of a picture that another program painted; None where a side is not known."""
    return None if not width or not height else Size(width, height)


def sampler_named(name: str, levels: str = "") -> Found:
    """Our sampler for a name as people type it, of a program that has no names of its own."""
    try:
        ours = canonical_name(f"{name} {levels}")
    except UsageError:
        return from_web_ui(name, levels or None)
    why = f"{ours!r} adds noise in every step, which is drawn differently here"
    return Found(ours, (why,) if split_name(ours)[0] in STOCHASTIC else ())


def base_name(name: str) -> str:
    """A model's or LoRA's name from a path of another machine, without folder and suffix."""
    last = re.split(r"[/\\]", name.strip())[-1]
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin)$", "", last, flags=re.IGNORECASE)


# Digits with a point or, as many languages write it, a comma before the fraction.
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,19}(?:[.,][0-9]{0,30})?|[.,][0-9]{1,30})")


def number_of(value: object) -> object:
    """A number from its digits, with a point or a comma; anything else as it is."""
    if not isinstance(value, str) or not _NUMBER.fullmatch(text := value.strip()):
        return value
    whole = re.fullmatch(r"([+-]?[0-9]+)(?:[.,]0?)?", text)
    return int(whole[1]) if whole else float(text.replace(",", "."))


def whole_number(value: object, most: int) -> int | None:
    """0 to `most`, from a number or its digits; None for anything else."""
    number = number_of(value) if isinstance(value, str) else value
    return as_int(number, 0, most)


def decimal(value: object, most: float) -> float | None:
    """0 to `most`, from a number or its digits; None for anything else."""
    number = as_finite(number_of(value), 0, most)
    return None if number is None else float(number)
