"""Attention by the native library: softmax(q kᵀ / √d) v for tensors on a CPU."""

from __future__ import annotations

import ctypes
from typing import cast

import torch
from torch import Tensor

from sdcore.errors import MemoryLimitError
from sdcore.kernels.library import AttentionCall, library

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_LOG2_E = 1.4426950408889634


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the library computes these: plain tensors on the CPU, in float32 or bfloat16, of
    which no gradient is asked.
    """
    plain = type(q) is Tensor and type(k) is Tensor and type(v) is Tensor
    if not plain or q.dtype not in _TYPES or not q.dtype == k.dtype == v.dtype:
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if not (q.is_cpu and k.is_cpu and v.is_cpu):
        return False
    if not q.dim() == k.dim() == v.dim() == 4:
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q (B, H, N, d) to k (B, H, T, d) and v (B, H, T, any width).

    Args:
        q, k, v: as `takes` says; with any strides.
        mask: booleans, broadcastable to (B, H, N, T); True = attend. A query that may attend
            nowhere gets zeros.

    Returns:
        (B, H, N, width of v), in memory as (B, N, H, width): joining the heads costs no copy.

    Raises:
        MemoryLimitError: there is none for a copy of one head's keys and values in each thread.
    """
    native = library()
    assert native is not None, "there is no native library"
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads = (max(x.shape[i] for x in (q, k, v)) for i in range(2))
    q, k, v = (x.expand(batch, heads, -1, -1) for x in (q, k, v))
    (queries, width), (keys, value_width) = q.shape[2:], v.shape[2:]
    out = q.new_empty(batch, queries, heads, value_width).transpose(1, 2)
    call = AttentionCall(q.data_ptr(), k.data_ptr(), v.data_ptr(), None, out.data_ptr())
    for name, x in (("q_step", q), ("k_step", k), ("v_step", v), ("out_step", out)):
        getattr(call, name)[:] = x.stride()[:3]
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
        call.mask = mask.data_ptr()
        call.mask_step[:] = mask.stride()
    call.batch, call.heads, call.queries, call.keys = batch, heads, queries, keys
    call.width, call.value_width = width, value_width
    call.type, call.threads = _TYPES[q.dtype], torch.get_num_threads()
    call.parallel, call.scale = native.parallel, cast(float, width**-0.5) * _LOG2_E
    if native.attention(ctypes.byref(call)):
        raise MemoryLimitError(
            "There is not enough memory for attention.",
            f"Each thread copies the {keys} keys and values of one head.",
            "Use a smaller size, or fewer threads.",
        )
    return out
