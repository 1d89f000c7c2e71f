"""What this machine is fast in: measured once, and remembered in a folder of the user's.

What is measured decides between ways that paint the same picture but for its last bits. It is
remembered so that a second run gives the same bits; a picture's record names what was chosen.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

from sdcore.errors import FileError
from sdcore.files.atomic import json_writer, replace_file


def cache_folder() -> Path:
    """The folder for what sdcore found out about this machine: SDCORE_CACHE, or ~/.cache/sdcore."""
    if own := os.environ.get("SDCORE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdcore"


def remembered(what: str, measure: Callable[[], float]) -> float:
    """A measurement on this machine, with this torch and number of threads: a positive number.

    Args:
        what: names it, with all that it depends on.
        measure: is called where nothing is remembered, or nothing sound.
    """
    path = cache_folder() / "measured.json"
    threads = f"{torch.get_num_threads()} threads"
    key = " | ".join((what, processor(), f"torch {torch.__version__}", threads))
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        read = json.loads(path.read_text("utf-8"))
        known = cast(dict[str, Any], read) if isinstance(read, dict) else {}
    value = known.get(key)
    if isinstance(value, float) and value > 0:
        return value
    value = float(f"{measure():.3g}")
    with suppress(OSError, FileError):  # a home that cannot be written: it is measured each time
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json_writer(known | {key: value}))
    return value


def bfloat16_gain() -> float:
    """How many times as fast as float32 the CPU multiplies bfloat16; below 1 where it has no
    units for it.
    """
    return remembered("bfloat16", lambda: _multiply(torch.float32) / _multiply(torch.bfloat16))


def _multiply(dtype: torch.dtype) -> float:
    """Seconds of a matrix product, at best."""
    matrix = torch.ones(512, 512, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(matrix, matrix)
            best = min(best, time.perf_counter() - began)
    return best


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to a gigabyte, for what it asks for next.

    The usual allocator of Linux hands a tensor of tens of megabytes back to the system at once, and
    the next one comes as pages that the system clears one by one: in a virtual machine a sixth of
    the time of a step of Stable Diffusion's UNet. For commands, whose process is their own; whoever
    sets MALLOC_... keeps that. With another allocator than glibc's nothing happens.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):
        setting = ctypes.CDLL(None).mallopt
        setting(_MMAP_THRESHOLD, _KEPT)
        setting(_TRIM_THRESHOLD, _KEPT)
        setting(_ARENA_MAX, 1)  # else only the first thread keeps anything


def return_freed_memory() -> None:
    """Hand to the system what was kept: after something large is gone for good."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_KEPT = 1 << 30


@cache
def processor() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
