"""The parts of a diffusers pipeline that is traced, and their counterparts here; see trace.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sdcore.attention import Site
from sdcore.control.run_control import attention_sites
from sdcore.errors import UsageError
from sdcore.prompt.text import BREAK
from sdcore.text.tokenizer import Span, Tokenizer, Tokens
from sdcore.unet.config import UNetConfig
from sdcore.unet.unet import UNet


def unet_of(pipe: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = getattr(pipe, "unet", None)
    unet = getattr(unet, "_orig_mod", unet)
    if isinstance(unet, UNet2DConditionModel) and hasattr(pipe, "encode_prompt"):
        return unet
    raise UsageError(
        f"An object of type {type(pipe).__name__} cannot be traced.",
        "Its UNet is one of sdcore's, whose calls take a control."
        if hasattr(unet, "unet")
        else "It is no pipeline of diffusers that encodes prompts for a UNet.",
        "Use a StableDiffusionPipeline or StableDiffusionXLPipeline; a TextToImage of sdcore takes "
        "control= itself.",
    )


def sites_of(unet: Any) -> dict[str, Site]:
    """Where the UNet attends, by the names of its layers: they are those of ours."""
    with torch.device("meta"):
        same = UNet(UNetConfig.from_dict(dict(unet.config)))
    return {site.name: site for site in attention_sites(same)}


def tokenizers_of(pipe: Any) -> list[Any]:
    found = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
    return [each for each in found if each is not None]


def read_tokenizer(tokenizer: Any) -> Tokenizer:
    """A tokenizer of transformers as one of ours, learned words included."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return Tokenizer.from_pretrained(folder)


def joined_tokens(readings: Sequence[Tokens], texts: Sequence[str]) -> Tokens:
    """Texts that are read one behind the other, as one prompt."""
    spans: list[Span] = []
    letters = position = 0
    for tokens, text in zip(readings, texts, strict=True):
        for span in tokens.spans[0]:
            there = range(span.positions.start + position, span.positions.stop + position)
            start, end = span.start + letters, span.end + letters
            spans.append(replace(span, start=start, end=end, positions=there))
        letters += len(text) + len(BREAK)
        position += tokens.ids.shape[1]
    ids, weights = (
        torch.cat([getattr(tokens, name) for tokens in readings], dim=1)
        for name in ("ids", "weights")
    )
    return Tokens(ids, weights, (tuple(spans),), ("".join(tokens.cut[0] for tokens in readings),))
