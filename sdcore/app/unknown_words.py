"""A warning for the words of prompts that a model was never taught."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdcore.app import adapters

if TYPE_CHECKING:
    from sdcore import TextToImage


def warn_of_unknown_words(pipe: TextToImage, options: argparse.Namespace) -> None:
    """Name them, with near words that it knows, if its folder lists what it knows.

    With an embedding or a LoRA nothing is said: these teach words that no list holds.
    """
    known = pipe.defaults.words
    if known is None or options.embedding:
        return
    from sdcore.text.known_words import describe_unknown

    steps = options.steps or pipe.defaults.steps
    prompts = [prompt for prompt in options.prompts if not adapters.choose(options, prompt)]
    texts = [text for prompt in prompts for text in _texts(prompt, options.dialect, steps, False)]
    if message := describe_unknown(known, texts):
        warnings.warn(message, stacklevel=2)
    negative = _texts(options.negative_prompt or "", options.dialect, steps, True)
    if prompts and (message := describe_unknown(known, negative)):
        warnings.warn(f"negative prompt: {message}", stacklevel=2)


def _texts(prompt: str, dialect: str | None, steps: int, negative: bool) -> Iterator[str]:
    """What a dialect leaves of a prompt to be read, at any step, without its marks."""
    from sdcore.prompt.dialects import parse_prompt
    from sdcore.prompt.text import Steps

    for part in parse_prompt(prompt, dialect or "plain", negative).parts:
        for _, clauses in part.timeline(Steps(steps)):
            for passage in (passage for clause in clauses for passage in clause.passages):
                yield from (fragment.text.text for fragment in passage)
