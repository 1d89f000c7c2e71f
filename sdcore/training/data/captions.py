"""What the model reads of a caption: trigger word, prefix, tags in another order, or nothing.

Every draw is a function of (seed, purpose, epoch, sample); nothing is remembered between calls.
"""

from __future__ import annotations

import re

import torch

from sdcore.training.data.items import CaptionOptions, Item
from sdcore.training.state import generator


def caption_of(item: Item, options: CaptionOptions, seed: int, epoch: int, number: int) -> str:
    """The caption of one sample.

    Args:
        number: of the sample in its epoch.
    """
    if options.dropout and _uniform(seed, "dropout", epoch, number) < options.dropout:
        return ""
    text = item.caption or ""
    if options.shuffle_tags:
        text = _shuffled(text, options, seed, epoch, number)
    return _dressed(text, options)


def full_caption(item: Item) -> str:
    """The caption with all that is added to it, tags in their order, never dropped."""
    return _dressed(item.caption or "", item.options)


def _dressed(text: str, options: CaptionOptions) -> str:
    """Prefix, trigger word unless it is there already, caption, suffix."""
    if options.trigger and not holds(text, options.trigger):
        joint = ", " if options.tag_separator.strip() == "," else " "
        text = f"{options.trigger}{joint}{text}" if text else options.trigger
    return " ".join(f"{options.prefix} {text} {options.suffix}".split())


def holds(text: str, trigger: str) -> bool:
    """Whether a text holds a trigger as a word of its own, in letters of either case."""
    pattern = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def _shuffled(text: str, options: CaptionOptions, seed: int, epoch: int, number: int) -> str:
    mark = options.tag_separator
    tags = [tag for tag in (part.strip() for part in text.split(mark)) if tag]
    kept, others = tags[: options.keep_tags], tags[options.keep_tags :]
    draw = generator(seed, "tags", epoch, number)
    order: list[int] = torch.randperm(len(others), generator=draw).tolist()  # pyright: ignore
    joint = f"{mark} " if mark.strip() == mark else mark
    return joint.join([*kept, *(others[i] for i in order)])


def _uniform(seed: int, purpose: str, epoch: int, number: int) -> float:
    return torch.rand((), generator=generator(seed, purpose, epoch, number)).item()
