"""Convolutions of 3 x 3 with a margin of one by the native library, for tensors on a CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sdcore.errors import MemoryLimitError
from sdcore.kernels.library import ConvolutionCall, library


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the library computes these: plain float32 tensors on the CPU, channel after channel
    in memory, of which no gradient is asked. What does not fit is left to torch, which says so.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or x.dim() != 4:
        return False
    outs = weight.shape[0]
    if weight.shape != (outs, x.shape[1], 3, 3) or (bias is not None and bias.shape != (outs,)):
        return False
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return type(x) is Tensor


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with stride 1 and a margin of one zero on each side.

    Winograd's minimal filtering F(4 x 4, 3 x 3), Lavin and Gray 2016 (arXiv:1509.09308): a quarter
    of the multiplications, and about ten times the rounding (some 5e-6 of the result's size). A
    row of the batch comes out as it does alone, whatever the number of threads. A number that is
    not finite spoils the 4 x 4 it falls in, and not the 3 x 3 around it alone.

    Args:
        x, weight, bias: (B, C, h, w), (O, C, 3, 3) and (O,), as `takes` says.

    Returns:
        (B, O, h, w).

    Raises:
        MemoryLimitError: there is none for what the threads work on, some megabytes each.
    """
    native = library()
    assert native is not None, "there is no native library"
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, weight.shape[0], height, width)
    call = ConvolutionCall(x.data_ptr(), weight.data_ptr(), None, out.data_ptr())
    call.bias = None if bias is None else bias.data_ptr()
    call.batch, call.channels, call.outs = batch, channels, weight.shape[0]
    call.height, call.width = height, width
    call.threads, call.parallel = torch.get_num_threads(), native.parallel
    if native.convolution(ctypes.byref(call)):
        raise MemoryLimitError(
            "There is not enough memory for a convolution.",
            f"Each thread works on a part of {channels} channels of {width} x {height}.",
            "Use a smaller size, or fewer threads.",
        )
    return out
