"""Prompts to what the UNet reads: one text encoder (SD 1.x, 2.x) or two and more numbers (SDXL).

Shapes: B prompts, T text tokens, D text width, Dp pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.errors import NonFiniteError, UsageError
from sdcore.guidance import Conditioning
from sdcore.unet import AddedConditions

if TYPE_CHECKING:
    from sdcore.text_encoder import CLIPTextEncoder, TextEncoding
    from sdcore.tokenizer import Tokenizer

Reader = tuple["Tokenizer", "CLIPTextEncoder"]


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
    prompts: Sequence[str], readers: Sequence[Reader], size: tuple[int, int], clip_skip: int = 0
) -> Conditioning:
    """The text of SDXL: the penultimate states of both encoders side by side, and what is added.

    Added are the second encoder's pooled text and, as if the picture had been drawn uncropped,
    original size, crop and target size. Podell et al. 2023 (arXiv 2307.01952).

    Args:
        size: (height, width) of the picture in pixels.
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
    height, width = size
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=text.device)
    added = AddedConditions(encodings[-1].pooled, time_ids.float().repeat(len(prompts), 1))
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
