"""Which backend layers get: by name, by view, and by a measurement that is remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sdcore import attention_choice
from sdcore.attention import BACKENDS, AttentionLayer, CrossAttention, SelfAttention
from sdcore.attention_choice import unavailable, use_attention, with_attention
from sdcore.errors import UsageError
from sdcore.unet.config import UNetConfig
from sdcore.unet.unet import UNet
from tests.tiny import make_unet

HERE = [name for name in BACKENDS if unavailable(name) is None]


def model():
    return nn.ModuleDict({"one": SelfAttention(8, 2), "two": CrossAttention(8, 2, 8)})


@pytest.mark.parametrize("name", HERE)
def test_use_attention_sets_every_layer_and_says_what_runs(name):
    both = model()
    choice = use_attention(both, name)
    assert [m.backend for m in both.values()] == [name, name]
    assert (choice.backend, choice.layers) == (name, 2)
    kernels = {"sdpa": "torch ", "native": "sdcore.kernels "}
    assert choice.kernel.startswith(kernels.get(name, "sdcore.attention."))
    assert not any("backend" in key for key in both.state_dict())


def test_the_chosen_backend_is_the_one_that_runs(monkeypatch):
    both = model()
    ran = []
    for name in ("sdpa", "chunked"):
        real = BACKENDS[name]
        spy = lambda *a, name=name, real=real: ran.append(name) or real(*a)  # noqa: E731
        monkeypatch.setitem(BACKENDS, name, spy)
    use_attention(both, "chunked")
    both["one"](torch.randn(1, 4, 8))
    use_attention(both, "sdpa")
    both["one"](torch.randn(1, 4, 8))
    assert ran == ["chunked", "sdpa"]


@pytest.mark.parametrize("name", HERE)
def test_a_view_with_another_backend_leaves_the_model_its_own(name):
    both, x = model(), torch.randn(1, 4, 8)
    use_attention(both, "reference")
    expected = both["one"](x)
    other = with_attention(both, name)
    assert [m.backend for m in other.values()] == [name, name]
    assert [m.backend for m in both.values()] == ["reference", "reference"]
    assert other["one"].to_q is both["one"].to_q
    torch.testing.assert_close(other["one"](x), expected)
    assert with_attention(both["one"], name).backend == name
    with pytest.raises(UsageError, match="'flash3'"):
        with_attention(both, "flash3")


def test_auto_says_why():
    both = model()
    assert use_attention(both.train(), "auto").backend == "reference"
    choice = use_attention(both.eval(), "auto")
    assert choice.backend == "sdpa" and "cpu" in choice.why


def test_an_unknown_or_absent_backend_lists_what_is_there(monkeypatch):
    with pytest.raises(UsageError, match=r"'flash3'[\s\S]*sdpa \(available\)[\s\S]*auto"):
        use_attention(model(), "flash3")
    monkeypatch.setattr(attention_choice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="xformers is not installed"):
        use_attention(model(), "xformers")
    with pytest.raises(UsageError, match="no attention layer"):
        use_attention(nn.Linear(2, 2), "sdpa")


needs_native = pytest.mark.skipif(unavailable("native") is not None, reason="no native library")


@needs_native
def test_auto_measures_once_for_a_machine_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path / "new"))
    unet, gains = large_unet(), iter([1.5, 0.9])
    monkeypatch.setattr(attention_choice, "_gain", lambda *_: next(gains))
    choice = use_attention(unet, "auto")
    assert choice.backend == "native" and "1.50 x" in choice.why
    assert {m.backend for m in unet.modules() if isinstance(m, AttentionLayer)} == {"native"}
    assert use_attention(unet, "auto") == choice  # remembered: the second gain is not asked for
    known = tmp_path / "new" / "measured.json"
    assert list(json.loads(known.read_text()).values()) == [1.5]
    known.write_text("{torn")
    assert use_attention(unet, "auto").backend == "sdpa"
    assert list(json.loads(known.read_text()).values()) == [0.9]


@needs_native
def test_the_measurement_counts_every_layer_in_its_shape() -> None:
    unet = large_unet()
    layers = [layer for layer in unet.modules() if isinstance(layer, SelfAttention)]
    crossing = [layer for layer in unet.modules() if isinstance(layer, CrossAttention)]
    shapes = attention_choice._shapes(unet, [*layers, *crossing])
    assert sum(shapes.values()) == len(layers) + len(crossing)
    sites = {(max(1, 32 >> layer.site.level) ** 2) for layer in layers if layer.site}
    assert {shape.queries for shape in shapes if shape.queries == shape.keys} == sites
    assert attention_choice._gain(shapes, torch.float32) > 0


def test_small_grids_and_other_types_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "_gain", lambda *_: pytest.fail("measured"))
    assert use_attention(large_unet().double(), "auto").backend == "sdpa"
    assert use_attention(tiny_unet(), "auto").backend == "sdpa"


def large_unet() -> UNet:
    """A tiny UNet for latents of 32 x 32."""
    return tiny_unet(sample_size=32)


def tiny_unet(**changes: object) -> UNet:
    return UNet(UNetConfig.from_dict(dict(make_unet(**changes).config))).eval()
