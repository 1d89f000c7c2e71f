"""The tokens of prompts in a dialect, as one text encoder reads them."""

from __future__ import annotations

import pytest
import torch

from sdcore.prompt.tokens import read_tokens
from sdcore.text.tokenizer import Tokenizer
from tests.tiny import vocabulary

NINE = "a a a a a a a a a"
VOCABULARY, MERGES = vocabulary()
LENGTH = 12  # room for ten tokens
TOKENIZER = Tokenizer.from_vocab(VOCABULARY, MERGES, max_length=LENGTH, pad_token="!")


def test_spans_point_into_what_the_user_typed() -> None:
    prompt = r"(a \(red\) fox:1.2) [cat:dog:0.5] tree"
    for step, animal in ((0, "cat"), (3, "dog")):
        tokens = read_tokens(prompt, TOKENIZER, "a1111", step=step, steps=4)
        words = [(span.word, prompt[span.start : span.end]) for span in tokens.spans[0]]
        assert words == [
            *(("a", "a"), ("(", "("), ("red", "red"), (")", ")"), ("fox", "fox")),
            *((animal, animal), ("tree", "tree")),
        ]
    assert tokens.weights[0, 1:6].tolist() == pytest.approx([1.2] * 5)


def test_plain_tokens_are_those_of_the_tokenizer() -> None:
    prompts = ["a (red:1.3) fox", "", "a cat " * 9]
    with pytest.warns(UserWarning, match="cut"):
        expected = TOKENIZER(prompts)
    read = read_tokens(prompts, TOKENIZER)
    assert torch.equal(read.ids, expected.ids) and torch.equal(read.weights, expected.weights)
    assert read.cut == expected.cut
    for mine, theirs in zip(read.spans, expected.spans, strict=True):
        assert [(s.word, s.start, s.end) for s in mine] == [
            (s.word, s.start, s.end) for s in theirs
        ]
        assert [list(s.positions) for s in mine] == [list(s.positions) for s in theirs]


def test_prompts_of_several_lengths_are_repeated_to_one() -> None:
    tokens = read_tokens(["a", f"{NINE} {NINE}", "BREAK BREAK a"], TOKENIZER, "a1111")
    assert tokens.ids.shape == (3, 6 * LENGTH)
    assert torch.equal(tokens.ids[0], tokens.ids[0, :LENGTH].repeat(6))
    assert torch.equal(tokens.ids[1], tokens.ids[1, : 2 * LENGTH].repeat(3))
