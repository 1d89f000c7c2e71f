"""The `parameters` text of Stable Diffusion web UI: prompt, negative prompt, one line of settings.

    a red apple, photo
    Negative prompt: drawing
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 512x512

The grammar is that of the web UI's own reader, traps included. It cannot carry every prompt:

- spaces at the ends of a line, and blank lines at the beginning, are lost;
- a line of the prompt that begins with "Negative prompt:" begins the negative prompt;
- a line of the negative prompt that begins so loses these words, unless it is the first;
- a lone surrogate has no place in a file.

`carries` says whether a pair of prompts survives. For all others the JSON beside it is exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sdcore import __version__
from sdcore.diffusion.sampler_names import to_web_ui
from sdcore.job.adapters import LoraSettings
from sdcore.job.record import ImageSettings

_NEGATIVE = "Negative prompt:"
_FEWEST_PAIRS = 3
# A key begins where no key could have begun before, so a long line is read in one go.
_PAIR = re.compile(
    r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]++):\s*+("(?:\\.|[^\\"])++"(?=,|$)|[^,]*+)(?:,|$)'
)


@dataclass(frozen=True)
class Parameters:
    """What the text says; `pairs` is empty where its last line holds fewer than three."""

    prompt: str
    negative_prompt: str
    pairs: dict[str, str]


def read_parameters(text: str) -> Parameters:
    """Take the text apart as the web UI does; what is no settings line is prompt."""
    *lines, last = text.strip().split("\n")
    found = _PAIR.findall(last)
    if len(found) < _FEWEST_PAIRS:
        lines, found = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in lines:
        line = line.strip()
        if line.startswith(_NEGATIVE):
            part, line = negative, line.removeprefix(_NEGATIVE).strip()
        if line or part:  # blank lines at the beginning are dropped
            part.append(line)
    pairs = {key: _unquote(value.strip()) for key, value in found}
    return Parameters("\n".join(prompt), "\n".join(negative), pairs)


def write_parameters(settings: ImageSettings) -> str:
    """The text for a run of ours."""
    pairs = {key: value for key, value in _pairs(settings).items() if value is not None}
    job = settings.job
    # The web UI takes LoRAs from the prompt alone.
    tags = [_tag(lora) for lora in job.loras if f"<lora:{lora.name}:" not in job.prompt]
    lines = [" ".join([job.prompt, *tags])]
    if job.negative_prompt:
        lines.append(f"{_NEGATIVE} {job.negative_prompt}")
    return "\n".join([*lines, ", ".join(f"{key}: {_quote(pairs[key])}" for key in pairs)])


def _tag(lora: LoraSettings) -> str:
    weights = f"{lora.text:g}" if lora.text == lora.unet else f"{lora.text:g}:{lora.unet:g}"
    return f"<lora:{lora.name}:{weights}>"


def carries(prompt: str, negative_prompt: str | None = None) -> bool:
    """Whether both prompts can be read back from a `parameters` text."""
    negative = f"{_NEGATIVE} {negative_prompt}\n" if negative_prompt else ""
    text = f"{prompt}\n{negative}Steps: 1, Seed: 1, Size: 8x8"
    read = read_parameters(text.encode("utf-8", "replace").decode())
    return (read.prompt, read.negative_prompt) == (prompt, negative_prompt or "")


def _pairs(settings: ImageSettings) -> dict[str, object]:
    """In the web UI's order. None is left out, as are values that its reader assumes."""
    job, refiner, source = settings.job, settings.refiner, settings.source
    sampler, schedule = to_web_ui(settings.sampler)
    hires, rescale = job.hires, job.guidance_rescale
    return {
        "Steps": job.steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{job.guidance_scale:g}",
        "Seed": job.seed,
        "Size": str(job.size),
        "Model hash": settings.model_hash[:10] if settings.model_hash else None,
        "Model": settings.model,
        "Denoising strength": _strength(settings),
        "Masked area padding": source.only_masked if source else None,
        # The web UI counts from 1 where diffusers and we count skipped layers.
        "Clip skip": job.clip_skip + 1 if job.clip_skip else None,
        "CFG rescale": f"{rescale:g}" if rescale else None,
        "RNG": "CPU",
        "Hires resize": f"{hires.width}x{hires.height}" if hires else None,
        "Hires steps": hires.steps if hires else None,
        "Refiner": refiner.model if refiner else None,
        "Refiner switch at": f"{refiner.switch_at:g}" if refiner else None,
        "Lora hashes": _hashes((lora.name, lora.hash) for lora in job.loras),
        "TI hashes": _hashes((word.name, word.hash) for word in job.embeddings),
        "Dialect": job.dialect,
        "Version": f"sdcore {__version__}",
    }


def _strength(settings: ImageSettings) -> str | None:
    second = settings.job.hires or settings.source
    return f"{second.strength:g}" if second else None


def _hashes(named: Iterable[tuple[str, str]]) -> str | None:
    listed = [f"{re.sub('[:,]', '', name)}: {digest[:12]}" for name, digest in named]
    return ", ".join(listed) or None


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            read = json.loads(value)
        except ValueError:
            return value
        return read if isinstance(read, str) else value
    return value
