"""Prompts to what the UNet reads at each step of a run, in four steps.

    prompt ─parse─► Parsed ─tokenize─► TokenizedPrompt ─encode─► EncodedPrompt ─plan─► PromptPlan
             text             ids, weights               states                 each step

The first three are in `sdcore.prompt`; `plan_prompts` joins all four.

Shapes: B prompts, T text tokens, D text width, Dp pooled width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.checkpoint.kind import ModelKind
from sdcore.errors import UsageError, warn
from sdcore.job.budget import Budget
from sdcore.job.job import GENEROUS
from sdcore.prompt.dialects import Dialect, find_dialect
from sdcore.prompt.encoder import Encoder
from sdcore.prompt.encoding import (
    EncodedPrompt,
    EncodedText,
    TokenizedPrompt,
    encode,
    pad,
    tokenize,
)
from sdcore.prompt.near_marks import unknown_embeddings
from sdcore.prompt.other_dialects import describe_other_dialects
from sdcore.prompt.text import Parsed, Steps
from sdcore.prompt.tokens import as_tokens, equally_long
from sdcore.sampling.calls import Conditioning
from sdcore.sampling.guidance import Part, StepConditioning
from sdcore.sampling.sizes import check_size_conditioning
from sdcore.size import SizeConditioning
from sdcore.text.tokenizer import describe_cut
from sdcore.unet.unet import AddedConditions

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step
    from sdcore.text.recurrent_encoder import TextEncoder
    from sdcore.text.tokenizer import Tokenizer, Tokens

Reader = tuple["Tokenizer", "TextEncoder"]


@dataclass(frozen=True)
class PromptPlan:
    """What the UNet reads at every step of a run.

    Attributes:
        tokens: the prompts as the first text encoder reads them at the first step (part 0 of an
            AND).
        steps: the conditioning of each step; the same object where nothing changes.
    """

    tokens: Tokens
    steps: tuple[StepConditioning, ...]

    def at(self, step: Step) -> StepConditioning:
        """The conditioning of a step."""
        return self.steps[step.index]


def plan_prompts(
    readers: Sequence[Reader],
    kind: ModelKind,
    prompts: Sequence[str],
    negative_prompts: Sequence[str | None],
    steps: Steps,
    *,
    guided: bool = True,
    dialect: str = "plain",
    clip_skip: int = 0,
    size: SizeConditioning | None = None,
    negative_size: SizeConditioning | None = None,
    zeros_for_no_prompt: bool = False,
    budget: Budget = GENEROUS,
) -> PromptPlan:
    """What the UNet reads at every step, from prompts and negative prompts.

    Each text is encoded once, before the first step.

    Args:
        readers: tokenizer and text encoder, those of `kind.text_encoders`.
        kind: of the model: at which layer the text is read, and what else the UNet reads.
        guided: whether guidance is used, which needs the negative prompts.
        steps: how often the UNet is called, here and in an earlier pass.
        dialect: a name in `sdcore.prompt.dialects.DIALECTS`.
        clip_skip: how many of the text encoders' last layers are left out, counted as in diffusers;
            in the dialect plain, as there, for the prompt only.
        size: what SDXL's UNet reads about the picture's size; None for a model that reads nothing.
        negative_size: with the negative prompt; None is the same.
        zeros_for_no_prompt: a missing negative prompt is zeros, not the text of "".
        budget: how many tokens may be read.

    Raises:
        UsageError: the dialect, a mark in a prompt, `clip_skip` or a size cannot be used, the UNet
            reads a size and there is none, or there are more tokens than the budget has.

    Warns:
        UserWarning: a prompt is cut, means something else in another dialect, or has no effect.
    """
    _check_sizes(kind, size, negative_size)
    rules = find_dialect(dialect)
    encoders = _make_encoders(readers, kind, clip_skip)
    negative_encoders = encoders
    if not rules.skips_in_negative:
        negative_encoders = [encoder.with_clip_skip(0) for encoder in encoders]

    @cache  # equal prompts are read once
    def read(prompt: str, negative: bool = False) -> EncodedPrompt:
        used = negative_encoders if negative else encoders
        return _read(prompt, negative, used, rules, steps, budget)

    positives = [read(prompt) for prompt in prompts]
    negatives: list[EncodedPrompt] | None = None
    if not guided and all(prompt.is_single for prompt in positives):
        if any(negative_prompts):
            warn("the negative prompt has no effect at a guidance scale of 1 or less")
    elif zeros_for_no_prompt and all(text is None for text in negative_prompts):
        negatives = [prompt.zeros() for prompt in positives]
    else:
        negatives = [read(text or "", negative=True) for text in negative_prompts]
    if rules.pads and negatives is not None:
        lengths = [max(p.length, n.length) for p, n in zip(positives, negatives, strict=True)]
        positives = [pad(p, n, encoders) for p, n in zip(positives, lengths, strict=True)]
        negatives = [pad(p, n, negative_encoders) for p, n in zip(negatives, lengths, strict=True)]
    for prompts_of in (positives, negatives or ()):
        of = "A batch of prompts of these lengths"
        budget.check("tokens", _joint_length(prompts_of), of)
    tokens = as_tokens([prompt.parts[0].texts.items[0].tokens for prompt in positives])
    return PromptPlan(tokens, plan(positives, negatives, steps.count, size, negative_size or size))


def _joint_length(prompts: Sequence[EncodedPrompt]) -> int:
    """T of the longest batch of texts, see `equally_long`; 0 for none."""
    longest = 0
    for number in range(max((len(prompt.parts) for prompt in prompts), default=0)):
        chosen = [p.parts[number if number < len(p.parts) else 0] for p in prompts]
        longest = max(longest, math.lcm(*(len(part.texts.items[0].states) for part in chosen)))
    return longest


def _read(
    prompt: str,
    negative: bool,
    encoders: Sequence[Encoder],
    dialect: Dialect,
    steps: Steps,
    budget: Budget,
) -> EncodedPrompt:
    """The states of one prompt. Warns of what has no effect in it, or is cut."""
    parsed = dialect.parse(prompt, negative)
    check = partial(budget.check, "tokens", of="The negative prompt" if negative else "The prompt")
    tokenizers = [encoder.tokenizer for encoder in encoders]
    tokenized = tokenize(parsed, tokenizers, dialect, steps, check)
    _warn_about(prompt, parsed, tokenized, dialect, encoders[0].tokenizer)
    return encode(tokenized, encoders, dialect, prompt=prompt)


def plan(
    positives: Sequence[EncodedPrompt],
    negatives: Sequence[EncodedPrompt] | None,
    steps: int,
    size: SizeConditioning | None,
    negative_size: SizeConditioning | None,
) -> tuple[StepConditioning, ...]:
    """The conditioning of each step; an equal step before it gives the same object.

    Args:
        positives, negatives: one for each image.
        size, negative_size: None for a model that reads none.
    """
    every_part = [part for prompt in (*positives, *(negatives or ())) for part in prompt.parts]
    known: dict[tuple[int, ...], StepConditioning] = {}
    planned: list[StepConditioning] = []
    for step in range(steps):
        texts = tuple(part.texts.number_at(step) for part in every_part)
        if texts not in known:
            parts, unconditional = _join_parts(positives, step, size), None
            if negatives is not None:
                rows = [prompt.parts[0].texts.at(step) for prompt in negatives]
                unconditional = _join_images(rows, negative_size)
            known[texts] = StepConditioning(parts, unconditional)
        planned.append(known[texts])
    return tuple(planned)


def _join_parts(
    prompts: Sequence[EncodedPrompt], step: int, size: SizeConditioning | None
) -> tuple[Part, ...]:
    """Each part of an AND for all images; an image that has fewer gives its first, weighing 0."""
    parts: list[Part] = []
    for number in range(max(len(prompt.parts) for prompt in prompts)):
        there = [number < len(prompt.parts) for prompt in prompts]
        chosen = [p.parts[number if has else 0] for p, has in zip(prompts, there, strict=True)]
        weights = [p.weight if has else 0.0 for p, has in zip(chosen, there, strict=True)]
        conditioning = _join_images([part.texts.at(step) for part in chosen], size)
        weight: float | Tensor = weights[0]
        if len(set(weights)) > 1:
            weight = torch.tensor(weights, device=conditioning.text.device)[:, None, None, None]
        parts.append(Part(conditioning, weight))
    return tuple(parts)


def _join_images(texts: Sequence[EncodedText], size: SizeConditioning | None) -> Conditioning:
    """One text for each image, as one batch."""
    text = torch.stack(equally_long([each.states for each in texts]))  #   (B, T, D)
    pooled = [each.pooled for each in texts if each.pooled is not None]
    if not pooled:
        return Conditioning(text)
    assert size is not None, "checked before anything is read"
    time_ids = torch.tensor([size.numbers], device=text.device, dtype=torch.float32)
    added = AddedConditions(torch.stack(pooled), time_ids.repeat(len(texts), 1))
    return Conditioning(text, added)


def _make_encoders(readers: Sequence[Reader], kind: ModelKind, clip_skip: int) -> list[Encoder]:
    return [
        Encoder(
            *reader,
            penultimate=kind.penultimate,
            pooled=kind.pooled_text,
            clip_skip=clip_skip,
            name=f"text encoder {number}" if len(readers) > 1 else "text encoder",
        )
        for number, reader in enumerate(readers, start=1)
    ]


def _check_sizes(kind: ModelKind, *sizes: SizeConditioning | None) -> None:
    for size in sizes:
        check_size_conditioning(kind, size)
    if kind.size_numbers and sizes[0] is None:
        raise UsageError(
            "The size of the picture is not given.",
            f"This model's UNet reads {kind.size_numbers} numbers about it.",
            "Pass size=, such as choose_sizes(kind, Size(1024, 1024))[0].",
        )


def _warn_about(
    prompt: str, parsed: Parsed, tokenized: TokenizedPrompt, dialect: Dialect, tokenizer: Tokenizer
) -> None:
    """What of a prompt has no effect, means something else elsewhere, or is cut."""
    for note in parsed.notes:
        warn(f"in the dialect {dialect.name}, {note}")
    if dialect.name == "comfy":
        for note in unknown_embeddings(prompt, tokenizer):
            warn(note)
    for reading in describe_other_dialects(prompt, dialect.name):
        warn(reading)
    texts = (text for part in tokenized.parts for text in part.by_encoder[0].items)
    for cut in dict.fromkeys(text.tokens.cut for text in texts):
        if cut:
            warn(describe_cut(cut, tokenizer.max_length - 2))
