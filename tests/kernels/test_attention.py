"""The native attention against the written-out softmax, by every library that runs here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdcore.attention import BACKENDS, reference
from sdcore.kernels import attention as kernel
from sdcore.kernels import library as libraries
from sdcore.kernels.library import Library


def rows(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Random (B, H, N, d) that lies in memory as (B, N, H, d), as layers have it."""
    batch, heads, tokens, width = shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(batch, tokens, heads, width, generator=generator)
    return drawn.to(dtype).transpose(1, 2)


# Batch, heads, queries, keys, width, width of the values: whole blocks, and what is left of them.
SHAPES = [
    (2, 3, 64, 48, 40, 40),
    (1, 2, 300, 77, 64, 64),
    (2, 1, 7, 1, 3, 5),
    (1, 1, 1, 97, 8, 1),
    (1, 2, 130, 131, 41, 77),
    (1, 1, 65, 200, 160, 160),
    (1, 2, 5, 0, 8, 8),
]
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_it_is_the_formula(library: Library, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, heads, queries, keys, width, value_width = sizes
    q = rows(batch, heads, queries, width, dtype=dtype, seed=0)
    k = rows(batch, heads, keys, width, dtype=dtype, seed=1)
    v = rows(batch, heads, keys, value_width, dtype=dtype, seed=2)
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(batch, 1, queries, keys, generator=generator) > 0.6
    some[:, :, 0] = False  # a query that may attend nowhere
    padding = (torch.arange(keys) < max(keys // 2, 1))[None, None, None, :]
    for mask in (None, some, some[0, 0], padding, some.mT.contiguous().mT):
        found = kernel.attention(q, k, v, mask)
        expected = reference(q.double(), k.double(), v.double(), mask)
        assert found.dtype == dtype and found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=CLOSE[dtype])
        if mask is some:
            assert (found[:, :, 0] == 0).all()


def test_scores_that_rise_and_fall_over_many_blocks(library: Library) -> None:
    """The largest score comes at last, at first, and rises by a little each time."""
    q = torch.ones(1, 1, 70, 4)
    v = rows(1, 1, 500, 9, dtype=torch.float32, seed=0)
    for slope in (0.1, -0.1, 0.01, 0.0):
        k = (torch.arange(500) * slope)[None, None, :, None].expand(1, 1, 500, 4)
        expected = reference(q.double(), k.double(), v.double())
        torch.testing.assert_close(kernel.attention(q, k, v).double(), expected, rtol=0, atol=1e-5)


def test_any_strides_and_one_head_for_all(library: Library) -> None:
    q = torch.randn(2, 3, 40, 50).mT  # channels do not lie side by side
    k, v = torch.randn(1, 3, 30, 80)[..., ::2], torch.randn(2, 1, 30, 6)
    expected = reference(q.double(), k.double(), v.double())
    found = kernel.attention(q, k, v).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    together = kernel.attention(q, k, v).transpose(1, 2)
    assert together.is_contiguous()  # the heads are joined without a copy


def test_threads_change_nothing(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (rows(2, 3, 700, 40, dtype=torch.float32, seed=n) for n in range(3))
    one = kernel.attention(q, k, v)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(kernel.attention(q, k, v), one)
    monkeypatch.setattr(library, "parallel", None)
    assert torch.equal(kernel.attention(q, k, v), one)


def test_what_is_no_number_stays_so(library: Library) -> None:
    for dtype in CLOSE:
        q, k, v = (rows(1, 1, 20, 8, dtype=dtype, seed=n) for n in range(3))
        q[0, 0, 3, 2] = torch.nan
        out = kernel.attention(q, k, v)
        assert out[0, 0, 3].isnan().all() and out[0, 0, :3].isfinite().all()
        k[0, 0, 5, 1] = torch.inf
        assert not kernel.attention(q, k, v)[0, 0].isfinite().all()


def test_what_it_does_not_compute_goes_to_torch(library: Library) -> None:
    q, k, v = (rows(1, 2, 9, 8, dtype=torch.float32, seed=n) for n in range(3))
    assert kernel.takes(q, k, v)
    assert not kernel.takes(q.double(), k.double(), v.double())
    assert not kernel.takes(q.half(), k, v) and not kernel.takes(q.to("meta"), k, v)
    assert not kernel.takes(q[0], k[0], v[0])
    q.requires_grad_()
    assert not kernel.takes(q, k, v)
    out = BACKENDS["native"](q, k, v)
    torch.testing.assert_close(out, reference(q, k, v))
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()
    with torch.no_grad():
        assert kernel.takes(q, k, v)
    compiled = torch.export.export(Attending(), (q.detach(), k, v))
    torch.testing.assert_close(compiled.module()(q.detach(), k, v), reference(q, k, v))


class Attending(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return BACKENDS["native"](q, k, v)


def test_a_library_of_another_system_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "native_avx512.so").write_bytes(b"\x7fELF cut short")
    (tmp_path / "native_neon.txt").write_text("no library")
    monkeypatch.setattr(libraries, "HERE", tmp_path)
    libraries.library.cache_clear()
    try:
        assert libraries.library() is None
    finally:
        libraries.library.cache_clear()
