"""The `parameters` text of Stable Diffusion web UI: prompt, negative prompt, one line of settings.

    a red apple, photo
    Negative prompt: drawing
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 512x512

The grammar is that of the web UI's own reader, traps included. It cannot carry every prompt:

- spaces at the ends of a line, and blank lines at the beginning, are lost;
- a line of the prompt that begins with "Negative prompt:" begins the negative prompt;
- a line of the negative prompt that begins so loses these words, unless it is the first;
- a lone surrogate has no place in a file;
- a text that is one line is divided where a page or a form has joined it: at a carriage return, at
  <br>, before "Negative prompt:" and "Steps:".

`carries` says whether a pair of prompts survives. For all others the JSON beside it is exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sdcore import __version__
from sdcore.diffusion.sampler_names import to_web_ui
from sdcore.files.limits import PICTURE_SETTINGS
from sdcore.job.adapters import LoraSettings
from sdcore.job.record import ImageSettings

_JSON = json.JSONDecoder(strict=False)  # line breaks may stand within quotation marks
_NEGATIVE = "Negative prompt:"
_FEWEST_PAIRS = 3
# Where the settings begin, whatever follows them; a text without it has them in its last line.
_BEGINS = tuple(re.compile(rf"\s*+{key}[:\uff1a] ?\S") for key in ("Steps", "Sampler"))
_KEY = re.compile(r"[ \-/]*+(\w[\w \-/]{1,80}+)[:\uff1a][ \t]*+")
# Lines that were joined: by a web page, and by a form that takes one line.
_BREAK = re.compile(r"\r|<br ?/?>", re.IGNORECASE)
_JOINED = re.compile(r"(?<=\s)Steps[:\uff1a] ?\S")
_JOINED_NEGATIVE = re.compile(r"\s(?=Negative prompt[:\uff1a])", re.IGNORECASE)
_MOST_JOINED = 3
_MARKS = re.compile(r"[,:\n\r\"\uff0c\uff1a]")  # a value with one of them is quoted
_SKIPPED = re.compile(r"[\s,;|\uff0c\uff1b]*+")
# A value ends at a comma or a line, or at another sign behind which a key begins.
_END = re.compile(r"[,\n\uff0c]|[;|\uff1b](?=\s*+\w[\w \-/]{1,80}+[:\uff1a])")
# A number with a comma before its fraction, and not the end of a value and the next key.
_COMMA = re.compile(r"[+-]?[0-9]{1,19}(?:,[0-9]{1,30})++(?=[ \t]*+(?:[,\n;|\uff0c\uff1b]|$))")
_CLOSED = re.compile(r"\s*+(?:[,\n;|\uff0c\uff1b]|$)")
# Whole texts that an extension writes behind the settings, a line each.
_WHOLE_LINE = ("Template", "Negative Template")
_KEYS = (
    *("Steps", "Sampler", "Schedule type", "CFG scale", "CFG rescale", "Seed", "Size", "Clip skip"),
    *("Model", "Model hash", "Denoising strength", "Width", "Height", "Version", "Lora hashes"),
)
# Keys of forks and other tools -> those of the web UI.
_SAME_KEYS = {
    **{key.lower(): key for key in _KEYS},
    **{"cfg": "CFG scale", "guidance scale": "CFG scale", "scheduler": "Schedule type"},
    **{"checkpoint": "Model", "resolution": "Size", "denoise": "Denoising strength"},
    **{"denoising": "Denoising strength", "cfg rescale φ": "CFG rescale"},
}


@dataclass(frozen=True)
class Parameters:
    """What the text says; `pairs` is empty where it holds fewer than three settings."""

    prompt: str
    negative_prompt: str
    pairs: dict[str, str]


def read_parameters(text: str) -> Parameters:
    """Take the text apart as the web UI does; what is no settings line is prompt.

    Settings need not be the last line: they begin at the last one that begins as they do, and what
    extensions write behind them is theirs. Time grows with the length of the text alone.

    Raises:
        ValueError: more settings than any program writes.
    """
    lines = _lines(text.strip())
    begins = _negative_mark(lines)
    first = _first_of_settings(lines)
    pairs = read_pairs("\n".join(lines[first:]))
    if len(pairs) < _FEWEST_PAIRS and first < len(lines) - 1:
        first = len(lines) - 1
        pairs = read_pairs(lines[first])
    if len(pairs) < _FEWEST_PAIRS:
        first, pairs = len(lines), {}
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in lines[:first]:
        line = line.strip()
        if mark := begins.match(line):
            part, line = negative, line[mark.end() :].strip()
        if line or part:  # blank lines at the beginning are dropped
            part.append(line)
    return Parameters("\n".join(prompt), "\n".join(negative), pairs)


def _lines(text: str) -> list[str]:
    """The lines, whatever ends them, also where a web page or a form has joined them to one."""
    text = text.replace("\r\n", "\n")
    lines = (text if "\n" in text else _BREAK.sub("\n", text)).split("\n")
    if any(begins.match(line) for line in lines for begins in _BEGINS):
        return lines
    last = lines.pop()
    for steps in reversed(list(_JOINED.finditer(last))[-_MOST_JOINED:]):
        before, settings = last[: steps.start()], last[steps.start() :]
        known = _SAME_KEYS.keys() & {key.lower() for key in read_pairs(before)}
        if not known and len(read_pairs(settings)) >= _FEWEST_PAIRS:
            return [*lines, *_JOINED_NEGATIVE.sub("\n", before, count=1).split("\n"), settings]
    return [*lines, last]


def _negative_mark(lines: list[str]) -> re.Pattern[str]:
    """What the negative prompt begins with: as the web UI writes it or, without that, nearly so."""
    written = re.compile(re.escape(_NEGATIVE))
    if any(line.strip().startswith(_NEGATIVE) for line in lines):
        return written
    return re.compile(r"negative[ _]?prompt[:\uff1a]", re.IGNORECASE)


def _first_of_settings(lines: list[str]) -> int:
    """The line where the settings begin, if there are any."""
    for begins in _BEGINS:
        found = [i for i, line in enumerate(lines) if begins.match(line)]
        if found:
            first = found[-1]
            if len(read_pairs(lines[first])) < _FEWEST_PAIRS:  # a line for each
                while first and _is_setting(lines[first - 1]):
                    first -= 1
            return first
    return len(lines) - 1


def _is_setting(line: str) -> bool:
    key = _KEY.match(line.strip())
    return key is not None and key[1].strip().lower() in _SAME_KEYS


def read_pairs(text: str) -> dict[str, str]:
    """The settings "key: value, key: value"; a value is plain, in quotation marks, or JSON.

    Raises:
        ValueError: more of them than any program writes.
    """
    pairs: dict[str, str] = {}
    place = 0
    while (place := _end(_SKIPPED, text, place)) < len(text):
        key = _KEY.match(text, place)
        if key is None:
            found = _END.search(text, place)
            place = found.end() if found else len(text)
            continue
        name = " ".join(key[1].split())
        value, place = _value(text, key.end(), name in _WHOLE_LINE)
        pairs[_SAME_KEYS.get(name.lower(), name)] = value
        if len(pairs) > PICTURE_SETTINGS:
            raise ValueError(f"it holds more than {PICTURE_SETTINGS} settings")
    return pairs


def _value(text: str, start: int, whole: bool) -> tuple[str, int]:
    """A value, and where it ends."""
    if whole:
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        return text[start:end].strip(), end
    if text[start : start + 1] in ('"', "[", "{"):
        try:
            value, end = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            pass  # it only looks like JSON
        else:
            if _CLOSED.match(text, end):
                return value if isinstance(value, str) else text[start:end], end
    if (number := _COMMA.match(text, start)) is not None:
        return number[0], number.end()
    found = _END.search(text, start)
    end = found.start() if found else len(text)
    return text[start:end].strip(), end


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


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
    return f"<lora:{lora.name}:{weights}{f':lbw={lora.blocks}' if lora.blocks else ''}>"


def carries(prompt: str, negative_prompt: str | None = None) -> bool:
    """Whether both prompts can be read back from a `parameters` text."""
    negative = f"{_NEGATIVE} {negative_prompt}\n" if negative_prompt else ""
    text = f"{prompt}\n{negative}Steps: 1, Seed: 1, Size: 8x8"
    read = read_parameters(text.encode("utf-8", "replace").decode())
    return (read.prompt, read.negative_prompt) == (prompt, negative_prompt or "")


def _pairs(settings: ImageSettings) -> dict[str, object]:
    """In the web UI's order. None is left out, as are values that its reader assumes."""
    job, refiner, source = settings.job, settings.refiner, settings.source
    sampler, schedule = to_web_ui(settings.sampler, settings.noise_levels)
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
    return json.dumps(text, ensure_ascii=False) if _MARKS.search(text) else text
