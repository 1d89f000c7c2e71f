"""Prompts to what the UNet reads: one text encoder (SD 1.x, 2.x) or two and more numbers (SDXL).

Shapes: B prompts, T text tokens, D text width, Dp pooled width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.errors import NonFiniteError, UsageError
from sdcore.guidance import Conditioning, Part, StepConditioning
from sdcore.unet import AddedConditions

if TYPE_CHECKING:
    from sdcore.request import Request
    from sdcore.schedulers import Step
    from sdcore.text_encoder import CLIPTextEncoder, TextEncoding
    from sdcore.tokenizer import Tokenizer, Tokens

Reader = tuple["Tokenizer", "CLIPTextEncoder"]


@dataclass(frozen=True)
class SizeConditioning:
    """What SDXL is told about a picture's size, all in pixels, (height, width) or (top, left).

    Attributes:
        original: the size that the picture had before it was cropped and scaled.
        crop: where the crop began; (0, 0) for a picture that nothing is cut from.
        target: the size that is painted.
        aesthetic: the refiner's score in place of the target size; 6.0, and 2.5 for the negative
            prompt, in diffusers.

    Podell et al. 2023 (arXiv 2307.01952), section 2.2.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]
    aesthetic: float | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """The UNet's `time_ids`: six, or the refiner's five."""
        last = self.target if self.aesthetic is None else (self.aesthetic,)
        return (*self.original, *self.crop, *last)


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
    request: Request,
    steps: int,
    *,
    clip_skip: int = 0,
    size: SizeConditioning | None = None,
    negative_size: SizeConditioning | None = None,
    zeros_for_no_prompt: bool = False,
) -> PromptPlan:
    """Read a request's prompts; equal prompts are encoded once.

    Args:
        readers: tokenizer and text encoder; both pairs for SDXL, the second alone for its refiner.
        steps: how often the UNet is called, `Step.count`.
        clip_skip: how many of the text encoders' last layers are left out, counted as in diffusers,
            and as there for the prompt only, not for the negative prompt.
        size: for SDXL, None for SD 1.x and 2.x.
        negative_size: where the negative prompt is told another size.
        zeros_for_no_prompt: a missing negative prompt is zeros, not the text of "".

    Warns:
        UserWarning: a negative prompt has no effect, as guidance is off.
    """
    conditional = _read(readers, request.prompts, clip_skip, size)
    tokens = readers[0][0](request.prompts)
    given = [text for text in request.negative_prompts if text is not None]
    if not request.guidance.active:
        if any(given):
            warnings.warn(
                "the negative prompt has no effect at a guidance scale of 1 or less", stacklevel=3
            )
        unconditional = None
    elif not given and zeros_for_no_prompt:
        unconditional = without_text(conditional)
    else:
        negatives = [text or "" for text in request.negative_prompts]
        unconditional = _read(readers, negatives, 0, negative_size or size)
    return PromptPlan(tokens, (StepConditioning((Part(conditional),), unconditional),) * steps)


def _read(
    readers: Sequence[Reader], prompts: list[str], clip_skip: int, size: SizeConditioning | None
) -> Conditioning:
    """What the UNet reads for each prompt; equal prompts are encoded once."""
    different = list(dict.fromkeys(prompts))
    if size is None:
        read = encode_prompts(different, *readers[0], clip_skip)
    else:
        read = encode_prompts_xl(different, readers, size, clip_skip)
    return read.pick([different.index(prompt) for prompt in prompts])


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer, text_encoder: CLIPTextEncoder, clip_skip: int = 0
) -> Conditioning:
    """The text of SD 1.x and 2.x: the encoder's last state, or that of an earlier layer.

    `clip_skip` counts as diffusers does: 0 is the last layer, 1 the one before it.
    """
    encoding = _encode(prompts, tokenizer, text_encoder, "text encoder")
    if clip_skip == 0:
        return Conditioning(encoding.last_hidden_state)
    return Conditioning(text_encoder.skip(encoding, clip_skip))


def encode_prompts_xl(
    prompts: Sequence[str], readers: Sequence[Reader], size: SizeConditioning, clip_skip: int = 0
) -> Conditioning:
    """The text of SDXL: the penultimate states of both encoders side by side, and what is added.

    Added are the last encoder's pooled text and the size. Podell et al. 2023 (arXiv 2307.01952).

    Args:
        clip_skip: 0 is the penultimate layer, 1 the one before it.
    """
    encodings = [
        _encode(prompts, tokenizer, text_encoder, f"text encoder {number}")
        for number, (tokenizer, text_encoder) in enumerate(readers, start=1)
    ]
    most = min(len(encoding.hidden_states) for encoding in encodings) - 2
    if type(clip_skip) is not int or not 0 <= clip_skip <= most:
        raise UsageError(
            f"clip_skip = {clip_skip!r} cannot be used.",
            "The text encoders do not have that many layers to leave out.",
            "Use 0, which is the penultimate layer in SDXL.",
        )
    text = torch.cat([encoding.hidden_states[-(clip_skip + 2)] for encoding in encodings], dim=-1)
    time_ids = torch.tensor([size.numbers], device=text.device, dtype=torch.float32)
    added = AddedConditions(encodings[-1].pooled, time_ids.repeat(len(prompts), 1))
    return Conditioning(text, added)


def without_text(conditioning: Conditioning) -> Conditioning:
    """Zeros in place of all text: how SDXL base was trained to paint without a prompt."""
    added = conditioning.added
    if added is not None:
        added = AddedConditions(torch.zeros_like(added.pooled_text), added.time_ids)
    return Conditioning(torch.zeros_like(conditioning.text), added)


def _encode(
    prompts: Sequence[str], tokenizer: Tokenizer, text_encoder: CLIPTextEncoder, stage: str
) -> TextEncoding:
    device = next(text_encoder.parameters()).device
    encoding = text_encoder(tokenizer(list(prompts)).ids.to(device))
    _check_finite(encoding.last_hidden_state, prompts, stage)
    return encoding


def _check_finite(text: Tensor, prompts: Sequence[str], stage: str) -> None:
    if not torch.isfinite(text).all():
        bad = [p for p, row in zip(prompts, text, strict=True) if not torch.isfinite(row).all()]
        raise NonFiniteError(
            f"The {stage} gave NaN or infinity.",
            f"It happened for the prompt {bad[0]!r} in {text.dtype}.",
            "Load the model in float32 or bfloat16; if it still happens, its file is damaged.",
        )
