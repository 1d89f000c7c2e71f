"""Every backend against the written-out softmax: values, gradients, masks, controls."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from sdcore import attention
from sdcore.attention import BACKENDS, AttentionLayer, CrossAttention, SelfAttention, Site
from sdcore.attention_choice import unavailable, use_attention
from sdcore.attention_inputs import causal_mask, padding_mask

HERE = [name for name in BACKENDS if unavailable(name) is None]
SITE = Site("down", 0, kind="cross", name="down_blocks.0.attn2")


def by_hand(q, k, v, mask=None):
    """Attention in float64, one query at a time, without a softmax function."""
    batch, heads, queries, width = q.shape
    out = torch.zeros(batch, heads, queries, v.shape[-1], dtype=torch.float64)
    if mask is not None:
        mask = mask.expand(batch, heads, queries, k.shape[-2])
    for b in range(batch):
        for h in range(heads):
            for n in range(queries):
                weights = torch.exp(k[b, h].double() @ q[b, h, n].double() / width**0.5)
                if mask is not None:
                    weights = weights * mask[b, h, n]
                if weights.sum() > 0:
                    out[b, h, n] = (weights @ v[b, h].double()) / weights.sum()
    return out


def qkv(queries, keys, width=8, value_width=None, dtype=torch.float64, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(queries, width), (keys, width), (keys, value_width or width)]
    return [
        torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64).to(device, dtype)
        for shape in shapes
    ]


def masks(queries, keys):
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(2, 1, queries, keys, generator=generator) > 0.4
    some[..., 0] = True
    lengths = torch.tensor([keys, max(1, keys // 2)])
    return {
        "none": None,
        "padding": padding_mask(torch.arange(keys) < lengths[:, None]),
        "plane": torch.ones(queries, keys, dtype=torch.bool).tril(),
        "any": some,
    }


@pytest.mark.parametrize("kind", ["none", "padding", "plane", "any"])
def test_reference_is_the_formula(kind):
    q, k, v = qkv(5, 7)
    mask = masks(5, 7)[kind]
    torch.testing.assert_close(BACKENDS["reference"](q, k, v, mask), by_hand(q, k, v, mask))


@pytest.mark.parametrize("kind", ["none", "padding", "plane", "any"])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (64, 77), (600, 13), (7, 1100)])
@pytest.mark.parametrize("name", HERE)
def test_backends_agree_in_values_and_gradients(name, sizes, kind, device):
    mask = masks(*sizes)[kind]
    mask = None if mask is None else mask.to(device)
    results = []
    for backend in (BACKENDS["reference"], BACKENDS[name]):
        inputs = [x.requires_grad_() for x in qkv(*sizes, device=device)]
        out = backend(*inputs, mask)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=device).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", HERE)
def test_a_query_that_may_attend_nowhere_gets_zeros_and_finite_gradients(name, device):
    inputs = [x.requires_grad_() for x in qkv(5, 7, dtype=torch.float32, device=device)]
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool, device=device)
    mask[1, :, 3] = False
    out = BACKENDS[name](*inputs, mask)
    assert (out[1, :, 3] == 0).all() and (out[1, :, 2] != 0).any()
    for gradient in torch.autograd.grad(out.square().sum(), inputs):
        assert gradient.isfinite().all()
    assert (
        torch.autograd.grad(BACKENDS[name](*inputs, mask)[1, :, 3].sum(), inputs[0])[0] == 0
    ).all()


@pytest.mark.parametrize("name", HERE)
def test_scores_beyond_float16_do_not_overflow(name, dtype, device):
    """What `upcast_attention` is for: q·k is about 200,000 here, float16 ends at 65,504."""
    q, k, v = qkv(5, 7, dtype=dtype, device=device)
    out = BACKENDS[name](q * 250, k * 250, v)
    assert out.dtype == dtype and out.isfinite().all()
    expected = BACKENDS["reference"]((q * 250).double(), (k * 250).double(), v.double())
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_scores_stay_float32_under_autocast(name):
    q, k, v = qkv(5, 7, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = BACKENDS[name](q, k, v)
    torch.testing.assert_close(out, BACKENDS[name](q, k, v))


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("kind", ["none", "padding"])
def test_controls_linear_in_v_hold_on_every_backend(name, kind):
    """Re-weighting words, reading the map through an identity, and mixing two attentions."""
    q, k, v = qkv(6, 7, width=8)
    other_q, other_k, _ = qkv(6, 7, width=8, seed=5)
    mask = masks(6, 7)[kind]
    backend = BACKENDS[name]
    identity = torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7)
    weights = backend(q, k, identity, mask)  #             the map P itself, T wide instead of d
    other = backend(other_q, other_k, identity, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 6, dtype=torch.float64))

    scale = torch.linspace(0, 2, 7, dtype=torch.float64)[:, None]
    close = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(backend(q, k, scale * v, mask), weights @ (scale * v), **close)
    mixed = backend(other_q, other_k, scale * v, mask) + backend(q, k, (1 - scale) * v, mask)
    torch.testing.assert_close(mixed, other @ (scale * v) + weights @ ((1 - scale) * v), **close)


def test_chunked_loads_no_compiler_where_no_gradient_is_asked() -> None:
    code = "import sys, torch; from sdcore import BACKENDS; q = torch.randn(1, 1, 4, 8);"
    code += "BACKENDS['chunked'](q, q, q); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chunked_computes_scores_one_block_at_a_time(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 16)
    monkeypatch.setattr(attention, "KEY_CHUNK", 8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if function.overloadpacket is torch.ops.aten.exp:
                largest = max(largest, out.shape[-2] * out.shape[-1])
            return out

    inputs = [x.requires_grad_() for x in qkv(100, 90)]
    with Watch():
        BACKENDS["chunked"](*inputs).sum().backward()
    assert 0 < largest <= 16 * 8


# --- layers ------------------------------------------------------------------------------------


def test_layers_agree_with_torchs_multihead_attention():
    torch.manual_seed(0)
    ours = CrossAttention(12, 3, 20)
    theirs = nn.MultiheadAttention(12, 3, bias=True, kdim=20, vdim=20, batch_first=True)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.to_q.weight)
        theirs.k_proj_weight.copy_(ours.to_k.weight)
        theirs.v_proj_weight.copy_(ours.to_v.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.to_out[0].weight)
        theirs.out_proj.bias.copy_(ours.to_out[0].bias)
    x, text = torch.randn(2, 9, 12), torch.randn(2, 5, 20)
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    expected, _ = theirs(x, text, text, key_padding_mask=~real)
    torch.testing.assert_close(ours(x, text, padding_mask(real)), expected)


def test_causal_mask_hides_what_comes_later():
    layer = SelfAttention(12, 3)
    x = torch.randn(1, 6, 12)
    changed = x.clone()
    changed[:, 4:] += 1
    before, after = layer(x, causal_mask(6)), layer(changed, causal_mask(6))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_cross_attention_without_text_is_a_type_error():
    with pytest.raises(TypeError, match="text"):
        CrossAttention(8, 2, 8)(torch.randn(1, 3, 8))


@pytest.mark.parametrize("name", HERE)
def test_a_control_sees_the_site_and_can_replace_the_result(name):
    layer = CrossAttention(12, 3, 20, site=SITE)
    use_attention(layer, name)
    x, text = torch.randn(2, 6, 12), torch.randn(2, 5, 20)
    calls = []

    def keep(site, grid, q, k, v, attend):
        calls.append((site, grid, q.shape, k.shape, v.shape))
        return attend(q, k, v)

    plain = layer(x, text)
    assert torch.equal(layer(x, text, None, (2, 3), keep), plain)
    assert calls == [(SITE, (2, 3), (2, 3, 6, 4), (2, 3, 5, 4), (2, 3, 5, 4))]

    def silence(site, grid, q, k, v, attend):
        return attend(q, k, 0 * v)

    expected = layer.to_out(torch.zeros(2, 6, 12))
    torch.testing.assert_close(layer(x, text, None, (2, 3), silence), expected)


@pytest.mark.parametrize("name", HERE)
def test_attend_keeps_the_layers_mask_unless_a_control_brings_its_own(name):
    layer = CrossAttention(12, 3, 20, site=SITE)
    use_attention(layer, name)
    x, text, more = torch.randn(2, 6, 12), torch.randn(2, 5, 20), torch.randn(2, 9, 20)
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()

    def keep(site, grid, q, k, v, attend):
        return attend(q, k, v)

    def read_more(site, grid, q, k, v, attend):
        k, v = (
            y.unflatten(2, (3, -1)).transpose(1, 2) for y in (layer.to_k(more), layer.to_v(more))
        )
        return attend(q, k, v, mask=None)

    masked = layer(x, text, padding_mask(real), (2, 3), keep)
    torch.testing.assert_close(masked, layer(x, text[:, :3]))
    swapped = layer(x, text, padding_mask(real), (2, 3), read_more)
    torch.testing.assert_close(swapped, layer(x, more))


@pytest.mark.parametrize("name", HERE)
def test_a_layer_compiles_as_one_graph(name):
    torch.compiler.reset()
    layer = CrossAttention(12, 3, 20)
    use_attention(layer, name)
    x, text = torch.randn(2, 6, 12), torch.randn(2, 5, 20)
    mask = padding_mask(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool())
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, text, mask)
    torch.testing.assert_close(found, layer(x, text, mask))
    found.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_a_control_that_raises_leaves_the_layer_as_it_was():
    layer = CrossAttention(12, 3, 20, site=SITE)
    x, text = torch.randn(2, 6, 12), torch.randn(2, 5, 20)
    before, plain = dict(vars(layer)), layer(x, text)

    def broken(site, grid, q, k, v, attend):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        layer(x, text, None, (2, 3), broken)
    assert vars(layer) == before
    assert torch.equal(layer(x, text), plain)


@pytest.mark.parametrize("kind", ["none", "padding", "plane", "any"])
def test_xformers_is_called_in_its_own_layout(monkeypatch, kind):
    """A stand-in with the published signature; the kernel itself needs a GPU."""

    def memory_efficient_attention(query, key, value, attn_bias=None):  # (B, N, H, d)
        scores = torch.einsum("bnhd,bthd->bhnt", query, key) * query.shape[-1] ** -0.5
        if attn_bias is not None:
            assert attn_bias.shape == scores.shape and attn_bias.dtype == query.dtype
            scores = scores + attn_bias
        return torch.einsum("bhnt,bthd->bnhd", scores.softmax(-1), value)

    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    q, k, v = qkv(5, 7)
    mask = masks(5, 7)[kind]
    if kind == "any":
        mask[0, :, 2] = False
    found = BACKENDS["xformers"](q, k, v, mask)
    torch.testing.assert_close(found, BACKENDS["reference"](q, k, v, mask))


def test_layers_of_other_models_can_take_part():
    """A layer with its own projections needs only `attend`."""

    class Own(AttentionLayer):
        def __init__(self):
            super().__init__(8, heads=2)
            self.q_proj = nn.Linear(8, 8)

        def forward(self, x):
            return self.attend(self.q_proj(x), x, x, causal_mask(x.shape[1]))

    layer, x = Own(), torch.randn(2, 5, 8)
    results = []
    for name in HERE:
        assert use_attention(layer, name).layers == 1
        results.append(layer(x))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
