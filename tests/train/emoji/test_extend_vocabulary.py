"""A text encoder with another vocabulary encodes what both can spell alike, alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sdcore.text.encoder import CLIPTextConfig, CLIPTextEncoder
from sdcore.text.tokenizer import END, START, Tokenizer
from train.emoji.data.vocabulary import learn_vocabulary
from train.emoji.extend_vocabulary import with_vocabulary

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


def test_a_new_token_points_where_its_pieces_do_and_is_as_long_as_a_known_word() -> None:
    old_vocabulary, _ = learn_vocabulary(OLD, 560)
    old = encoder(old_vocabulary)
    name = "text_model.embeddings.token_embedding.weight"
    rows = dict(old.named_parameters())[name]
    words = [i for token, i in old_vocabulary.items() if len(token) > len("a</w>")]
    with torch.no_grad():
        rows[words] = F.normalize(rows[words], dim=-1) * 3  # bytes are shorter
    new = with_vocabulary(old, old_vocabulary, {**old_vocabulary, "qzcat</w>": len(rows)})
    extended = dict(new.named_parameters())[name]
    assert torch.equal(extended[:-1], rows)
    pieces = [old_vocabulary[piece] for piece in ("q", "z", "cat</w>")]
    assert torch.allclose(extended[-1], 3 * F.normalize(rows[pieces].mean(0), dim=0), atol=1e-6)
