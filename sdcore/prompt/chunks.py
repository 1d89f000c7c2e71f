"""Texts of any length in chunks that the text encoder can read, and where each word went.

A chunk is start, up to `room` tokens, end, padding. Where a long text is divided is the rule of
each tool.

Shapes: n chunks, L positions of one chunk (77 for CLIP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdcore.prompt.text import Passage
from sdcore.text.tokenizer import Span, Tokenizer

COMMA_BACKTRACK = 20  # the web UI's default for "prompt word wrap length limit"
SHORT_GROUP = 8  # ComfyUI keeps what is shorter whole


@dataclass(frozen=True)
class Placed:
    """A token with its weight; `at` is where it stands in the prompt, `group` its fragment."""

    id: int
    weight: float
    at: tuple[int, int]
    group: int
    joined: bool


@dataclass(frozen=True)
class Chunks:
    """A passage as the text encoder reads it.

    ids:     (n, L).
    weights: (n, L), 1 for start, end and padding.
    lengths: how many tokens each chunk has between start and end.
    spans:   its words; positions count through all chunks, from 0 to n L.
    cut:     the text that was left out.
    """

    ids: Tensor
    weights: Tensor
    lengths: tuple[int, ...]
    spans: tuple[Span, ...]
    cut: str = ""


Items = Sequence[Placed | None]  # tokens; None ends a chunk
Rule = Callable[[Items, int, Tokenizer], list[list[Placed]]]


def make_chunks(passage: Passage, tokenizer: Tokenizer, rule: Rule) -> Chunks:
    """Divide a passage. `rule` gives the tokens of each chunk; what it leaves out is cut."""
    items, words = _tokens(passage, tokenizer)
    length = tokenizer.max_length
    divided = rule(items, length - 2, tokenizer) or [[]]
    ids = [tokenizer.row([token.id for token in chunk]) for chunk in divided]
    weights = torch.ones(len(divided), length)
    positions: list[int] = []  # of each token, as tokens are never put in another order
    for number, chunk in enumerate(divided):
        weights[number, 1 : len(chunk) + 1] = torch.tensor([token.weight for token in chunk])
        positions += range(number * length + 1, number * length + 1 + len(chunk))
    spans = [
        Span(word, *at, found)
        for word, at, mine in words
        for found in _runs(positions[mine.start : mine.stop])
    ]
    tokens = [item for item in items if item is not None]
    cut = ""
    if len(positions) < len(tokens):
        cut = passage[0].text.prompt[tokens[len(positions)].at[0] :]
    lengths = tuple(len(chunk) for chunk in divided)
    return Chunks(torch.tensor(ids), weights, lengths, tuple(spans), cut)


def _tokens(
    passage: Passage, tokenizer: Tokenizer
) -> tuple[list[Placed | None], list[tuple[str, tuple[int, int], range]]]:
    """All tokens, and each word with its place in the prompt and the numbers of its tokens."""
    items: list[Placed | None] = []
    words: list[tuple[str, tuple[int, int], range]] = []
    first = 0
    for group, fragment in enumerate(passage):
        if fragment.starts_chunk:
            items.append(None)
        text = fragment.text.text
        pieces = tokenizer.pieces(text)
        for word, start, end, found in tokenizer.words(text, pieces):
            place = fragment.text.origin(start, end)
            words.append((word, place, range(found.start + first, found.stop + first)))
        for piece in pieces:
            at = fragment.text.origin(piece.start, piece.end)
            items.append(Placed(piece.id, fragment.weight, at, group, piece.joined))
        first += len(pieces)
    return items, words


def _units(items: Items) -> Iterator[list[Placed] | None]:
    """Tokens that must stay together, in order; None ends a chunk."""
    unit: list[Placed] = []
    for item in items:
        if item is not None and item.joined and unit:
            unit.append(item)
            continue
        if unit:
            yield unit
        unit = [] if item is None else [item]
        if item is None:
            yield None
    if unit:
        yield unit


# --- the rules -------------------------------------------------------------------------------


def cut_off(items: Items, room: int, tokenizer: Tokenizer) -> list[list[Placed]]:
    """One chunk; the rest is left out. What diffusers does."""
    return [[item for item in items if item is not None][:room]]


def after_commas(items: Items, room: int, tokenizer: Tokenizer) -> list[list[Placed]]:
    """Full chunks, but what follows a comma near the end of one goes to the next. The web UI."""
    comma = tokenizer.id_of(",</w>")
    chunks: list[list[Placed]] = []
    chunk: list[Placed] = []
    last_comma = none = -COMMA_BACKTRACK - 1  # its place in this chunk

    def close() -> None:
        nonlocal chunk, last_comma
        chunks.append(chunk)
        chunk, last_comma = [], none

    for unit in _units(items):
        if unit is None:
            close()
            continue
        if unit[0].id == comma:
            last_comma = len(chunk)
        elif len(chunk) == room and room - last_comma <= COMMA_BACKTRACK:
            chunk, moved = chunk[: last_comma + 1], chunk[last_comma + 1 :]
            close()
            chunk = moved
        if len(chunk) + len(unit) > room:
            close()
        chunk = chunk + unit
    return [*chunks, chunk] if chunk or not chunks else chunks


def short_groups_whole(items: Items, room: int, tokenizer: Tokenizer) -> list[list[Placed]]:
    """Full chunks, but text of one weight with less than 8 tokens is not divided. ComfyUI."""
    chunks: list[list[Placed]] = [[]]
    for group in _groups(items):
        whole = len(group) < SHORT_GROUP or any(token.joined for token in group)
        while len(chunks[-1]) + len(group) > room:
            kept = 0 if whole and chunks[-1] else room - len(chunks[-1])
            chunks[-1] += group[:kept]
            group = group[kept:]
            chunks.append([])
        chunks[-1] += group
    return chunks


def _groups(items: Items) -> Iterator[list[Placed]]:
    """Text of one fragment; an embedding is a group of its own."""
    group: list[Placed] = []
    for unit in _units(items):
        if unit is None:
            continue
        if group and (len(unit) > 1 or group[-1].group != unit[0].group):
            yield group
            group = []
        group = group + unit
        if len(unit) > 1:
            yield group
            group = []
    if group:
        yield group


def after_sentences(items: Items, room: int, tokenizer: Tokenizer) -> list[list[Placed]]:
    """Chunks that end with a sentence, else a phrase, else a word. compel."""
    rest = [item for item in items if item is not None]
    chunks: list[list[Placed]] = []
    while len(rest) > room:
        split = _last_end(rest[:room], tokenizer)
        while split and rest[split].joined:
            split -= 1
        split = split or room
        chunks.append(rest[:split])
        rest = rest[split:]
    return [*chunks, rest]


def _last_end(tokens: Sequence[Placed], tokenizer: Tokenizer) -> int:
    texts = [tokenizer.token(token.id) for token in tokens]
    phrases = (".</w>", ",</w>", ";</w>", ":</w>")
    for is_end in (phrases[:1].__contains__, phrases.__contains__, _ends_word):
        ends = [number for number, text in enumerate(texts, start=1) if is_end(text)]
        if ends:
            return ends[-1]
    return len(tokens)


def _ends_word(token: str) -> bool:
    return token.endswith("</w>")


def _runs(positions: Sequence[int]) -> list[range]:
    """Positions as ranges without gaps; one empty range for none."""
    runs: list[range] = []
    for position in positions:
        if runs and runs[-1].stop == position:
            runs[-1] = range(runs[-1].start, position + 1)
        else:
            runs.append(range(position, position + 1))
    return runs or [range(0)]
