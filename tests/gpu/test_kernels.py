"""On a CUDA device: every backend and every kernel of torch's against the reference, in every type.

Skipped without one. Nothing here has a time limit; `python -m bench.heatmap_cost --device cuda`
prints times.
"""

from __future__ import annotations

import argparse

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.heatmap_cost import Bench
from sdcore.attention import BACKENDS
from sdcore.attention_choice import unavailable
from sdcore.control.heatmaps import marked_attention
from tests.explicit_map import attention_map, heat, make_attend

pytestmark = pytest.mark.gpu

# heads, image tokens, text tokens or None for self-attention, head width: of SD 1.5 and SDXL
SHAPES = [(8, 4096, None, 40), (8, 4096, 77, 40), (8, 1024, 154, 80), (8, 63, 77, 160)]
SHAPES += [(10, 4096, 77, 64), (20, 1024, None, 64)]
CLOSE = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative errors
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def qkv(heads, queries, keys, width, dtype):
    generator = torch.Generator().manual_seed(queries)
    sizes = [queries, keys or queries, keys or queries]
    drawn = [torch.randn(2, heads, n, width, generator=generator) for n in sizes]
    return [x.to("cuda", dtype).requires_grad_() for x in drawn]


def compare(attend, inputs, dtype):
    """Values and gradients against the reference in float64."""
    out = attend(*inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = BACKENDS["reference"](*wide)
    gradients = torch.autograd.grad(out.float().square().mean(), inputs)
    wanted = torch.autograd.grad(expected.square().mean(), wide)
    for found, right in zip((out, *gradients), (expected, *wanted), strict=True):
        assert found.isfinite().all()
        error = (found.double() - right).norm() / right.norm()
        assert error < CLOSE[dtype], f"relative error {error:.1e}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(BACKENDS))
def test_backends_agree_on_the_device(name, shape, dtype):
    reason = unavailable(name)
    if reason:
        pytest.skip(reason)
    compare(BACKENDS[name], qkv(*shape, dtype), dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", list(KERNELS))
def test_every_kernel_behind_sdpa_agrees(kernel, shape, dtype):
    inputs = qkv(*shape, dtype)
    with sdpa_kernel(KERNELS[kernel]):
        try:
            BACKENDS["sdpa"](*inputs)
        except RuntimeError as error:
            pytest.skip(f"{kernel} does not take this: {str(error)[:80]}")
        compare(BACKENDS["sdpa"], inputs, dtype)


@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.parametrize("heads, queries, keys, width", [s for s in SHAPES if s[2]])
def test_heatmaps_are_the_explicit_ones(name, heads, queries, keys, width, dtype):
    reason = unavailable(name)
    if reason:
        pytest.skip(reason)
    q, k, _ = (x.detach() for x in qkv(heads, queries, keys, width, dtype))
    marks = torch.eye(keys, device="cuda")[None, :, :14]
    maps = marked_attention(q, k, marks, width, make_attend(name))
    expected = heat(attention_map(q.double(), k.double()), marks)
    error = (maps.double() - expected).norm() / expected.norm()
    assert error < CLOSE[dtype], f"relative error {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_heatmaps_and_edits_take_little_more_memory_than_a_plain_run(layout):
    options = argparse.Namespace(
        layout=layout,
        latents=None,
        device="cuda",
        dtype="float16",
        attention="sdpa",
        channels_last=False,
    )
    bench, peaks = Bench(options), {}
    with torch.no_grad():
        for way in ("plain", "heatmaps", "two prompts", "edit"):
            call = bench.way(way)
            torch.cuda.reset_peak_memory_stats()
            call()
            peaks[way] = torch.cuda.max_memory_allocated()
    assert peaks["heatmaps"] <= 1.05 * peaks["plain"]
    assert peaks["edit"] <= 1.1 * peaks["two prompts"]
