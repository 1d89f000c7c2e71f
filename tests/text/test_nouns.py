"""Nouns of prompts: the last words of their phrases."""

from __future__ import annotations

import pytest

from sdcore import TextToImage
from sdcore.text.nouns import nouns


@pytest.fixture(scope="module")
def tokenizer():
    return TextToImage.embedded().tokenizer


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red fox on a tall tree", "fox tree"),
        ("a fox to the left of a cat", "fox cat"),
        ("a dog jumping over a wooden fence, flat style", "dog fence"),
        ("a red apple in flat style on a light blue background", "apple"),
        ("portrait of an old king, oil painting, 8k", "portrait king painting"),
        ("two cats and a ball", "cats ball"),
        ("a small house (in the snow:1.2)", "house snow"),
        ("", ""),
        ("the of", ""),
    ],
)
def test_the_last_word_of_a_phrase_is_its_noun(prompt, expected, tokenizer) -> None:
    spans = tokenizer(prompt).spans[0]
    found = nouns(spans, prompt)
    assert " ".join(s.word for s, noun in zip(spans, found, strict=True) if noun) == expected
