"""A small byte-pair vocabulary laid out as CLIP's: bytes, bytes ending a word, merges, marks.

Sennrich et al. 2016 (arXiv:1508.07909). Every string can be spelled: every byte is a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sdcore.text.tokenizer import END, START, WORD_END


def learn_vocabulary(
    texts: Iterable[str], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges) of at most `size` tokens; the two marks come last, as in CLIP.

    Every merge is there twice, within a run of letters and at its end: Chinese words stand at
    either place. No merge joins two texts, so words given one by one stay words.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = letters + [letter + WORD_END for letter in letters]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + (size - len(base) - 2) // 2,
        initial_alphabet=letters,
        show_progress=False,
    )
    learner.train_from_iterator((text.lower() for text in texts), trainer)
    merges = [
        pair
        for left, right in _merges(learner)
        for pair in ((left, right), (left, right + WORD_END))
    ]
    tokens = list(dict.fromkeys([*base, *("".join(pair) for pair in merges)]))
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def _merges(learner: Tokenizer) -> list[list[str]]:
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
