"""Prompts to the tokens that a text encoder reads, without running it.

Shapes: B prompts, n chunks, L positions of one chunk, T = n L text tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdcore.prompt.chunks import Chunks, make_chunks
from sdcore.prompt.dialects import Dialect, find_dialect
from sdcore.prompt.text import Clauses, Steps
from sdcore.text.tokenizer import Tokenizer, Tokens


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
    """
    how, rows = find_dialect(dialect), []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        parts = how.parse(prompt, negative).parts
        timeline = parts[part if part < len(parts) else 0].timeline(Steps(steps))
        rows.append(join([chunks[0] for chunks in chunks_of(at(timeline, step), tokenizer, how)]))
    return as_tokens(rows)


def at(timeline: Sequence[tuple[int, Clauses]], step: int) -> Clauses:
    """What a timeline reads at a step, counted from 0."""
    return timeline[place_at([end for end, _ in timeline], step)][1]


def place_at(ends: Sequence[int], step: int) -> int:
    """Which of the texts that end at these steps is read at a step."""
    return min(bisect_left(ends, step), len(ends) - 1)


def chunks_of(clauses: Clauses, tokenizer: Tokenizer, dialect: Dialect) -> list[list[Chunks]]:
    """For each clause the chunks of each of its passages."""
    return [
        [make_chunks(passage, tokenizer, dialect.divide) for passage in clause.passages]
        for clause in clauses
    ]


def join(chunks: Sequence[Chunks]) -> Chunks:
    """Chunks one after the other."""
    spans, before = [], 0
    for one in chunks:
        for span in one.spans:
            positions = range(span.positions.start + before, span.positions.stop + before)
            spans.append(replace(span, positions=positions))
        before += one.ids.numel()
    return Chunks(
        torch.cat([one.ids for one in chunks]),
        torch.cat([one.weights for one in chunks]),
        tuple(length for one in chunks for length in one.lengths),
        tuple(spans),
        next((one.cut for one in chunks if one.cut), ""),
    )


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
