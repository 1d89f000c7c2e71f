"""What no file may cause, whatever is in it: a long wait, much memory, a change on the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CPU_SECONDS = 2.0
MEMORY = 64 << 20  # bytes, beside twice those of the files


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Assert it of the block: for `folder`, what is beside it, and this process."""
    before = snapshot(folder.parent)
    size = sum(stat[0] for stat in snapshot(folder).values())
    used, started = forget_highest(), time.thread_time()
    yield
    seconds, grown = time.thread_time() - started, (memory("VmHWM") - used) if used else 0
    assert seconds < CPU_SECONDS
    assert grown < MEMORY + 2 * size, f"{grown >> 20} MiB for {size >> 10} KiB of files"
    assert snapshot(folder.parent) == before


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path under a folder with its size and time of change."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def forget_highest() -> int:
    """Bytes in memory now, from which VmHWM then counts; 0 where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return memory("VmRSS")
    except OSError:
        return 0


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
