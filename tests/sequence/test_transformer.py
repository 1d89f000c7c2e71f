"""The lesson's encoder-decoder learns, hides the future and the padding; the spatial one fits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sdcore.attention import Site
from sdcore.attention_choice import use_attention
from sdcore.errors import UsageError
from sdcore.positions import LearnedPositions, SinusoidalPositions, sinusoid
from sdcore.sequence.decoding import greedy
from sdcore.sequence.transformer import EncoderBlock, Transformer, TransformerConfig
from sdcore.unet.spatial_transformer import GEGLU, SpatialTransformer


def tiny(**settings):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(11, 13, width=16, heads=2, **settings)).eval()


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
    with torch.no_grad():  # in the memory of one half
        assert torch.equal(layer(x), layer(x)) and torch.equal(layer(x), layer(x.requires_grad_()))
    layer(x).square().sum().backward()
    y = (x.detach() @ layer.proj.weight.T + layer.proj.bias).detach().requires_grad_()
    (y[..., :5] * torch.nn.functional.gelu(y[..., 5:])).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad @ layer.proj.weight)


def test_an_encoder_without_positions_does_not_know_the_order():
    block, x = EncoderBlock(16, 2), torch.randn(1, 5, 16)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])
    placed = SinusoidalPositions()
    assert not torch.allclose(block(placed(x[:, order])), block(placed(x))[:, order], atol=1e-3)


def test_the_decoder_cannot_see_the_future():
    model = tiny()
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


@pytest.mark.parametrize("pieces", [[1] * 7, [3, 1, 3], [7]])
def test_kept_keys_and_values_give_what_all_words_at_once_give(pieces):
    model = tiny().double()
    source, target = torch.randint(11, (3, 5)), torch.randint(13, (3, 7))
    real = torch.arange(5) < torch.tensor([[5], [2], [4]])
    state, logits = model.start(source, real), []
    for words in target.split(pieces, dim=1):
        piece, state = model.step(words, state)
        logits.append(piece)
    wanted = model(source, target, real)
    torch.testing.assert_close(torch.cat(logits, dim=1), wanted, rtol=0, atol=1e-13)
    assert [k.shape for k, _ in state.words] == [(3, 7, 16)] * 2


def test_a_state_is_not_changed_by_the_steps_taken_from_it():
    model, source = tiny(), torch.randint(11, (2, 5))
    _, state = model.step(torch.tensor([[1], [2]]), model.start(source))
    word = torch.tensor([[3], [4]])
    once, _ = model.step(word, state)
    model.step(word + 1, state)
    again, _ = model.step(word, state)
    assert torch.equal(once, again)
    swapped, _ = model.step(word.flip(0), state.pick(torch.tensor([1, 0])))
    torch.testing.assert_close(swapped, once.flip(0))


def test_it_learns_to_reverse_a_sequence():
    """The target is the source backwards: possible only by cross-attention and positions."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(10, 11, width=32, heads=2, layers=1))
    use_attention(model, "reference")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = torch.full((64, 1), 10)
    for _ in range(120):
        source = torch.randint(10, (64, 4))
        answer = source.flip(1)
        logits = model(source, torch.cat([start, answer[:, :-1]], dim=1))
        loss = F.cross_entropy(logits.transpose(1, 2), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(10, (64, 4))
    written = greedy(model, source, first=10, last=10, most=4)
    assert (written == source.flip(1)).float().mean() > 0.95


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
