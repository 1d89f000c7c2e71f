"""Random calls of a library that was built with sanitizers, against numpy; without torch.

python tests/kernels/sanitized.py LIBRARY
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np

from sdcore.kernels.library import AttentionCall, ConvolutionCall, Library


def main(path: str) -> None:
    library, random = Library(Path(path), "checked"), np.random.default_rng(0)
    print(attentions(library, random), "attentions", convolutions(library, random), end=" ")
    print("convolutions equal")


def attentions(library: Library, random: np.random.Generator) -> int:
    equal = 0
    for _ in range(400):
        batch, heads = random.integers(1, 3, 2)
        queries, keys, width, value_width = random.integers(1, [150, 150, 70, 70])
        # Arrays of exactly their size: a byte beyond is seen.
        q = random.standard_normal((batch, queries, heads, width), dtype=np.float32)
        k = random.standard_normal((batch, keys, heads, width), dtype=np.float32)
        v = random.standard_normal((batch, keys, heads, value_width), dtype=np.float32)
        mask = random.random((batch, 1, queries, keys)) > 0.3
        masked = random.random() > 0.5
        out = np.empty((batch, queries, heads, value_width), np.float32)
        call = AttentionCall(q.ctypes.data, k.ctypes.data, v.ctypes.data, None, out.ctypes.data)
        arrays = (("q_step", q), ("k_step", k), ("v_step", v), ("out_step", out))
        for name, x in arrays:
            at = [stride // 4 for stride in x.strides]
            getattr(call, name)[:] = [at[0], at[2], at[1]]
        if masked:
            call.mask, call.mask_step[:] = mask.ctypes.data, [mask.strides[0], 0, keys, 1]
        call.batch, call.heads, call.queries, call.keys = batch, heads, queries, keys
        call.width, call.value_width, call.threads = width, value_width, random.integers(1, 4)
        call.scale = width**-0.5 * np.log2(np.e)
        assert library.attention(ctypes.byref(call)) == 0
        scores = np.einsum("bnhd,bthd->bhnt", q, k, dtype=np.float64) * width**-0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights *= mask if masked else 1
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
        expected = np.einsum("bhnt,bthd->bnhd", weights, v, dtype=np.float64)
        equal += bool(np.abs(out - expected).max() < 1e-5)
    return equal


def convolutions(library: Library, random: np.random.Generator) -> int:
    equal = 0
    for _ in range(200):
        batch = random.integers(1, 4)
        channels, outs, height, width = random.integers(1, [70, 70, 40, 90])
        x = random.standard_normal((batch, channels, height, width), dtype=np.float32)
        weight = random.standard_normal((outs, channels, 3, 3), dtype=np.float32)
        bias = random.standard_normal(outs, dtype=np.float32)
        out = np.empty((batch, outs, height, width), np.float32)
        call = ConvolutionCall(x.ctypes.data, weight.ctypes.data, bias.ctypes.data, out.ctypes.data)
        call.batch, call.channels, call.outs = batch, channels, outs
        call.height, call.width, call.threads = height, width, random.integers(1, 4)
        assert library.convolution(ctypes.byref(call)) == 0
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        expected = np.einsum("bchwij,ocij->bohw", seen, weight, optimize=True)
        expected += bias[:, None, None]
        equal += bool(np.abs(out - expected).max() < 1e-3 * channels**0.5)
    return equal


if __name__ == "__main__":
    main(sys.argv[1])
