"""A small byte-pair vocabulary laid out as CLIP's: bytes, bytes ending a word, merges, marks.

Sennrich et al. 2016 (arXiv:1508.07909). Every string can be spelled: every byte is a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sdcore.tokenizer import END, START, WORD_END


def learn_vocabulary(
    texts: Iterable[str], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges) of at most `size` tokens; the two marks come last, as in CLIP."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = letters + [letter + WORD_END for letter in letters]
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(letters) - 2,  # the learner sees only some of the final bytes
        end_of_word_suffix=WORD_END,
        initial_alphabet=letters,
        show_progress=False,
    )
    learner.train_from_iterator((text.lower() for text in texts), trainer)
    merges = [tuple(pair) for pair in _merges(learner)][: size - len(base) - 2]
    tokens = list(dict.fromkeys([*base, *("".join(pair) for pair in merges)]))
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def _merges(learner: Tokenizer) -> list[list[str]]:
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
