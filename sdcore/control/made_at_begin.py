"""A control that is made when the run begins, for those that need the tokens as the run has them.

Before that nobody knows by how many empty prompts a dialect makes prompt and negative prompt
equally long.

Shapes: P prompts, T text tokens, L positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from sdcore.control.chain import Chain
from sdcore.control.run_control import Run, RunControl, not_begun
from sdcore.prompt.tokens import read_tokens

if TYPE_CHECKING:
    from sdcore.attention import Control
    from sdcore.diffusion.steps import Step
    from sdcore.text.tokenizer import Tokenizer, Tokens

T = TypeVar("T", bound=RunControl)


class MadeAtBegin(Chain, Generic[T]):
    """A control that `make` makes from the run, and that then takes its place as `made`."""

    made: T

    def __init__(self, make: Callable[[Run], T]) -> None:
        super().__init__(())
        self.make = make

    def begin(self, run: Run) -> None:
        self.made = self.make(run)
        self.controls = (self.made,)
        super().begin(run)

    def at(self, step: Step) -> Control | None:
        if not self.controls:
            raise not_begun(self)
        return super().at(step)


def tokens_in_run(
    tokenizers: Iterable[Tokenizer],
    prompts: str | Sequence[str],
    dialect: str,
    run: Run,
    *,
    negative: bool = False,
) -> list[Tokens]:
    """Prompts as each text encoder's tokenizer reads them, with as many tokens as the run has."""
    return [
        _padded(read_tokens(prompts, tokenizer, dialect, negative=negative), tokenizer, run)
        for tokenizer in tokenizers
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
