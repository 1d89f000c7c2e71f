"""The native library for this processor, and the calls that it takes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
# The best first; those of other processors are passed over.
VARIANTS = ("avx512bf16", "avx512", "avx2", "neon")
_STEPS3, _STEPS4 = ctypes.c_int64 * 3, ctypes.c_int64 * 4


class AttentionCall(ctypes.Structure):
    """What attention.cpp is called with; see `AttentionCall` there, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "mask", "out")),
        *((name, _STEPS3) for name in ("q_step", "k_step", "v_step", "out_step")),
        ("mask_step", _STEPS4),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys")),
        *((name, ctypes.c_int64) for name in ("width", "value_width")),
        *((name, ctypes.c_int32) for name in ("type", "threads")),
        ("parallel", ctypes.c_void_p),
        ("scale", ctypes.c_float),
    )


class ConvolutionCall(ctypes.Structure):
    """What convolution.cpp is called with; see `ConvolutionCall` there, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "outs", "height", "width")),
        ("threads", ctypes.c_int32),
        ("parallel", ctypes.c_void_p),
    )


class Library:
    """A native library.

    Attributes:
        name: the processors that it was built for, one of `VARIANTS`.
        attention: runs an `AttentionCall`; 0, or 1 where memory did not suffice.
        convolution: runs a `ConvolutionCall`, as well.
        parallel: the address of GOMP_parallel of the OpenMP that the process has, or None. Threads
            of another kind would compete with those, which wait busily.
    """

    def __init__(self, path: Path, name: str) -> None:
        loaded = ctypes.CDLL(str(path))
        self.name = name
        self.runs_here: Callable[[], int] = loaded.sdcore_runs_here
        self.attention: Callable[[object], int] = loaded.sdcore_attention
        self.convolution: Callable[[object], int] = loaded.sdcore_convolution
        try:
            parallel = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
            self.parallel = parallel.value if sys.platform == "linux" else None
        except AttributeError:  # the process has no such OpenMP
            self.parallel = None


@cache
def library() -> Library | None:
    """The best library that was built and that this processor runs; None without one."""
    for name in VARIANTS:
        for path in sorted(HERE.glob(f"native_{name}.*")):
            try:
                found = Library(path, name)
            except (OSError, AttributeError):  # of another system, or cut short
                continue
            if found.runs_here():
                return found
    return None
