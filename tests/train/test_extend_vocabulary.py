"""A text encoder with another vocabulary encodes what both can spell alike, alike."""

from __future__ import annotations

import torch

from sdcore.text_encoder import CLIPTextConfig, CLIPTextEncoder
from sdcore.tokenizer import END, START, Tokenizer
from train.data.vocabulary import learn_vocabulary
from train.extend_vocabulary import with_vocabulary

OLD = ["a fox on red", "a cat on red", "a small fox", "an owl on red"] * 10
NEW = [*OLD, *["一只狐狸，红色背景", "a gorilla on red", "a foxglove"] * 10]


def encoder(vocabulary: dict[str, int]) -> CLIPTextEncoder:
    torch.manual_seed(0)
    return CLIPTextEncoder(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            pad_token_id=vocabulary[END],
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
        )
    ).eval()


def test_what_the_old_vocabulary_could_say_reads_the_same() -> None:
    old_vocabulary, old_merges = learn_vocabulary(OLD, 560)
    new_vocabulary, new_merges = learn_vocabulary(NEW, 640)
    assert not new_vocabulary.keys() <= old_vocabulary.keys()
    old = encoder(old_vocabulary)
    new = with_vocabulary(old, old_vocabulary, new_vocabulary).eval()
    before = Tokenizer.from_vocab(old_vocabulary, old_merges, max_length=16)
    after = Tokenizer.from_vocab(new_vocabulary, new_merges, max_length=16)
    for text in ("a fox on red", "a small fox", "an owl on red"):
        one, two = before([text]), after([text])
        assert one.spans == two.spans, "these words are one token in both"
        a, b = old(one.ids), new(two.ids)
        assert torch.equal(a.last_hidden_state, b.last_hidden_state)
        assert torch.equal(a.pooled, b.pooled)


def test_a_new_token_begins_as_the_mean_of_its_pieces() -> None:
    old_vocabulary, _ = learn_vocabulary(OLD, 560)
    old = encoder(old_vocabulary)
    vocabulary = {**old_vocabulary, "qzcat</w>": len(old_vocabulary)}
    new = with_vocabulary(old, old_vocabulary, vocabulary)
    name = "text_model.embeddings.token_embedding.weight"
    rows, old_rows = new.state_dict()[name], old.state_dict()[name]
    assert torch.equal(rows[:-1], old_rows)
    pieces = [old_vocabulary[piece] for piece in ("q", "z", "cat</w>")]
    assert torch.allclose(rows[-1], old_rows[pieces].mean(0))


def test_chinese_words_are_one_token_within_a_run_of_letters_and_at_its_end() -> None:
    words = ["一只", "狐狸", "在", "左边", "猫", "熊猫", "大"]
    vocabulary, merges = learn_vocabulary([*OLD, *words], 2000)
    tokenizer = Tokenizer.from_vocab(vocabulary, merges, max_length=16)
    for text in ("一只狐狸在左边", "大熊猫在一只猫左边", "左边在狐狸"):
        spans = tokenizer(text).spans[0]
        assert all(span.word in words and len(span.positions) == 1 for span in spans)
        assert "".join(span.word for span in spans) == text
