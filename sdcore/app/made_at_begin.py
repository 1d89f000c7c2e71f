"""Controls that need a prompt's tokens, for scripts, where tokens are known once the run begins.

Before that the tokenizer does not know the words of embeddings, and nobody knows by how many empty
prompts a dialect makes prompt and negative prompt equally long.

Shapes: P prompts, T text tokens, L positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from sdcore.control.run_control import Run, RunControl
from sdcore.prompt.reading import read_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from sdcore import TextToImage
    from sdcore.attention import Control
    from sdcore.control.run_control import Predict
    from sdcore.diffusion.steps import Step
    from sdcore.text.tokenizer import Tokenizer, Tokens

T = TypeVar("T", bound=RunControl)


class MadeAtBegin(RunControl, Generic[T]):
    """A control that `make` makes from the run, and that then takes its place."""

    made: T

    def __init__(self, make: Callable[[Run], T]) -> None:
        self.make = make

    def begin(self, run: Run) -> None:
        self.made = self.make(run)
        self.made.begin(run)

    def at(self, step: Step) -> Control | None:
        return self.made.at(step)

    def before_step(self, step: Step, latents: Tensor, predict: Predict) -> Tensor:
        return self.made.before_step(step, latents, predict)

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        self.made.on_guess(step, guess)

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        return self.made.after_step(step, latents)


def readings_in_run(
    pipe: TextToImage,
    prompts: str | Sequence[str],
    dialect: str,
    run: Run,
    *,
    negative: bool = False,
) -> list[Tokens]:
    """Prompts as each text encoder's tokenizer reads them, with as many tokens as the run has."""
    return [
        _padded(read_tokens(prompts, tokenizer, dialect, negative=negative), tokenizer, run)
        for tokenizer, _ in pipe.readers
    ]


def _padded(tokens: Tokens, tokenizer: Tokenizer, run: Run) -> Tokens:
    """With empty chunks behind, as some dialects fill up the shorter of prompt and negative."""
    missing = (run.text_tokens - tokens.ids.shape[1]) // tokenizer.max_length
    if missing <= 0:
        return tokens
    empty = torch.tensor(tokenizer.row([])).repeat(len(tokens.ids), missing)  #  (P, missing L)
    return replace(
        tokens,
        ids=torch.cat([tokens.ids, empty], dim=1),
        weights=torch.cat([tokens.weights, torch.ones(empty.shape)], dim=1),
    )
