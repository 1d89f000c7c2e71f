"""The words of a prompt, and where along the text's T positions each of them stands.

Shapes: P prompts, T text tokens, G columns: start tokens, end tokens with padding, then the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from sdcore.errors import UsageError
from sdcore.text.tokenizer import Span, Tokens
from sdcore.text.tokenizer_files import END, START

SPECIAL = (START, END)
FIRST_WORD = len(SPECIAL)


def find_words(spans: Sequence[Span], words: str) -> list[tuple[int, ...]]:
    """Every place where words stand in a prompt, as indices of its spans; case does not matter.

    `words` is one word or several in a row ("light blue").

    Raises:
        UsageError: they are not in the prompt; names near ones.
    """
    wanted = "".join(words.split()).lower()
    found: list[tuple[int, ...]] = []
    for first in range(len(spans)):
        text = ""
        for last in range(first, len(spans)):
            text += spans[last].word.lower()
            if text == wanted:
                found.append(tuple(range(first, last + 1)))
            if len(text) >= len(wanted):
                break
    if not found or not wanted:
        raise _not_there(spans, words)
    return found


def word_positions(tokens: Tokens, prompt: int, words: str) -> list[int]:
    """The token positions of all places where words stand in a prompt.

    Raises:
        UsageError: they are not in the prompt, or were cut off.
    """
    spans = tokens.spans[prompt]
    places = find_words(spans, words)
    found = {i for place in places for i in place}
    positions = sorted(p for i in found for p in span_positions(tokens, prompt)[i])
    if not positions:
        raise UsageError(
            f"The words {words!r} do not reach the model.",
            f"The prompt is too long; this part was cut: {tokens.cut[prompt]!r:.200}.",
            "Shorten the prompt, or move the words to its front.",
        )
    return positions


def span_positions(tokens: Tokens, prompt: int) -> list[list[int]]:
    """For each word of a prompt all its positions; there are more than the span's own where a
    prompt is repeated to be as long as the others of its batch.
    """
    spans, ids = tokens.spans[prompt], tokens.ids[prompt]
    last = max((span.positions.stop for span in spans), default=0)
    period = length = len(ids)
    for found in (ids == ids[0]).nonzero().flatten()[1:]:  # of each further chunk
        start = int(found)
        fits = start >= last and length % start == 0
        if fits and bool((ids.view(-1, start) == ids[:start]).all()):
            period = start
            break
    return [[p + r for r in range(0, length, period) for p in span.positions] for span in spans]


def prompts_with(tokens: Tokens, prompts: Sequence[int], words: str) -> list[int]:
    """Those of the prompts where words stand and reach the model.

    Raises:
        UsageError: it is none of them.
    """
    found: list[int] = []
    missing: UsageError | None = None
    for prompt in prompts:
        try:
            word_positions(tokens, prompt, words)
            found.append(prompt)
        except UsageError as error:
            missing = missing or error  # that of the first prompt, which names its near words
    if missing is not None and not found:
        raise missing
    return found


def column_marks(readings: Sequence[Tokens]) -> Tensor:
    """Which position belongs to which column: (P, T, G) float32, each position's row sums to 1.

    Args:
        readings: the same prompts as each text encoder's tokenizer reads them. Where two disagree
            about a position, it belongs to each one's word by half.
    """
    words = max(len(spans) for spans in readings[0].spans)
    prompts, length = readings[0].ids.shape
    marks = torch.zeros(prompts, length, FIRST_WORD + words)
    for tokens in readings:
        one = torch.zeros_like(marks)
        starts = tokens.ids == tokens.ids[:, :1]
        one[..., 0], one[..., 1] = starts, ~starts
        for prompt, row in enumerate(one):
            for column, positions in enumerate(span_positions(tokens, prompt), start=FIRST_WORD):
                row[positions] = 0
                row[positions, column] = 1
        marks += one / len(readings)
    return marks


def as_readings(tokens: Tokens | Sequence[Tokens]) -> list[Tokens]:
    """The same prompts as each text encoder's tokenizer reads them. UsageError if they are not."""
    readings = [tokens] if isinstance(tokens, Tokens) else list(tokens)
    if not readings:
        raise UsageError("There are no tokens.", "The list is empty.", "Pass a tokenizer's Tokens.")
    first = readings[0]
    for other in readings[1:]:
        same_words = [[span.word for span in spans] for spans in other.spans] == [
            [span.word for span in spans] for spans in first.spans
        ]
        if not same_words or other.ids.shape != first.ids.shape:
            raise UsageError(
                "The tokens of the two text encoders do not belong together.",
                "They are of other prompts, or of another length.",
                "Pass both tokenizers the same prompts.",
            )
    return readings


def _not_there(spans: Sequence[Span], words: str) -> UsageError:
    known = list(dict.fromkeys(span.word.lower() for span in spans))
    near = get_close_matches(words.strip().lower(), known, n=3, cutoff=0.5)
    prompt = " ".join(span.word for span in spans)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Use a word of the prompt."
    return UsageError(f"The words {words!r} are not in the prompt.", f"It is: {prompt:.300}.", hint)
