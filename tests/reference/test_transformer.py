"""Our encoder-decoder Transformer against torch.nn.Transformer with the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sdcore.attention import BACKENDS
from sdcore.attention_choice import use_attention
from sdcore.sequence.transformer import Transformer, TransformerConfig

WIDTH, HEADS, LAYERS = 24, 4, 2
TOLERANCE = {
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.float64: {"rtol": 0, "atol": 1e-13},
}
USABLE = [name for name in BACKENDS if name != "xformers"]


def make_pair(dtype=torch.float32, source_words=17, target_words=13):
    """Our model, torch's two stacks, and the names of equal parameters, ours to torch's.

    torch puts a LayerNorm after each stack, which the paper does not have; `norm=None` of its own
    TransformerEncoder and TransformerDecoder leaves it out.
    """
    torch.manual_seed(5)
    ours = Transformer(TransformerConfig(source_words, target_words, WIDTH, HEADS, LAYERS))
    with torch.no_grad():  # biases and norms are born as 0 and 1, which would hide errors in them
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    how = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 4 * WIDTH, "dropout": 0.0}
    encoder = nn.TransformerEncoderLayer(**how, batch_first=True)
    decoder = nn.TransformerDecoderLayer(**how, batch_first=True)
    theirs = nn.Transformer(
        d_model=WIDTH,
        nhead=HEADS,
        batch_first=True,
        custom_encoder=nn.TransformerEncoder(encoder, LAYERS, enable_nested_tensor=False),
        custom_decoder=nn.TransformerDecoder(decoder, LAYERS),
    )
    names = equal_names()
    state, mine = theirs.state_dict(), ours.state_dict()
    for name, parts in names.items():
        assert state[name].shape == torch.cat([mine[part] for part in parts]).shape, name
        state[name] = torch.cat([mine[part] for part in parts])
    theirs.load_state_dict(state)
    used = {part for parts in names.values() for part in parts}
    assert set(mine) - used == {"source_words.weight", "target_words.weight"}
    assert set(names) == set(state)
    return ours.to(dtype), theirs.to(dtype), names


def equal_names() -> dict[str, list[str]]:
    """torch's parameter -> ours, which lie in it one below the other."""
    names: dict[str, list[str]] = {}
    for stack in ("encoder", "decoder"):
        layers = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
        norms = 3 if stack == "decoder" else 2
        for block in range(LAYERS):
            for ours, theirs in list(layers.items())[: norms - 1]:
                ours, theirs = f"{stack}.{block}.{ours}", f"{stack}.layers.{block}.{theirs}"
                for kind in ("weight", "bias"):
                    names[f"{theirs}.in_proj_{kind}"] = [f"{ours}.to_{x}.{kind}" for x in "qkv"]
                    names[f"{theirs}.out_proj.{kind}"] = [f"{ours}.to_out.{kind}"]
            ours, theirs = f"{stack}.{block}", f"{stack}.layers.{block}"
            for kind in ("weight", "bias"):
                names[f"{theirs}.linear1.{kind}"] = [f"{ours}.feed_forward.0.{kind}"]
                names[f"{theirs}.linear2.{kind}"] = [f"{ours}.feed_forward.2.{kind}"]
                for i in range(1, norms + 1):
                    names[f"{theirs}.norm{i}.{kind}"] = [f"{ours}.norm{i}.{kind}"]
    return names


def torch_logits(ours, theirs, source, target, real):
    """What torch's stacks make of our embeddings and positions."""
    embedded = [
        ours.positions(words(ids) * math.sqrt(WIDTH))
        for words, ids in ((ours.source_words, source), (ours.target_words, target))
    ]
    padding = None if real is None else ~real
    out = theirs(
        *embedded,
        tgt_mask=torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    return out @ ours.target_words.weight.T


def make_ids():
    generator = torch.Generator().manual_seed(2)
    source = torch.randint(17, (3, 9), generator=generator)
    target = torch.randint(13, (3, 7), generator=generator)
    real = torch.arange(9) < torch.tensor([[9], [4], [1]])
    return source, target, real


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padded", [False, True])
def test_same_values_and_gradients(padded, dtype, backend):
    ours, theirs, names = make_pair(dtype)
    use_attention(ours, backend)
    source, target, real = make_ids()
    real = real if padded else None

    mine = ours(source, target, real)
    mine.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    wanted = torch_logits(ours, theirs, source, target, real)
    wanted.square().mean().backward()

    torch.testing.assert_close(mine, wanted, **TOLERANCE[dtype])
    for name, parameter in theirs.named_parameters():
        gradient = torch.cat([gradients[part] for part in names[name]])
        torch.testing.assert_close(gradient, parameter.grad, **TOLERANCE[dtype], msg=name)
        assert name.endswith("in_proj_bias") or gradient.abs().max() > 1e-4, name
    for name in ("source_words.weight", "target_words.weight"):
        wanted_gradient = dict(ours.named_parameters())[name].grad
        torch.testing.assert_close(gradients[name], wanted_gradient, **TOLERANCE[dtype])


def test_the_mask_matters_to_the_reference_too():
    """Without this, both could ignore it alike."""
    ours, theirs, _ = make_pair()
    source, target, real = make_ids()
    with torch.no_grad():
        wanted = torch_logits(ours, theirs, source, target, real)
        unmasked = ours(source, target)
    assert (unmasked - wanted)[1:].abs().amax() > 1e-3
