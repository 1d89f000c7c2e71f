"""The path of a prompt to the states that the UNet reads: parse, tokenize, encode.

    prompt ─parse─► Parsed ─tokenize─► TokenizedPrompt ─encode─► EncodedPrompt
             text             ids, weights               states

A prompt has parts (of an AND), a part has texts in the order of time, and each text encoder reads
all of them. A plain prompt is one part with one text. What else a dialect does is behind
`Dialect.divide` (see dividing.py) and `Dialect.states` (see weights.py).

Shapes: n chunks, L positions of a chunk, T = n L text tokens, D text width, Dp pooled width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sdcore.errors import NonFiniteError
from sdcore.prompt.chunks import Chunks, TokenizedText, pad_chunks, tokenize_text
from sdcore.prompt.dialects import Dialect
from sdcore.prompt.encoder import Encoder
from sdcore.prompt.text import Clauses, Parsed, Steps, Timeline
from sdcore.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenizedPart:
    """One prompt of an AND: for each text encoder its texts, and its weight in the guidance."""

    by_encoder: tuple[Timeline[TokenizedText], ...]
    weight: float


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoders read it."""

    parts: tuple[TokenizedPart, ...]


@dataclass(frozen=True)
class EncodedText:
    """What the UNet reads at some steps.

    Attributes:
        states: (T, D), of all text encoders side by side.
        pooled: (Dp), for SDXL.
        tokens: those that the first text encoder read.
    """

    states: Tensor
    pooled: Tensor | None
    tokens: Chunks

    def zeros(self) -> EncodedText:
        """Zeros in place of all text."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return replace(self, states=torch.zeros_like(self.states), pooled=pooled)


@dataclass(frozen=True)
class EncodedPart:
    """One prompt of an AND, and its weight in the guidance."""

    texts: Timeline[EncodedText]
    weight: float


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the UNet reads it."""

    parts: tuple[EncodedPart, ...]

    @property
    def is_single(self) -> bool:
        """Whether it is one prompt of weight 1, which is painted without any other."""
        return len(self.parts) == 1 and self.parts[0].weight == 1

    def zeros(self) -> EncodedPrompt:
        """Zeros in place of all text: how SDXL base was trained to paint without a prompt."""
        texts = self.parts[0].texts.map(EncodedText.zeros)
        return EncodedPrompt((EncodedPart(texts, 1.0),))

    @property
    def length(self) -> int:
        """T of its texts; of an AND, that of the longest prompt."""
        return max(len(part.texts.items[0].states) for part in self.parts)


def tokenize(
    parsed: Parsed,
    tokenizers: Sequence[Tokenizer],
    dialect: Dialect,
    steps: Steps,
    check: Callable[[int], None] = lambda tokens: None,
) -> TokenizedPrompt:
    """The ids and weights of a prompt, for each text encoder.

    Args:
        check: called after each text with how many tokens there are, in all texts of all parts; it
            may raise.
    """
    counts = dict.fromkeys(tokenizers, 0)

    def read(clauses: Clauses, tokenizer: Tokenizer) -> TokenizedText:
        text = tokenize_text(clauses, tokenizer, dialect.divide)
        counts[tokenizer] += sum(chunks.ids.numel() for chunks in text.passages)
        check(counts[tokenizer])
        return text

    parts: list[TokenizedPart] = []
    for part in parsed.parts:
        texts = part.timeline(steps)
        by_encoder = [texts.map(partial(read, tokenizer=tokenizer)) for tokenizer in tokenizers]
        parts.append(TokenizedPart(_equally_many(by_encoder, tokenizers), part.weight))
    return TokenizedPrompt(tuple(parts))


def encode(
    tokenized: TokenizedPrompt,
    encoders: Sequence[Encoder],
    dialect: Dialect,
    *,
    prompt: str,
) -> EncodedPrompt:
    """The states of a prompt, from all text encoders side by side.

    Args:
        prompt: as it was typed.

    Raises:
        NonFiniteError: a text encoder gave NaN or infinity, or the weights did.
    """
    parts: list[EncodedPart] = []
    for part in tokenized.parts:
        columns = [  # for each encoder and text (T, D)
            dialect.states(texts.items, encoder)
            for texts, encoder in zip(part.by_encoder, encoders, strict=True)
        ]
        first, last = part.by_encoder[0], part.by_encoder[-1]
        encoded: list[EncodedText] = []
        for number, text in enumerate(first.items):
            states = torch.cat([column[number] for column in columns], dim=-1)
            _check_finite(states, prompt)
            pooled = _pool(last.items[number], encoders[-1], dialect, prompt)
            encoded.append(EncodedText(states, pooled, text.tokens))
        parts.append(EncodedPart(Timeline(tuple(encoded), first.last_steps), part.weight))
    return EncodedPrompt(tuple(parts))


def _pool(text: TokenizedText, encoder: Encoder, dialect: Dialect, prompt: str) -> Tensor | None:
    """SDXL's pooled text (Dp): of the first chunk, without weights."""
    if not encoder.pooled:
        return None
    ids = text.passages[0].ids
    if dialect.pools_as_typed:
        tokenizer = encoder.tokenizer
        pieces = tokenizer.pieces(prompt)[: tokenizer.max_length - 2]
        ids = torch.tensor([tokenizer.row([piece.id for piece in pieces])], device="cpu")
    return encoder.encode(ids).pooled[0]


def pad(prompt: EncodedPrompt, length: int, encoders: Sequence[Encoder]) -> EncodedPrompt:
    """The same with empty prompts behind it, until all its texts have T = length."""
    empty = torch.cat([encoder.empty_states()[0] for encoder in encoders], dim=-1)  # (L, D)

    def filled(text: EncodedText) -> EncodedText:
        missing = (length - len(text.states)) // len(empty)
        tokens = pad_chunks(text.tokens, len(text.tokens.ids) + missing, encoders[0].empty)
        return replace(text, states=torch.cat([text.states, *[empty] * missing]), tokens=tokens)

    return EncodedPrompt(
        tuple(replace(part, texts=part.texts.map(filled)) for part in prompt.parts)
    )


def _check_finite(states: Tensor, prompt: str) -> None:
    if not torch.isfinite(states).all():
        raise NonFiniteError(
            "The weights in a prompt gave NaN or infinity.",
            f"It happened for {prompt!r:.200} in {states.dtype}.",
            "Use smaller weights, or the dialect a1111-nonorm in place of a1111.",
        )


def _equally_many(
    by_encoder: Sequence[Timeline[TokenizedText]], tokenizers: Sequence[Tokenizer]
) -> tuple[Timeline[TokenizedText], ...]:
    """The same with empty prompts, so that states can stand side by side and be mixed.

    Each clause has as many chunks for every text encoder, at every step and in every passage.
    """
    texts = [text for timeline in by_encoder for text in timeline.items]
    counts = [
        max(len(chunks.ids) for clause in clauses for chunks in clause.passages)
        for clauses in zip(*(text.clauses for text in texts), strict=True)
    ]
    filled: list[Timeline[TokenizedText]] = []
    for timeline, tokenizer in zip(by_encoder, tokenizers, strict=True):
        empty = torch.tensor(tokenizer.row([]), device="cpu")  #         (L)
        filled.append(timeline.map(partial(TokenizedText.padded, counts=counts, empty=empty)))
    return tuple(filled)
