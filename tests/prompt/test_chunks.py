"""Long texts in chunks: where each rule divides, and where every word went."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcore.prompt.chunks import Chunks, make_chunks
from sdcore.prompt.dialects import DIALECTS, parse_prompt
from sdcore.prompt.explain import explain_prompt
from sdcore.prompt.other_readings import describe_other_readings
from sdcore.prompt.text import Steps
from sdcore.prompt.tokens import read_tokens
from sdcore.text.tokenizer import Piece, Tokenizer
from tests.tiny import vocabulary

LENGTH = 12  # room for ten tokens


def make_tokenizer(cls: type[Tokenizer] = Tokenizer, length: int = LENGTH) -> Tokenizer:
    vocab, merges = vocabulary()
    return cls.from_vocab(vocab, merges, max_length=length, pad_token="!")


TOKENIZER = make_tokenizer()


def chunks_of(prompt: str, dialect: str, tokenizer: Tokenizer = TOKENIZER) -> Chunks:
    (part,) = parse_prompt(prompt, dialect).parts
    ((clause,),) = part.timeline(Steps(1)).items
    return make_chunks(clause.passages[0], tokenizer, DIALECTS[dialect].divide)


def texts_of(chunks: Chunks, tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    assert (chunks.ids[:, 0] == tokenizer.start_id).all()
    for row, length in zip(chunks.ids, chunks.lengths, strict=True):
        assert row[length + 1] == tokenizer.end_id
        assert (row[length + 2 :] == tokenizer.pad_id).all()
    return [
        tokenizer.decode(row[1 : length + 1])
        for row, length in zip(chunks.ids, chunks.lengths, strict=True)
    ]


NINE = "a a a a a a a a a"
RULES = [
    ("plain", f"{NINE} a cat dog", [f"{NINE} a"]),
    ("a1111", "", [""]),
    ("a1111", f"{NINE} a", [f"{NINE} a"]),
    ("a1111", f"{NINE} a cat", [f"{NINE} a", "cat"]),
    ("a1111", "a a a, a a a a a a cat", ["a a a ,", "a a a a a a cat"]),
    ("a1111", "a a a, a a a a a a , cat", ["a a a , a a a a a a", ", cat"]),
    ("a1111", "a a, a, a a a a a cat", ["a a , a ,", "a a a a a cat"]),
    ("a1111", "a BREAK cat", ["a", "cat"]),
    ("a1111", "BREAK a BREAK BREAK cat BREAK", ["", "a", "", "cat"]),
    ("comfy", f"{NINE} a cat", [f"{NINE} a", "cat"]),
    ("comfy", "a a a a a a (a a a a a a:1.2) a", ["a a a a a a", "a a a a a a a"]),
    ("comfy", "a a a a (a a a a a a a a:1.2)", ["a a a a a a a a a a", "a a"]),
    ("comfy", f"(a:1.2) {NINE} (cat:1.2)", [f"a {NINE}", "cat"]),
    ("compel", f"{NINE} a cat", [f"{NINE} a", "cat"]),
    ("compel", "a a. a a, a a a a a a", ["a a .", "a a , a a a a a a"]),
    ("compel", "a a a a, a a a a a a", ["a a a a ,", "a a a a a a"]),
    ("compel", "a a a a a a a a xyz cat", ["a a a a a a a a", "xyz cat"]),
    ("compel", "x" * 13, ["x" * 10, "x" * 3]),
]


@pytest.mark.parametrize(("dialect", "prompt", "expected"), RULES)
def test_where_a_long_text_is_divided(dialect: str, prompt: str, expected: list[str]) -> None:
    assert texts_of(chunks_of(prompt, dialect)) == expected


@pytest.mark.parametrize("distance", [20, 21])
def test_a_comma_counts_up_to_twenty_tokens_back(distance: int) -> None:
    tokenizer = make_tokenizer(length=42)
    prompt = "a " * (40 - distance) + "," + " a" * (distance - 1) + " cat"
    first, second = texts_of(chunks_of(prompt, "a1111", tokenizer), tokenizer)
    assert second == ("a " * 19 + "cat" if distance == 20 else "cat")
    assert first.endswith(",") == (distance == 20)


class LearnedWord(Tokenizer):
    """Reads "cat" as four vectors that belong together."""

    def pieces(self, text: str) -> list[Piece]:
        cat = self.id_of("cat</w>")
        return [
            Piece(p.id, p.start, p.end, joined=i > 0)
            for p in super().pieces(text)
            for i in range(4 if p.id == cat else 1)
        ]


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "compel"])
def test_a_learned_word_is_never_divided(dialect: str) -> None:
    tokenizer = make_tokenizer(LearnedWord)
    for before in range(12):
        chunks = chunks_of("a " * before + "cat fox", dialect, tokenizer)
        (cat,) = [span for span in chunks.spans if span.word == "cat"]
        assert len(cat.positions) == 4
        assert sum(chunks.lengths) == before + 5


WORDS = st.lists(
    st.sampled_from(
        ["a", "cat", "photo", ",", ".", "xyz", "é", "(red fox:1.2)", "BREAK", "fox-ox"]
    ),
    max_size=40,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.sampled_from(sorted(DIALECTS)))
def test_every_token_is_kept_in_order(prompt: str, dialect: str) -> None:
    chunks = chunks_of(prompt, dialect)
    (part,) = parse_prompt(prompt, dialect).parts
    ((clause,),) = part.timeline(Steps(1)).items
    pieces = [p.id for f in clause.passages[0] for p in TOKENIZER.pieces(f.text.text)]
    weights = [f.weight for f in clause.passages[0] for _ in TOKENIZER.pieces(f.text.text)]
    rows = list(zip(chunks.ids, chunks.weights, chunks.lengths, strict=True))
    found = [id for ids, _, length in rows for id in ids[1 : length + 1].tolist()]
    weighed = [w for _, row, length in rows for w in row[1 : length + 1].tolist()]
    kept = len(pieces) if dialect != "plain" else LENGTH - 2
    assert found == pieces[:kept] and weighed == pytest.approx(weights[:kept])
    assert bool(chunks.cut) == (len(pieces) > kept)
    texts_of(chunks)
    check_spans(prompt, chunks, found, kept)


def check_spans(prompt: str, chunks: Chunks, found: Sequence[int], kept: int) -> None:
    """Every token belongs to one word; words stand in the prompt where they say."""
    ids = chunks.ids.flatten().tolist()
    covered = [position for span in chunks.spans for position in span.positions]
    assert [ids[position] for position in covered] == list(found)
    for span in chunks.spans:
        assert prompt[span.start : span.end] == span.word


def test_a_word_that_is_divided_has_a_span_in_each_chunk() -> None:
    chunks = chunks_of(f"{NINE} xyz", "a1111")
    spans = [span for span in chunks.spans if span.word == "xyz"]
    assert [list(span.positions) for span in spans] == [[10], [13, 14]]
    assert {(span.start, span.end) for span in spans} == {(18, 21)}


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
    assert not describe_other_readings(prompt, dialect)
    assert not parse_prompt(prompt, dialect).notes
