"""Where each tool divides a text that is too long for the text encoder: which tokens go together.

A rule gets all tokens of a passage and the room that one chunk has, and gives the tokens of each
chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sdcore.text.tokenizer import Tokenizer

COMMA_BACKTRACK = 20  # the web UI's default for "prompt word wrap length limit"
SHORT_GROUP = 8  # ComfyUI divides no group that is shorter


@dataclass(frozen=True)
class WeightedToken:
    """A token of a passage.

    Attributes:
        id: in the tokenizer's vocabulary.
        weight: of its fragment.
        origin: where it begins and ends in the prompt.
        fragment: the number of its fragment in the passage.
        joined: it belongs with the token before it, as the vectors of a learned word do.
    """

    id: int
    weight: float
    origin: tuple[int, int]
    fragment: int
    joined: bool


Items = Sequence[WeightedToken | None]  # None ends a chunk
Division = list[list[WeightedToken]]  # the tokens of each chunk
Rule = Callable[[Items, int, Tokenizer], Division]


def cut_off(items: Items, room: int, tokenizer: Tokenizer) -> Division:
    """One chunk; the rest is left out. What diffusers does."""
    return [[item for item in items if item is not None][:room]]


def after_commas(items: Items, room: int, tokenizer: Tokenizer) -> Division:
    """Full chunks, but what follows a comma near the end of one goes to the next. The web UI."""
    comma = tokenizer.id_of(",</w>")
    chunks: Division = []
    chunk: list[WeightedToken] = []
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


def keep_short_groups(items: Items, room: int, tokenizer: Tokenizer) -> Division:
    """Full chunks, but text of one weight with less than 8 tokens is not divided. ComfyUI."""
    chunks: Division = [[]]
    for group in _groups(items):
        stays = len(group) < SHORT_GROUP or any(token.joined for token in group)
        start = 0
        while len(chunks[-1]) + len(group) - start > room:
            fitting = 0 if stays and chunks[-1] else room - len(chunks[-1])
            chunks[-1] += group[start : start + fitting]
            start += fitting
            chunks.append([])
        chunks[-1] += group[start:]
    return chunks


def _groups(items: Items) -> Iterator[list[WeightedToken]]:
    """Text of one fragment; an embedding is a group of its own."""
    group: list[WeightedToken] = []
    for unit in _units(items):
        if unit is None:
            continue
        if group and (len(unit) > 1 or group[-1].fragment != unit[0].fragment):
            yield group
            group = []
        group += unit  # a list of its own, which grows without being copied
        if len(unit) > 1:
            yield group
            group = []
    if group:
        yield group


def after_sentences(items: Items, room: int, tokenizer: Tokenizer) -> Division:
    """Chunks that end with a sentence, else a phrase, else a word. compel."""
    tokens = [item for item in items if item is not None]
    chunks: Division = []
    start = 0
    while len(tokens) - start > room:
        split = _last_end(tokens[start : start + room], tokenizer)
        while split and tokens[start + split].joined:
            split -= 1
        split = split or room
        chunks.append(tokens[start : start + split])
        start += split
    return [*chunks, tokens[start:]]


def _last_end(tokens: Sequence[WeightedToken], tokenizer: Tokenizer) -> int:
    texts = [tokenizer.token(token.id) for token in tokens]
    phrases = (".</w>", ",</w>", ";</w>", ":</w>")
    for is_end in (phrases[:1].__contains__, phrases.__contains__, _ends_word):
        ends = [number for number, text in enumerate(texts, start=1) if is_end(text)]
        if ends:
            return ends[-1]
    return len(tokens)


def _ends_word(token: str) -> bool:
    return token.endswith("</w>")


def _units(items: Items) -> Iterator[list[WeightedToken] | None]:
    """Tokens that must stay together, in order; None ends a chunk."""
    unit: list[WeightedToken] = []
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
