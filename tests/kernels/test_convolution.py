"""The native convolution against torch's in float64, by every library that runs here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdcore.kernels import convolution as kernel
from sdcore.kernels.library import Library

# Batch, channels, outs, height, width: whole tiles and blocks, and what is left of them.
SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 3, 5, 7, 9),
    (2, 33, 50, 13, 8),
    (1, 64, 96, 4, 4),
    (3, 20, 49, 21, 30),
    (1, 4, 6, 3, 150),
    (2, 5, 3, 40, 300),
]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_it_is_the_formula(library: Library, sizes: tuple[int, ...]) -> None:
    batch, channels, outs, height, width = sizes
    x = drawn(batch, channels, height, width, seed=0)
    weight, bias = drawn(outs, channels, 3, 3, seed=1), drawn(outs, seed=2)
    for b in (bias, None):
        expected = F.conv2d(
            x.double(), weight.double(), None if b is None else b.double(), padding=1
        )
        found = kernel.convolution(x, weight, b)
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * channels**0.5)


def test_a_picture_does_not_depend_on_its_batch_or_the_threads(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 1, 2 and 4 vectors of tiles, and the threads, sum in the same order."""
    weight, bias = drawn(40, 70, 3, 3, seed=1), drawn(40, seed=2)
    for side in (4, 8, 16, 21):
        x = drawn(9, 70, side, side, seed=0)
        together = kernel.convolution(x, weight, bias)
        for few in (1, 2, 5):
            assert torch.equal(kernel.convolution(x[:few], weight, bias), together[:few])
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 3)
            assert torch.equal(kernel.convolution(x, weight, bias), together)
            patch.setattr(library, "parallel", None)
            assert torch.equal(kernel.convolution(x, weight, bias), together)


def test_what_is_no_number_stays_so(library: Library) -> None:
    x, weight = drawn(1, 4, 16, 16, seed=0), drawn(3, 4, 3, 3, seed=1)
    for broken in (torch.nan, torch.inf):
        x[0, 2, 5, 6] = broken
        found = kernel.convolution(x, weight, None)
        assert not found[0, :, 4:7, 5:8].isfinite().any()
        assert found[0, :, 9:, 9:].isfinite().all()


def test_what_it_does_not_compute_goes_to_torch(library: Library) -> None:
    x, weight, bias = drawn(1, 4, 8, 8, seed=0), drawn(3, 4, 3, 3, seed=1), drawn(3, seed=2)
    assert kernel.takes(x, weight, bias) and kernel.takes(x, weight, None)
    for other in (x.double(), x.bfloat16(), x.to("meta"), x[0], x.mT):
        assert not kernel.takes(other, weight, bias)
    assert not kernel.takes(x.to(memory_format=torch.channels_last), weight, bias)
    assert not kernel.takes(x, weight.requires_grad_(), bias)
    with torch.no_grad():
        assert kernel.takes(x, weight, bias)
