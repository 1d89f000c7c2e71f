"""Parsed prompts to the states that the UNet reads: all text encoders, chunk by chunk.

Shapes: n chunks, L positions of a chunk, T = n L text tokens, D text width, Dp pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.checks import as_int
from sdcore.errors import NonFiniteError, UsageError
from sdcore.prompt.chunks import Chunks
from sdcore.prompt.dialects import Dialect
from sdcore.prompt.reading import chunks_of, join, place_at
from sdcore.prompt.text import Clauses, ParsedPart, Steps

if TYPE_CHECKING:
    from sdcore.text.encoder import CLIPTextEncoder, TextEncoding
    from sdcore.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ReadText:
    """One text, encoded: (T, D), for SDXL pooled (Dp), and its tokens for the first encoder."""

    text: Tensor
    pooled: Tensor | None
    tokens: Chunks


@dataclass(frozen=True)
class ReadPart:
    """One prompt of an AND: its texts in the order of time, and the last step of each."""

    weight: float
    ends: tuple[int, ...]
    texts: tuple[ReadText, ...]

    def place(self, step: int) -> int:
        """Which of the texts is read at a step, counted from 0."""
        return place_at(self.ends, step)


class Encoder:
    """A tokenizer and its text encoder; every chunk is encoded once."""

    def __init__(
        self, tokenizer: Tokenizer, text_encoder: CLIPTextEncoder, *, stage: str, xl: bool
    ) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.stage, self.xl = stage, xl
        self.empty = torch.tensor(tokenizer.row([]))  #                  (L)
        self._known: dict[tuple[object, ...], TextEncoding] = {}

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> TextEncoding:
        """Chunks (n, L); where the mask (n, L) is False, no token is read."""
        key = (*ids.flatten().tolist(), *([] if mask is None else mask.flatten().tolist()))
        if key not in self._known:
            device = next(self.text_encoder.parameters()).device
            given = None if mask is None else mask.to(device)
            encoding = self.text_encoder(ids.to(device), given)
            self._check_finite(encoding.last_hidden_state, ids)
            self._known[key] = encoding
        return self._known[key]

    def states(self, ids: Tensor, mask: Tensor | None, clip_skip: int) -> Tensor:
        """What the UNet reads of chunks: (n, L, D).

        SDXL begins at the penultimate layer, and leaves out the LayerNorm that follows the last
        (Podell et al. 2023, arXiv 2307.01952).
        """
        encoding = self.encode(ids, mask)
        if self.xl:
            return encoding.hidden_states[-(clip_skip + 2)]
        if clip_skip == 0:
            return encoding.last_hidden_state
        return self.text_encoder.skip(encoding, clip_skip)

    def check_clip_skip(self, clip_skip: int) -> None:
        """UsageError, unless there are so many layers to leave out."""
        most = self.text_encoder.config.num_hidden_layers - self.xl
        if as_int(clip_skip, 0, most) is None:
            raise UsageError(
                f"clip_skip = {clip_skip!r} cannot be used.",
                f"The {self.stage} has layers for 0 to {most}.",
                "Use 0 for none"
                + (", which is the penultimate layer in SDXL." if self.xl else "; 1 is usual."),
            )

    def _check_finite(self, states: Tensor, ids: Tensor) -> None:
        for row, finite in zip(ids, torch.isfinite(states).flatten(1).all(dim=1), strict=True):
            if not finite:
                raise NonFiniteError(
                    f"The {self.stage} gave NaN or infinity.",
                    f"It happened for {self.tokenizer.decode(row)!r} in {states.dtype}.",
                    "Load the model in float32 or bfloat16; else its file is damaged.",
                )


@dataclass(frozen=True)
class PromptEncoder:
    """All text encoders of a model, for one dialect and one CLIP skip."""

    encoders: Sequence[Encoder]
    dialect: Dialect
    clip_skip: int

    def read(self, part: ParsedPart, prompt: str, steps: Steps) -> ReadPart:
        """Encode all that a part of a prompt says in the course of a run."""
        timeline = part.timeline(steps)
        variants = [clauses for _, clauses in timeline]
        chunks = self._chunks(variants)
        columns = [
            self._encode(encoder, variants, mine)
            for encoder, mine in zip(self.encoders, chunks, strict=True)
        ]
        texts = []
        for number, states in enumerate(zip(*columns, strict=True)):
            text = torch.cat(states, dim=-1)  #                          (T, D)
            _check_weights(text, prompt)
            pooled = self._pool(chunks[-1][number], prompt)
            tokens = join([passages[0] for passages in chunks[0][number]])
            texts.append(ReadText(text, pooled, tokens))
        return ReadPart(part.weight, tuple(end for end, _ in timeline), tuple(texts))

    def pad(self, read: ReadPart, length: int) -> ReadPart:
        """The same with empty prompts behind it, until all its texts have T = length."""
        empty = torch.cat(
            [e.states(e.empty[None], None, self.clip_skip)[0] for e in self.encoders], dim=-1
        )  #                                                             (L, D)
        texts = []
        for text in read.texts:
            missing = (length - len(text.text)) // len(empty)
            tokens = _pad(text.tokens, len(text.tokens.ids) + missing, self.encoders[0].empty)
            texts.append(
                replace(text, text=torch.cat([text.text, *[empty] * missing]), tokens=tokens)
            )
        return replace(read, texts=tuple(texts))

    def _chunks(self, variants: Sequence[Clauses]) -> list[list[list[list[Chunks]]]]:
        """By encoder, variant, clause and passage; the same number of chunks in every one of a
        clause, so that they can stand side by side."""
        made = [
            [chunks_of(clauses, encoder.tokenizer, self.dialect) for clauses in variants]
            for encoder in self.encoders
        ]
        for clause in range(len(variants[0])):
            everywhere = [variant[clause] for column in made for variant in column]
            most = max(len(chunks.ids) for passages in everywhere for chunks in passages)
            for encoder, column in zip(self.encoders, made, strict=True):
                for variant in column:
                    variant[clause] = [_pad(one, most, encoder.empty) for one in variant[clause]]
        return made

    def _encode(
        self, encoder: Encoder, variants: Sequence[Clauses], chunks: list[list[list[Chunks]]]
    ) -> list[Tensor]:
        """What one encoder gives for each variant: (T, D)."""

        def states(ids: Tensor, mask: Tensor | None) -> Tensor:
            return encoder.states(ids, mask, self.clip_skip)

        texts: list[list[Tensor]] = [[] for _ in variants]
        for number, clause in enumerate(variants[0]):
            shared: list[list[Tensor]] = []  # by passage and variant, each (n, L, D)
            for place, share in enumerate(clause.shares):
                passages = [variant[number][place] for variant in chunks]
                weighed = self.dialect.weigh(passages, encoder.empty, states)
                shared.append(weighed if share == 1 else [share * z for z in weighed])
            total = [torch.stack(each).sum(dim=0) for each in zip(*shared, strict=True)]
            for text, z in zip(texts, total, strict=True):
                if clause.weight != 1:
                    e = states(encoder.empty[None], None)  #             (1, L, D)
                    z = e + clause.weight * (z - e)
                text.append(z.flatten(0, 1))  #                          (n L, D)
        return [torch.cat(text) for text in texts]

    def _pool(self, clauses: list[list[Chunks]], prompt: str) -> Tensor | None:
        """SDXL's pooled text (Dp): the last encoder's, of the first chunk, without weights."""
        last = self.encoders[-1]
        if not last.xl:
            return None
        ids = clauses[0][0].ids
        if self.dialect.pools_as_typed:
            pieces = last.tokenizer.pieces(prompt)[: last.tokenizer.max_length - 2]
            ids = torch.tensor([last.tokenizer.row([piece.id for piece in pieces])])
        return last.encode(ids).pooled[0]


def _pad(chunks: Chunks, count: int, empty: Tensor) -> Chunks:
    """With empty chunks behind, until there are `count`."""
    missing = count - len(chunks.ids)
    if missing == 0:
        return chunks
    return replace(
        chunks,
        ids=torch.cat([chunks.ids, empty.expand(missing, -1)]),
        weights=torch.cat([chunks.weights, torch.ones(missing, len(empty))]),
        lengths=(*chunks.lengths, *[0] * missing),
    )


def _check_weights(text: Tensor, prompt: str) -> None:
    if not torch.isfinite(text).all():
        raise NonFiniteError(
            "The weights in a prompt gave NaN or infinity.",
            f"It happened for {prompt!r:.200} in {text.dtype}.",
            "Use smaller weights, or the dialect a1111-nonorm in place of a1111.",
        )
