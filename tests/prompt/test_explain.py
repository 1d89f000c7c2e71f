"""How a prompt is read, as a table, and what other dialects would make of it."""

from __future__ import annotations

import pytest

from sdcore.prompt.dialects import parse_prompt
from sdcore.prompt.explain import explain_prompt
from sdcore.prompt.other_dialects import describe_other_dialects
from sdcore.text.tokenizer import Tokenizer
from tests.tiny import vocabulary

NINE = "a a a a a a a a a"
VOCABULARY, MERGES = vocabulary()
TOKENIZER = Tokenizer.from_vocab(VOCABULARY, MERGES, max_length=12, pad_token="!")  # room for ten


def test_explanation() -> None:
    prompt = f"{NINE} (fox:1.3) <lora:x:0.5> AND a [cat|dog] zyxwv :0.7"
    explained = explain_prompt(prompt, TOKENIZER, "a1111", steps=4)
    first, cats, dogs = explained.texts
    assert (first.part, first.weight, first.steps, first.chunks) == (1, 1, (1, 2, 3, 4), 1)
    assert first.rows[9].word == "fox" and first.rows[9].weight == 1.3
    assert (cats.part, cats.weight, cats.steps, dogs.steps) == (2, 0.7, (1, 2, 4), (3,))
    assert [row.word for row in dogs.rows][:2] == ["a", "dog"]
    text = str(explained)
    for said in (
        "steps 1-2, 4 of 4",
        "part 2 of 2, weight 0.7",
        "LoRA x: text encoder 0.5",
        "'zyxwv'",
    ):
        assert said in text
    assert "this part was cut: 'tree'" in str(explain_prompt(f"{NINE} a tree", TOKENIZER))


@pytest.mark.parametrize(
    ("dialect", "prompt", "said"),
    [
        ("plain", "a (red:1.3) cat", ["'(red:1.3)'", "text", "a1111 or comfy", "weight 1.3"]),
        ("plain", "a cat++", ["'cat++'", "compel", "1.21"]),
        ("plain", "a BREAK b", ["'BREAK'", "a1111", "mark"]),
        ("plain", "a [b|c]", ["'[b|c]'", "a1111"]),
        ("a1111", "((x:1.1))", ["'x'", "weight 1.21", "comfy", "weight 1.1"]),
        ("comfy", "((x:1.1))", ["'x'", "weight 1.1;", "a1111", "weight 1.21"]),
        ("comfy", "a [x]", ["'[x]'", "text", "a1111", "0.9091"]),
        ("compel", "(x:1.3)", ["'x:1.3'", "text", "a1111 or comfy", "1.3"]),
        ("a1111", "[fire:1.1]", ["no weight"]),
    ],
)
def test_what_another_dialect_would_read_is_told(
    dialect: str, prompt: str, said: list[str]
) -> None:
    notes = " ".join(explain_prompt(prompt, TOKENIZER, dialect).notes)
    assert all(piece in notes for piece in said), notes


@pytest.mark.parametrize(
    ("dialect", "prompt"),
    [
        ("plain", "a red fox, on a tree."),
        ("plain", "an ice-cream - well-done; 'quoted' it's 3+4"),
        ("a1111", "a (red:1.3) (((fox))), [b] BREAK [c:d:0.4] AND e <lora:x:1>"),
        ("comfy", "a (red:1.3) fox"),
        ("compel", 'a (red fox)1.3, cat++ ("tree" dog)-'),
    ],
)
def test_usual_prompts_are_not_remarked_upon(dialect: str, prompt: str) -> None:
    assert not describe_other_dialects(prompt, dialect)
    assert not parse_prompt(prompt, dialect).notes
