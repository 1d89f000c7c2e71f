"""The dialect of AUTOMATIC1111's Stable Diffusion web UI and of Forge.

    (x)  (x:1.3)  [x]        weight times 1.1, 1.3, 1/1.1; brackets in brackets multiply
    \\(  \\)  \\[  \\]  \\\\      the character itself
    BREAK                    the rest goes to a new chunk
    a :1.2 AND b :0.7        two prompts for the UNet, each with its weight; not in negative prompts
    [a:b:0.4]  [a|b]         see `sdcore.prompt.schedule`
    <lora:name:0.8>          a LoRA, which is no part of the text; also <lora:name:te:unet>, and
                             block weights <lora:name:0.8:lbw=...>, see adapters/lora_blocks.py

Rules: modules/prompt_parser.py and extra_networks.py of the web UI.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import NamedTuple

from sdcore.errors import UsageError
from sdcore.prompt.schedule import Schedule
from sdcore.prompt.text import (
    Clause,
    Clauses,
    Excerpt,
    Fragment,
    LoraTag,
    Parsed,
    ParsedPart,
    Slice,
    Steps,
    Timeline,
    always,
)

ROUND, SQUARE = 1.1, 1 / 1.1
_TAG = re.compile(r"<(\w+):([^>]+)>")
_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))")
_MARKS = re.compile(r"\\[()\[\]\\]|\\|[(\[]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_MOST_LETTERS = 1_000_000  # of all texts that a prompt has in the course of a run


def parse(prompt: str, negative: bool = False) -> Parsed:
    """A prompt as the web UI reads it. UsageError on a number that is none."""
    text, loras, notes = _take_tags(prompt)
    if negative:
        parts = [(text, 1.0)]
        if loras:
            notes.append("a <lora:...> in a negative prompt has no effect")
            loras = []
    else:
        parts = [_take_weight(part) for part in _split(text)]
    schedules = [Schedule(text.text) for text, _ in parts]
    if len(parts) == 1 and parts[0][1] != 1:
        notes.append(f"the weight {parts[0][1]:g} at the end is that of the whole prompt")
    notes += [note for schedule in schedules for note in _notes(schedule)]
    read = [_part(*part, schedule) for part, schedule in zip(parts, schedules, strict=True)]
    return Parsed(tuple(read), tuple(loras), tuple(notes))


def _part(text: Excerpt, weight: float, schedule: Schedule) -> ParsedPart:
    if not schedule.changes:
        return always((Clause((read_weights(text),)),), weight)

    def timeline(steps: Steps) -> Timeline[Clauses]:
        last_steps = tuple(schedule.ends(steps))
        if len(last_steps) * len(text.text) > _MOST_LETTERS:
            raise _too_long(len(last_steps), len(text.text))

        @cache  # of a few texts in turn, each is read once
        def read(slices: tuple[Slice, ...]) -> Clauses:
            return (Clause((read_weights(text.pick(slices)),)),)

        return Timeline(tuple(read(schedule.at(last, steps)) for last in last_steps), last_steps)

    return ParsedPart(weight, timeline)


def _too_long(times: int, letters: int) -> UsageError:
    return UsageError(
        f"The prompt changes {times} times and has {letters} letters.",
        f"These are more than {_MOST_LETTERS} letters to be read in one run.",
        "Shorten it, or let it change in fewer steps.",
    )


def _take_tags(prompt: str) -> tuple[Excerpt, list[LoraTag], list[str]]:
    """The prompt without <lora:...>, what those ask for, and which other tags were dropped."""
    rest: list[Slice] = []
    loras: list[LoraTag] = []
    notes: list[str] = []
    end = 0
    for match in _TAG.finditer(prompt, 0, prompt.rfind(">") + 1):
        rest.append((end, match.start()))
        end = match.end()
        if match[1] in ("lora", "lyco"):
            loras.append(_lora(match, notes))
        else:
            notes.append(f"{match[0]!r:.80} is dropped: only <lora:name:weight> is known")
    rest.append((end, len(prompt)))
    return Excerpt.of_all(prompt).pick(rest), loras, notes


def _lora(tag: re.Match[str], notes: list[str]) -> LoraTag:
    """<lora:name>, <lora:name:w>, <lora:name:te:unet>, te= and unet= by name, lbw= for blocks."""
    fields = [field.strip() for field in tag[2].split(":")]
    named = dict(field.split("=", 1) for field in fields if "=" in field)
    name, *weights = [field for field in fields if "=" not in field]
    # the extension for block weights also takes them without their name, behind the weight
    blocks = named.get("lbw", "")
    if len(weights) > 1 and not _is_number(weights[-1]) and not blocks:
        blocks = weights.pop()
    text_encoder = named.get("te", weights[0] if weights else "1")
    unet = named.get("unet", weights[1] if len(weights) > 1 else text_encoder)
    unused = [f"{key}={value}" for key, value in named.items() if key not in ("te", "unet", "lbw")]
    unused += weights[2:]
    if unused:
        notes.append(f"{', '.join(unused)} in {tag[0]!r:.80} has no effect here")
    return LoraTag(name, _number(text_encoder, tag[0]), _number(unet, tag[0]), blocks)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split(text: Excerpt) -> list[Excerpt]:
    """The prompts that AND stands between."""
    edges = [0, *(edge for match in _AND.finditer(text.text) for edge in match.span())]
    edges.append(len(text.text))
    return [text.pick([span]) for span in zip(edges[::2], edges[1::2], strict=True)]


def _take_weight(part: Excerpt) -> tuple[Excerpt, float]:
    """A part without the `:number` at its end. The web UI finds none if the part has lines."""
    text = part.text.rstrip()
    colon = text.rfind(":")
    match = _PART_WEIGHT.fullmatch(text, colon) if colon >= 0 else None
    before = text[:colon].rstrip()
    if match is None or "\n" in before.lstrip():
        return part.pick([(0, len(text))]), 1.0
    return part.pick([(0, len(before))]), float(match[1])


class _Mark(NamedTuple):
    """An opening bracket with the factor that its end gave it, or that end."""

    round: bool
    opens: bool
    factor: float = 1.0


def read_weights(text: Excerpt) -> tuple[Fragment, ...]:
    """Brackets to weights; a bracket that is not closed reaches to the end."""
    items = _pair_brackets(text.text)
    # The two kinds need not be nested in each other, so each has a product of its own.
    products: dict[bool, list[float]] = {True: [1.0], False: [1.0]}
    fragments: list[tuple[list[Slice], float, bool]] = []
    breaks = False
    for item in items:
        if isinstance(item, _Mark):
            stack = products[item.round]
            stack.append(stack[-1] * item.factor) if item.opens else stack.pop()
        elif item is None:
            breaks = True
        else:
            weight = products[True][-1] * products[False][-1]
            if fragments and fragments[-1][1] == weight and not breaks:
                fragments[-1][0].append(item)
            else:
                fragments.append(([item], weight, breaks))
            breaks = False
    return tuple(Fragment(text.pick(parts), weight, first) for parts, weight, first in fragments)


def _pair_brackets(text: str) -> list[Slice | _Mark | None]:
    """Text as slices, brackets as marks with their factors, BREAK as None."""
    items: list[Slice | _Mark | None] = []
    unclosed: dict[bool, list[int]] = {True: [], False: []}

    def close(round: bool, factor: float) -> None:
        items[unclosed[round].pop()] = _Mark(round, True, factor)
        items.append(_Mark(round, False))

    for match in _MARKS.finditer(text):
        mark, weight = match[0], match["weight"]
        if mark[0] == "\\":
            items.append((match.start() + 1, match.end()))
        elif mark in "([":
            unclosed[mark == "("].append(len(items))
            items.append(_Mark(mark == "(", True))
        elif weight is not None and unclosed[True]:
            close(True, _number(weight, mark))
        elif mark in ")]" and unclosed[mark == ")"]:
            close(mark == ")", ROUND if mark == ")" else SQUARE)
        else:
            _add_text(items, text, match.span())
    for round, starts in unclosed.items():
        for start in starts:
            items[start] = _Mark(round, True, ROUND if round else SQUARE)
    return items


def _add_text(items: list[Slice | _Mark | None], text: str, span: Slice) -> None:
    start, end = span
    for match in _BREAK.finditer(text, start, end):
        items += [(start, match.start()), None]
        start = match.end()
    items.append((start, end))


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        point = text.strip().replace(",", ".")
        comma = re.fullmatch(r"[+-]?[0-9]{0,9}\.[0-9]{1,9}", point) is not None
        raise UsageError(
            f"{where!r:.80} in the prompt holds no weight.",
            f"{text!r:.40} is not a number.",
            f"Write it with a point: {point}."
            if comma
            else "Correct it; for the text itself write \\( and \\).",
        )
    return number


def _notes(schedule: Schedule) -> list[str]:
    """Numbers that look like weights and are none."""
    return [
        f"[...:{when}] is no weight: it changes the prompt after {when} times all steps, which "
        "the first pass never reaches"
        for when in schedule.times
        if "." in when and float(when) > 1
    ]
