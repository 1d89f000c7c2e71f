"""The lesson's encoder-decoder learns, hides the future and the padding; the spatial one fits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sdcore.attention import Site
from sdcore.errors import UsageError
from sdcore.transformer import (
    GEGLU,
    EncoderBlock,
    LearnedPositions,
    SinusoidalPositions,
    SpatialTransformer,
    Transformer,
    TransformerConfig,
    sinusoid,
)


def tiny(positions="sinusoidal", **settings):
    torch.manual_seed(0)
    return Transformer(
        TransformerConfig(11, 13, width=16, heads=2, positions=positions, **settings)
    ).eval()


def test_sinusoid_is_the_formula():
    waves = sinusoid(torch.tensor([0.0, 3.0, 250.5]), 9)
    for row, position in enumerate([0.0, 3.0, 250.5]):
        for i in range(4):
            angle = position / 10000 ** (i / 4)
            assert waves[row, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert waves[row, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)
    assert (waves[:, 8] == 0).all()
    flipped = sinusoid(torch.tensor([3.0]), 8, cosine_first=True)
    torch.testing.assert_close(flipped, sinusoid(torch.tensor([3.0]), 8).roll(4, dims=1))
    slowest = sinusoid(torch.tensor([5000.0]), 8, shift=1)[0, 3].item()
    assert slowest == pytest.approx(math.sin(0.5), abs=1e-5)


def test_positions_tell_places_apart():
    same = torch.ones(1, 6, 8)
    learned = LearnedPositions(6, 8)
    for positions in (SinusoidalPositions(), learned):
        out = positions(same)[0]
        distances = torch.cdist(out, out) + torch.eye(6)
        assert distances.min() > 0.01
    with pytest.raises(UsageError, match="7 tokens"):
        learned(torch.ones(1, 7, 8))


def test_geglu_gates_one_half_with_the_other():
    layer, x = GEGLU(3, 5), torch.randn(2, 4, 3)
    y = x @ layer.proj.weight.T + layer.proj.bias
    expected = y[..., :5] * y[..., 5:] * 0.5 * (1 + torch.erf(y[..., 5:] / math.sqrt(2)))
    torch.testing.assert_close(layer(x), expected)


def test_an_encoder_without_positions_does_not_know_the_order():
    block, x = EncoderBlock(16, 2), torch.randn(1, 5, 16)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])
    placed = SinusoidalPositions()
    assert not torch.allclose(block(placed(x[:, order])), block(placed(x))[:, order], atol=1e-3)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_the_decoder_cannot_see_the_future(positions):
    model = tiny(positions)
    source = torch.randint(11, (2, 7))
    target = torch.randint(13, (2, 6))
    later = target.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 13
    before, after = model(source, target), model(source, later)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_of_the_source_changes_nothing():
    model = tiny()
    source, target = torch.randint(11, (2, 5)), torch.randint(13, (2, 6))
    padded = torch.cat([source, torch.randint(11, (2, 3))], dim=1)
    real = torch.arange(8).expand(2, 8) < 5
    torch.testing.assert_close(model(padded, target, real), model(source, target))
    assert not torch.allclose(model(padded, target), model(source, target), atol=1e-4)


def test_it_learns_to_reverse_a_sequence():
    """The target is the source backwards: possible only by cross-attention and positions."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(10, 11, width=32, heads=2, layers=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start = torch.full((64, 1), 10)
    for _ in range(400):
        source = torch.randint(10, (64, 6))
        answer = source.flip(1)
        logits = model(source, torch.cat([start, answer[:, :-1]], dim=1))
        loss = F.cross_entropy(logits.transpose(1, 2), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(10, (64, 6))
    words = start
    for _ in range(6):  # greedy: each word is chosen from those that the model itself wrote
        words = torch.cat([words, model(source, words)[:, -1:].argmax(-1)], dim=1)
    assert (words[:, 1:] == source.flip(1)).float().mean() > 0.95


def test_an_unknown_kind_of_positions_is_refused():
    with pytest.raises(UsageError, match="rotary"):
        TransformerConfig(5, 5, positions="rotary")


@pytest.mark.parametrize("linear", [False, True])
def test_the_spatial_transformer_reads_the_grid_row_by_row(linear):
    """Moving two positions of the map moves their results; order carries no other meaning."""
    torch.manual_seed(0)
    model = SpatialTransformer(8, 2, 6, layers=2, groups=4, linear_projection=linear)
    x, text = torch.randn(2, 8, 3, 5), torch.randn(2, 7, 6)
    out = model(x, text)
    assert out.shape == x.shape and out.is_contiguous()
    mirrored = model(x.flip(-1), text)
    torch.testing.assert_close(mirrored, out.flip(-1))
    like = x.to(memory_format=torch.channels_last)
    assert model(like, text).is_contiguous(memory_format=torch.channels_last)


def test_controls_get_sites_and_the_grid():
    site = Site("up", 1, 2, name="up_blocks.0.attentions.2")
    model = SpatialTransformer(8, 2, 6, layers=2, groups=4, site=site)
    seen = []

    def watch(site, grid, q, k, v, attend):
        seen.append((str(site), site.name, grid, k.shape[2]))
        return attend(q, k, v)

    model(torch.randn(1, 8, 3, 5), torch.randn(1, 7, 6), control=watch)
    stem = "up_blocks.0.attentions.2.transformer_blocks"
    assert seen == [
        ("up.1.2.0 self", f"{stem}.0.attn1", (3, 5), 15),
        ("up.1.2.0 cross", f"{stem}.0.attn2", (3, 5), 7),
        ("up.1.2.1 self", f"{stem}.1.attn1", (3, 5), 15),
        ("up.1.2.1 cross", f"{stem}.1.attn2", (3, 5), 7),
    ]
