"""Long texts in chunks: where each rule divides, and where every word went."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcore.prompt.chunks import Chunks, make_chunks
from sdcore.prompt.dialects import DIALECTS, parse_prompt
from sdcore.prompt.text import Steps
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
