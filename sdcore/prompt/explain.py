"""How a prompt is read, as a table: tokens with chunk, weight and word, and what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdcore.prompt.chunks import Chunks, tokenize_text
from sdcore.prompt.dialects import find_dialect
from sdcore.prompt.near_marks import unknown_embeddings
from sdcore.prompt.other_dialects import describe_other_dialects
from sdcore.prompt.text import Clauses, LoraTag, Steps, Timeline
from sdcore.text.tokenizer import Tokenizer, describe_cut

MANY_PIECES = 4
_SHOWN_WORD = 60  # letters of a word, which stands beside each of its tokens


@dataclass(frozen=True)
class TokenRow:
    """One token, in letters: its position in the long row, its chunk from 1, and its word."""

    position: int
    chunk: int
    token: str
    weight: float
    word: str


@dataclass(frozen=True)
class TextExplained:
    """One text that is read: by which part of an AND, and at which steps, counted from 1."""

    part: int
    weight: float
    steps: tuple[int, ...]
    chunks: int
    rows: tuple[TokenRow, ...]
    cut: str
    many_pieces: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """How a dialect reads a prompt. `str()` of it is a table.

    notes: what may surprise: words that are cut or hardly known, and other dialects' readings.
    """

    prompt: str
    dialect: str
    steps: int
    texts: tuple[TextExplained, ...]
    loras: tuple[LoraTag, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"prompt: {self.prompt}"
        yield f"dialect: {self.dialect}"
        for text in self.texts:
            yield ""
            yield self._title(text)
            yield "position  chunk  weight  token             word"
            for row in text.rows:
                word = row.word if len(row.word) <= _SHOWN_WORD else f"{row.word[:_SHOWN_WORD]}..."
                yield f"{row.position:8d}{row.chunk:7d}{row.weight:8.4g}  {row.token:<18}{word}"
        for lora in self.loras:
            yield f"\nLoRA {lora.name}: text encoder {lora.text_encoder:g}, UNet {lora.unet:g}"
        if self.notes:
            yield ""
            yield from (f"note: {note}" for note in self.notes)

    def _title(self, text: TextExplained) -> str:
        parts = max(each.part for each in self.texts)
        words = [f"{len(text.rows)} tokens in {text.chunks} chunk{'s' * (text.chunks > 1)}"]
        if parts > 1 or text.weight != 1:
            words.insert(0, f"part {text.part} of {parts}, weight {text.weight:g}")
        if len(text.steps) < self.steps:
            words.insert(0, f"steps {_ranges(text.steps)} of {self.steps}")
        return ": ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)


def explain_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    dialect: str = "plain",
    *,
    steps: int = 25,
    negative: bool = False,
) -> Explanation:
    """How a dialect reads a prompt, token by token.

    Args:
        dialect: a name in `sdcore.prompt.dialects.DIALECTS`.
        steps: of the run, for prompts that change with them.
        negative: whether it is a negative prompt, which has no parts of an AND.

    Raises:
        UsageError: there is no such dialect, or it refuses a mark.
    """
    how = find_dialect(dialect)
    parsed = how.parse(prompt, negative)
    texts: list[TextExplained] = []
    for number, part in enumerate(parsed.parts, start=1):
        for clauses, when in _when(part.timeline(Steps(steps)), steps).items():
            chunks = tokenize_text(clauses, tokenizer, how.divide).tokens
            texts.append(_explain(chunks, tokenizer, number, part.weight, when))
    notes = list(parsed.notes)
    for text in texts:
        if text.cut:
            notes.append(describe_cut(text.cut, tokenizer.max_length - 2))
        if text.many_pieces:
            shown = ", ".join(f"{word!r:.{_SHOWN_WORD}}" for word in text.many_pieces[:10])
            notes.append(f"in {MANY_PIECES} pieces or more, so hardly known to the model: {shown}")
    if how.name == "comfy":
        notes += unknown_embeddings(prompt, tokenizer)
    notes += describe_other_dialects(prompt, dialect)
    distinct = tuple(dict.fromkeys(notes))
    return Explanation(prompt, dialect, steps, tuple(texts), parsed.loras, distinct)


def _when(timeline: Timeline[Clauses], steps: int) -> dict[Clauses, tuple[int, ...]]:
    """Every text once, with the steps, from 1, at which it is read."""
    numbers: dict[int, list[int]] = {}
    for step in range(steps):
        numbers.setdefault(timeline.number_at(step), []).append(step + 1)
    found: dict[Clauses, list[int]] = {}
    for number, when in numbers.items():
        found.setdefault(timeline.items[number], []).extend(when)
    return {clauses: tuple(when) for clauses, when in found.items()}


def _explain(
    chunks: Chunks, tokenizer: Tokenizer, part: int, weight: float, steps: tuple[int, ...]
) -> TextExplained:
    length = chunks.ids.shape[1]
    ids, weights = chunks.ids_in_a_row(), chunks.weights_in_a_row()
    words = {position: span.word for span in chunks.spans for position in span.positions}
    positions = [
        number * length + 1 + place
        for number, count in enumerate(chunks.lengths)
        for place in range(count)
    ]
    rows = tuple(
        TokenRow(
            at,
            at // length + 1,
            tokenizer.readable(ids[at]),
            round(weights[at], 6),
            words.get(at, ""),
        )
        for at in positions
    )
    many = [span.word for span in chunks.spans if len(span.positions) >= MANY_PIECES]
    return TextExplained(
        part, weight, steps, len(chunks.ids), rows, chunks.cut, tuple(dict.fromkeys(many))
    )


def _ranges(steps: tuple[int, ...]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and ranges[-1][1] == step - 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
