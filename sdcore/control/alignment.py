"""Which tokens of one prompt correspond to which tokens of another.

Shapes: T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from sdcore.errors import UsageError
from sdcore.text.tokenizer import Tokens
from sdcore.text.words import span_positions

# Of a prompt; what is computed grows with the square of it.
_MOST_WORDS, _MOST_POSITIONS = 1000, 4096


def align_tokens(tokens: Tokens, source: int, edited: int) -> tuple[Tensor, Tensor]:
    """How attention moves from one prompt's tokens to another's.

    Equal words correspond; so do words that stand between the same words, the last with the last,
    as what is spoken of comes after what is said of it (fox, red cat). Words that were added have
    nothing to correspond to.

    Args:
        source, edited: which of the prompts of `tokens`.

    Returns:
        M (T, T): column j holds what edited token j takes over of each source token's attention.
        known (T,): 1 where token j corresponds to something, 0 where it was added.

    Raises:
        UsageError: the prompts have no word in common, and not as many words either; or so many
            words that they cannot be compared.
    """
    changes = _changes(tokens, source, edited)
    length = tokens.ids.shape[1]
    move, known = torch.zeros(length, length), torch.zeros(length)

    def join(old: Sequence[int], new: Sequence[int]) -> None:
        """Tokens one by one if there are as many, else each new one takes its part of all."""
        if not old or not new:
            return
        known[list(new)] = 1
        if len(old) == len(new):
            move[list(old), list(new)] = 1
        else:
            move[torch.tensor(old)[:, None], torch.tensor(new)[None]] = 1 / len(new)

    old_words, new_words = (span_positions(tokens, prompt) for prompt in (source, edited))
    for kind, i, i_end, j, j_end in changes:
        if kind in ("equal", "replace"):
            both = min(i_end - i, j_end - j)
            pairs = zip(
                old_words[i_end - both : i_end], new_words[j_end - both : j_end], strict=True
            )
            for before, after in pairs:
                join(before, after)
    for old, new in zip(_others(tokens, source), _others(tokens, edited), strict=True):
        both = min(len(old), len(new))
        join(old[:both], new[:both])
        known[new] = 1
        move[old[both:], new[-1]] = 1  # no attention is lost where the edit has less padding
    return move, known


def _changes(tokens: Tokens, source: int, edited: int) -> Sequence[tuple[str, int, int, int, int]]:
    """difflib's steps from the words of one prompt to those of the other."""
    old, new = ([span.word.lower() for span in tokens.spans[p]] for p in (source, edited))
    words, positions = max(len(old), len(new)), tokens.ids.shape[1]
    if words > _MOST_WORDS or positions > _MOST_POSITIONS:
        raise UsageError(
            f"A prompt of {words} words and {positions} tokens cannot be aligned.",
            "Each of one is compared with each of the other, at most "
            f"{_MOST_WORDS} words and {_MOST_POSITIONS} tokens.",
            "Shorten the prompts.",
        )
    changes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    if len(old) != len(new) and not any(kind == "equal" for kind, *_ in changes):
        raise UsageError(
            f"The prompts {' '.join(old)!r:.100} and {' '.join(new)!r:.100} cannot be aligned.",
            "They have no word in common, so no place of the one corresponds to one of the other.",
            "Change a few words of the source prompt and keep the rest.",
        )
    return changes


def _others(tokens: Tokens, prompt: int) -> list[list[int]]:
    """Positions without a word: the start of each chunk, and its end with the padding."""
    ids = [int(token) for token in tokens.ids[prompt]]
    taken = {position for word in span_positions(tokens, prompt) for position in word}
    groups: list[list[int]] = []
    for position in (p for p in range(len(ids)) if p not in taken):
        if ids[position] == ids[0]:
            groups += [[position], []]
        else:
            groups[-1].append(position)
    return groups
