"""Prompts to what the UNet is told at each step of a run.

    prompt ─dialect─► parts, texts, chunks ─text encoders, weights─► text ─step─► StepConditioning

SD 1.x and 2.x have one text encoder; SDXL has two, and is told more numbers; its refiner has the
second of them alone.

Shapes: B prompts, T text tokens, D text width, Dp pooled width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sdcore.checkpoint.kind import ModelKind
from sdcore.errors import UsageError
from sdcore.prompt.dialects import Dialect, find_dialect
from sdcore.prompt.encoding import Encoder, PromptEncoder, ReadPart, ReadText
from sdcore.prompt.other_readings import describe_other_readings
from sdcore.prompt.reading import as_tokens, equally_long
from sdcore.prompt.text import Parsed, Steps
from sdcore.sampling.guidance import Conditioning, Part, StepConditioning
from sdcore.sampling.sizes import check_size_conditioning
from sdcore.size import SizeConditioning
from sdcore.text.tokenizer import describe_cut
from sdcore.unet.unet import AddedConditions

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step
    from sdcore.text.encoder import CLIPTextEncoder
    from sdcore.text.tokenizer import Tokenizer, Tokens

Reader = tuple["Tokenizer", "CLIPTextEncoder"]


@dataclass(frozen=True)
class PromptPlan:
    """What every step of a run is told.

    tokens: the prompts as the first text encoder reads them at the first step (part 0 of an AND).
    steps:  the conditioning of each step; the same object where nothing changes.
    """

    tokens: Tokens
    steps: tuple[StepConditioning, ...]

    def at(self, step: Step) -> StepConditioning:
        return self.steps[step.index]


def plan_prompts(
    readers: Sequence[Reader],
    kind: ModelKind,
    prompts: Sequence[str],
    negative_prompts: Sequence[str | None],
    steps: int,
    *,
    guided: bool = True,
    dialect: str = "plain",
    clip_skip: int = 0,
    steps_before: int = 0,
    size: SizeConditioning | None = None,
    negative_size: SizeConditioning | None = None,
    zeros_for_no_prompt: bool = False,
) -> PromptPlan:
    """Read prompts and negative prompts; each text is encoded once, before the first step.

    Args:
        readers: tokenizer and text encoder, those of `kind.text_encoders`.
        kind: of the model: at which layer the text is read, and what else the UNet reads.
        guided: whether guidance is used, which needs the negative prompts.
        steps: how often the UNet is called, `Step.count`.
        dialect: a name in `sdcore.prompt.DIALECTS`.
        clip_skip: how many of the text encoders' last layers are left out, counted as in diffusers;
            in the dialect plain, as there, for the prompt only.
        steps_before: of an earlier pass at another size, for prompts that change with the steps.
        size: what SDXL's UNet reads about the picture's size; None for a model that reads nothing.
        negative_size: with the negative prompt; None is the same.
        zeros_for_no_prompt: a missing negative prompt is zeros, not the text of "".

    Raises:
        UsageError: the dialect, a mark in a prompt, `clip_skip` or a size cannot be used, or the
            UNet reads a size and there is none.

    Warns:
        UserWarning: a prompt is cut, means something else in another dialect, or has no effect.
    """
    _check_sizes(kind, size, negative_size)
    stage = "text encoder {}" if kind.pooled_text else "text encoder"
    encoders = [
        Encoder(*reader, stage=stage.format(i), xl=kind.penultimate)
        for i, reader in enumerate(readers, start=1)
    ]
    for encoder in encoders:
        encoder.check_clip_skip(clip_skip)
    book = _Book(encoders, find_dialect(dialect), Steps(steps, steps_before), clip_skip)
    positives = [book.read(prompt) for prompt in prompts]
    negatives: list[list[ReadPart]] | None = None
    given = any(text is not None for text in negative_prompts)
    needed = guided or any(not _is_alone(parts) for parts in positives)
    zeros = needed and not given and zeros_for_no_prompt
    if needed and not zeros:
        negatives = [book.read(text or "", negative=True) for text in negative_prompts]
        if book.dialect.pads:
            book.pad(positives, negatives)
    elif any(negative_prompts):
        _warn("the negative prompt has no effect at a guidance scale of 1 or less")

    told = _Told(positives, negatives, size, negative_size or size, zeros)
    tokens = as_tokens([parts[0].texts[0].tokens for parts in positives])
    return PromptPlan(tokens, tuple(told.at(step) for step in range(steps)))


def _check_sizes(kind: ModelKind, *sizes: SizeConditioning | None) -> None:
    for size in sizes:
        check_size_conditioning(kind, size)
    if kind.size_numbers and sizes[0] is None:
        raise UsageError(
            "The size of the picture is not given.",
            f"This model's UNet reads {kind.size_numbers} numbers about it.",
            "Pass size=, such as choose_sizes(kind, Size(1024, 1024))[0].",
        )


def _is_alone(parts: Sequence[ReadPart]) -> bool:
    return len(parts) == 1 and parts[0].weight == 1


@dataclass(frozen=True)
class _Book:
    """Prompts that were read, in one dialect; equal ones once."""

    encoders: Sequence[Encoder]
    dialect: Dialect
    steps: Steps
    clip_skip: int
    _known: dict[tuple[str, bool], list[ReadPart]] = field(default_factory=dict)

    def read(self, prompt: str, negative: bool = False) -> list[ReadPart]:
        if (prompt, negative) not in self._known:
            parsed = self.dialect.parse(prompt, negative)
            encoder = self._encoder(negative)
            parts = [encoder.read(part, prompt, self.steps) for part in parsed.parts]
            self._tell(prompt, parsed, parts)
            self._known[prompt, negative] = parts
        return list(self._known[prompt, negative])

    def pad(self, positives: list[list[ReadPart]], negatives: list[list[ReadPart]]) -> None:
        """Fill up the shorter of each image's prompt and negative prompt."""
        for positive, negative in zip(positives, negatives, strict=True):
            length = max(len(part.texts[0].text) for part in (*positive, *negative))
            positive[:] = [self._encoder(False).pad(part, length) for part in positive]
            negative[:] = [self._encoder(True).pad(part, length) for part in negative]

    def _encoder(self, negative: bool) -> PromptEncoder:
        skip = 0 if negative and not self.dialect.skips_in_negative else self.clip_skip
        return PromptEncoder(self.encoders, self.dialect, skip)

    def _tell(self, prompt: str, parsed: Parsed, parts: Sequence[ReadPart]) -> None:
        for note in parsed.notes:
            _warn(f"in the dialect {self.dialect.name}, {note}")
        for reading in describe_other_readings(prompt, self.dialect.name):
            _warn(reading)
        for cut in dict.fromkeys(text.tokens.cut for part in parts for text in part.texts):
            if cut:
                _warn(describe_cut(cut, self.encoders[0].tokenizer.max_length - 2))


@dataclass
class _Told:
    """Read prompts, image by image, put together for the UNet."""

    positives: Sequence[Sequence[ReadPart]]
    negatives: Sequence[Sequence[ReadPart]] | None
    size: SizeConditioning | None
    negative_size: SizeConditioning | None
    zeros: bool
    _known: dict[tuple[int, ...], StepConditioning] = field(default_factory=dict)

    def at(self, step: int) -> StepConditioning:
        """What a step is told; an equal step before it gives the same object."""
        rows = [*self.positives, *(self.negatives or ())]
        key = tuple(part.place(step) for parts in rows for part in parts)
        if key not in self._known:
            self._known[key] = self._join(step)
        return self._known[key]

    def _join(self, step: int) -> StepConditioning:
        count = max(len(parts) for parts in self.positives)
        parts = tuple(self._part(number, step) for number in range(count))
        unconditional = None
        if self.negatives is not None:
            texts = [parts[0].texts[parts[0].place(step)] for parts in self.negatives]
            unconditional = _conditioning(texts, self.negative_size)
        elif self.zeros:
            texts = [_without_text(row[0].texts[row[0].place(step)]) for row in self.positives]
            unconditional = _conditioning(texts, self.negative_size)
        return StepConditioning(parts, unconditional)

    def _part(self, number: int, step: int) -> Part:
        """Part `number` of every image; an image that has fewer gives its first, weighing 0."""
        texts, weights = [], []
        for parts in self.positives:
            there = number < len(parts)
            part = parts[number if there else 0]
            texts.append(part.texts[part.place(step)])
            weights.append(part.weight if there else 0.0)
        conditioning = _conditioning(texts, self.size)
        if len(set(weights)) == 1:
            return Part(conditioning, weights[0])
        by_image = torch.tensor(weights, device=conditioning.text.device)
        return Part(conditioning, by_image[:, None, None, None])


def _conditioning(texts: Sequence[ReadText], size: SizeConditioning | None) -> Conditioning:
    text = torch.stack(equally_long([each.text for each in texts]))  #      (B, T, D)
    if size is None:
        return Conditioning(text)
    pooled = [each.pooled for each in texts if each.pooled is not None]
    time_ids = torch.tensor([size.numbers], device=text.device, dtype=torch.float32)
    added = AddedConditions(torch.stack(pooled), time_ids.repeat(len(texts), 1))
    return Conditioning(text, added)


def _without_text(read: ReadText) -> ReadText:
    """Zeros in place of all text: how SDXL base was trained to paint without a prompt."""
    pooled = None if read.pooled is None else torch.zeros_like(read.pooled)
    return ReadText(torch.zeros_like(read.text), pooled, read.tokens)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
