"""A prompt from text to ids to states: what each axis of the records holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdcore import TextToImage
from sdcore.errors import UsageError
from sdcore.prompt.dialects import find_dialect
from sdcore.prompt.encoder import Encoder
from sdcore.prompt.encoding import EncodedPrompt, TokenizedPrompt, encode, pad, tokenize
from sdcore.prompt.text import Steps

LONG = "a cat, " * 40  # two chunks; 80 tokens


@pytest.fixture(scope="module")
def encoders(sdxl_folder: Path) -> list[Encoder]:
    readers = TextToImage.from_pretrained(sdxl_folder).readers
    return [Encoder(*reader, penultimate=True, pooled=True) for reader in readers]


def tokenized(
    prompt: str, encoders: list[Encoder], dialect: str, steps: int = 4
) -> TokenizedPrompt:
    how = find_dialect(dialect)
    tokenizers = [encoder.tokenizer for encoder in encoders]
    return tokenize(how.parse(prompt, False), tokenizers, how, Steps(steps))


def encoded(prompt: str, encoders: list[Encoder], dialect: str, steps: int = 4) -> EncodedPrompt:
    how = find_dialect(dialect)
    with torch.no_grad():
        read = tokenized(prompt, encoders, dialect, steps)
        return encode(read, encoders, how, prompt=prompt)


def test_a_plain_prompt_is_one_of_everything(encoders) -> None:
    prompt = "a (red:1.3) [cat|dog] AND a fox BREAK"
    (part,) = tokenized(prompt, encoders, "plain").parts
    for timeline, encoder in zip(part.by_encoder, encoders, strict=True):
        (text,) = timeline.items
        (clause,) = text.clauses
        (chunks,) = clause.passages
        assert torch.equal(chunks.ids, encoder.tokenizer([prompt]).ids)
        assert (chunks.weights == 1).all() and text.tokens.spans == chunks.spans
    (part,) = encoded(prompt, encoders, "plain").parts
    (text,) = part.texts.items
    with torch.no_grad():
        states = [e.text_encoder(e.tokenizer([prompt]).ids).hidden_states[-2][0] for e in encoders]
        pooled = encoders[1].text_encoder(encoders[1].tokenizer([prompt]).ids).pooled[0]
    assert torch.equal(text.states, torch.cat(states, dim=-1)) and torch.equal(text.pooled, pooled)


def test_parts_texts_in_time_and_encoders(encoders) -> None:
    read = tokenized("a [cat:dog:0.5] AND a fox :0.5", encoders, "a1111")
    assert [part.weight for part in read.parts] == [1, 0.5]
    first, second = read.parts
    assert len(first.by_encoder) == 2 and first.by_encoder[0].last_steps == (2, 4)
    words = [[span.word for span in text.tokens.spans] for text in first.by_encoder[1].items]
    assert words == [["a", "cat"], ["a", "dog"]]
    assert len(second.by_encoder[0].items) == 1
    # SDXL's second tokenizer fills up with another token than the first
    one, two = (timeline.at(0).tokens.ids for timeline in first.by_encoder)
    assert torch.equal(one[0, :4], two[0, :4]) and one[0, -1] != two[0, -1]


def test_texts_that_stand_side_by_side_are_equally_long(encoders) -> None:
    read = tokenized(f"a [cat:{LONG}:0.5] AND a fox", encoders, "a1111")
    for timeline in read.parts[0].by_encoder:
        assert [len(text.tokens.ids) for text in timeline.items] == [2, 2]
        assert timeline.items[0].tokens.lengths == (2, 0)
    assert len(read.parts[1].by_encoder[0].at(0).tokens.ids) == 1
    read = tokenized(f'("a cat", "{LONG}").blend(1, 1)', encoders, "compel")
    for timeline in read.parts[0].by_encoder:
        (clause,) = timeline.at(0).clauses
        assert [len(passage.ids) for passage in clause.passages] == [2, 2]
    read = tokenized(f'("a cat", "{LONG}").and()', encoders, "compel")
    counts = [len(c.passages[0].ids) for c in read.parts[0].by_encoder[0].at(0).clauses]
    assert counts == [1, 2] and encoded(f'("a", "{LONG}").and()', encoders, "compel").length == 231


def test_zeros_stand_for_no_prompt(encoders) -> None:
    prompt = encoded("a [cat:dog:0.5] AND a fox :0.5", encoders, "a1111")
    assert not prompt.is_single
    zeros = prompt.zeros()
    assert zeros.is_single and zeros.parts[0].texts.last_steps == (2, 4)
    for text in zeros.parts[0].texts.items:
        assert text.pooled is not None and not text.states.any() and not text.pooled.any()


def test_a_prompt_is_filled_up_with_empty_prompts(encoders) -> None:
    short, empty = (encoded(prompt, encoders, "compel") for prompt in ("a cat", ""))
    with torch.no_grad():
        padded = pad(short, 231, encoders)
    (text,), (before,) = padded.parts[0].texts.items, short.parts[0].texts.items
    assert padded.length == 231 and text.tokens.ids.shape == (3, 77)
    (nothing,) = empty.parts[0].texts.items
    assert torch.equal(text.states, torch.cat([before.states, *[nothing.states] * 2]))


def test_each_chunk_is_encoded_once_at_whatever_layer(encoders, monkeypatch) -> None:
    encoder, calls = encoders[0], []
    other = encoder.with_clip_skip(1)
    forward = encoder.text_encoder.forward
    monkeypatch.setattr(
        encoder.text_encoder, "forward", lambda *ids: calls.append(ids) or forward(*ids)
    )
    ids = encoder.tokenizer(["a tree in the photo"]).ids
    with torch.no_grad():
        read, skipped = encoder.states(ids), other.states(ids)
        assert len(calls) == 1 and not torch.equal(read, skipped)
        encoder.states(ids, torch.ones_like(ids, dtype=torch.bool))
        assert len(calls) == 2
    with pytest.raises(UsageError, match="clip_skip"):
        encoder.with_clip_skip(3)
