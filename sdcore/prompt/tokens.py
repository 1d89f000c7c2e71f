"""Prompts to the tokens that one text encoder reads, without running it.

Shapes: B prompts, n chunks, L positions of one chunk, T = n L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdcore.prompt.chunks import Chunks, tokenize_text
from sdcore.prompt.dialects import find_dialect
from sdcore.prompt.text import Steps
from sdcore.text.tokenizer import Tokenizer, Tokens
from sdcore.torch_state import with_own_torch_state


@with_own_torch_state
def read_tokens(
    prompts: str | Sequence[str],
    tokenizer: Tokenizer,
    dialect: str = "plain",
    *,
    negative: bool = False,
    part: int = 0,
    step: int = 0,
    steps: int = 1,
) -> Tokens:
    """The tokens of prompts in a dialect, as they are read at one step.

    Args:
        part: which prompt of an AND; one that has fewer gives its first.
        step, steps: of the run, for prompts that change with them.

    Raises:
        UsageError: there is no such dialect, or it refuses a mark.
    """
    how, rows = find_dialect(dialect), list[Chunks]()
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        parts = how.parse(prompt, negative).parts
        clauses = parts[part if part < len(parts) else 0].timeline(Steps(steps)).at(step)
        rows.append(tokenize_text(clauses, tokenizer, how.divide).tokens)
    return as_tokens(rows)


def as_tokens(rows: Sequence[Chunks]) -> Tokens:
    """Prompts of any length as one batch; see `equally_long`."""
    ids = equally_long([row.ids.flatten() for row in rows])
    weights = equally_long([row.weights.flatten() for row in rows])
    cut = tuple(row.cut for row in rows)
    return Tokens(torch.stack(ids), torch.stack(weights), tuple(row.spans for row in rows), cut)


def equally_long(rows: Sequence[Tensor]) -> list[Tensor]:
    """Rows (T, ...) of several lengths, each repeated until all are as long.

    Attention that reads every token k times gives what it gives reading each once: softmax divides
    all shares by k. So an image does not depend on how long the other prompts of its batch are.
    """
    length = math.lcm(*(len(row) for row in rows))
    return [torch.cat([row] * (length // len(row))) for row in rows]
