"""Texts in chunks that a text encoder can read, and where each word went.

A chunk is start, tokens, end, padding. A plain text is one clause of one passage in one chunk.

Shapes: n chunks, L positions of one chunk (77 for CLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sdcore.prompt.dividing import Rule, WeightedToken
from sdcore.prompt.text import Clause, Clauses, Passage
from sdcore.text.tokenizer import Span, Tokenizer


@dataclass(frozen=True)
class Chunks:
    """Text as one text encoder reads it.

    Attributes:
        ids: (n, L).
        weights: (n, L), 1 for start, end and padding.
        lengths: how many tokens each chunk has between start and end.
        spans: its words; positions count through all chunks, from 0 to n L.
        cut: the text that was left out.
    """

    ids: Tensor
    weights: Tensor
    lengths: tuple[int, ...]
    spans: tuple[Span, ...]
    cut: str = ""

    def ids_in_a_row(self) -> list[int]:
        """Every id of all chunks, n L of them."""
        return self.ids.flatten().tolist()  # pyright: ignore

    def weights_in_a_row(self) -> list[float]:
        """The weight of every position of all chunks."""
        return self.weights.flatten().tolist()  # pyright: ignore


@dataclass(frozen=True)
class TokenizedClause:
    """The chunks of each passage, and how these are mixed; see `sdcore.prompt.text.Clause`."""

    passages: tuple[Chunks, ...]
    shares: tuple[float, ...]
    weight: float


@dataclass(frozen=True)
class TokenizedText:
    """A text as one text encoder reads it: clauses, one after the other."""

    clauses: tuple[TokenizedClause, ...]

    @property
    def passages(self) -> list[Chunks]:
        """All passages, clause by clause."""
        return [chunks for clause in self.clauses for chunks in clause.passages]

    @cached_property
    def tokens(self) -> Chunks:
        """All of it in a row; of a clause that is mixed, the first passage."""
        return join_chunks([clause.passages[0] for clause in self.clauses])

    def padded(self, counts: Sequence[int], empty: Tensor) -> TokenizedText:
        """With empty prompts (L), until each clause has so many chunks."""
        pairs = zip(self.clauses, counts, strict=True)
        return TokenizedText(
            tuple(
                replace(clause, passages=tuple(pad_chunks(c, n, empty) for c in clause.passages))
                for clause, n in pairs
            )
        )


def tokenize_text(clauses: Clauses, tokenizer: Tokenizer, divide: Rule) -> TokenizedText:
    """The ids and weights of a text; `divide` says which tokens go to which chunk."""

    def read(clause: Clause) -> TokenizedClause:
        chunks = (make_chunks(each, tokenizer, divide) for each in clause.passages)
        return TokenizedClause(tuple(chunks), clause.shares, clause.weight)

    return TokenizedText(tuple(read(clause) for clause in clauses))


def make_chunks(passage: Passage, tokenizer: Tokenizer, divide: Rule) -> Chunks:
    """The chunks of a passage. `divide` says which tokens go to which; those in none are cut."""
    items, words = _tokens(passage, tokenizer)
    length = tokenizer.max_length
    rows = divide(items, length - 2, tokenizer) or [[]]
    ids = [tokenizer.row([token.id for token in row]) for row in rows]
    weights = torch.ones(len(rows), length, dtype=torch.float32, device="cpu")
    positions: list[int] = []  # of each token, as tokens are never put in another order
    for number, row in enumerate(rows):
        weights[number, 1 : len(row) + 1] = weights.new_tensor([token.weight for token in row])
        positions += range(number * length + 1, number * length + 1 + len(row))
    spans = [
        Span(word.text, *word.origin, found)
        for word in words
        for found in _runs(positions[word.tokens.start : word.tokens.stop])
    ]
    tokens = [item for item in items if item is not None]
    cut = ""
    if len(positions) < len(tokens):
        cut = passage[0].text.prompt[tokens[len(positions)].origin[0] :]
    lengths = tuple(len(row) for row in rows)
    return Chunks(torch.tensor(ids, device="cpu"), weights, lengths, tuple(spans), cut)


def join_chunks(several: Sequence[Chunks]) -> Chunks:
    """Chunks one after the other, as one text."""
    spans: list[Span] = []
    before = 0
    for chunks in several:
        for span in chunks.spans:
            positions = range(span.positions.start + before, span.positions.stop + before)
            spans.append(replace(span, positions=positions))
        before += chunks.ids.numel()
    return Chunks(
        torch.cat([chunks.ids for chunks in several]),
        torch.cat([chunks.weights for chunks in several]),
        tuple(length for chunks in several for length in chunks.lengths),
        tuple(spans),
        next((chunks.cut for chunks in several if chunks.cut), ""),
    )


def pad_chunks(chunks: Chunks, count: int, empty: Tensor) -> Chunks:
    """With empty prompts (L) behind it, until there are `count` chunks."""
    missing = count - len(chunks.ids)
    if missing == 0:
        return chunks
    return replace(
        chunks,
        ids=torch.cat([chunks.ids, empty.expand(missing, -1)]),
        weights=torch.cat([chunks.weights, chunks.weights.new_ones(missing, len(empty))]),
        lengths=(*chunks.lengths, *[0] * missing),
    )


@dataclass(frozen=True)
class _Word:
    """A word of a passage, its place in the prompt, and the numbers of its tokens."""

    text: str
    origin: tuple[int, int]
    tokens: range


def _tokens(
    passage: Passage, tokenizer: Tokenizer
) -> tuple[list[WeightedToken | None], list[_Word]]:
    """All tokens, None where a chunk must end, and all words."""
    items: list[WeightedToken | None] = []
    words: list[_Word] = []
    first = 0
    for number, fragment in enumerate(passage):
        if fragment.starts_chunk:
            items.append(None)
        text = fragment.text.text
        pieces = tokenizer.pieces(text)
        for word, start, end, found in tokenizer.words(text, pieces):
            tokens = range(found.start + first, found.stop + first)
            words.append(_Word(word, fragment.text.origin(start, end), tokens))
        for piece in pieces:
            origin = fragment.text.origin(piece.start, piece.end)
            items.append(WeightedToken(piece.id, fragment.weight, origin, number, piece.joined))
        first += len(pieces)
    return items, words


def _runs(positions: Sequence[int]) -> list[range]:
    """Positions as ranges without gaps; one empty range for none."""
    runs: list[range] = []
    for position in positions:
        if runs and runs[-1].stop == position:
            runs[-1] = range(runs[-1].start, position + 1)
        else:
            runs.append(range(position, position + 1))
    return runs or [range(0)]
