"""What a run holds in memory at once, estimated from below, and what the machine has free."""

from __future__ import annotations

from pathlib import Path

import torch

from sdcore.checkpoint.model import Model
from sdcore.size import Size

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def least_bytes(model: Model, size: Size, rows: int, *, tiled: bool) -> int:
    """Bytes that painting holds at once, at least.

    In the UNet these are the outputs of the blocks at full size, which wait for the way up; in the
    autoencoder what the last layers read and write for one picture.

    Args:
        rows: of a batch, with those of guidance.
        tiled: the autoencoder works in tiles, so that only the UNet counts.
    """
    height, width = size.latent_grid(model.autoencoder.factor)
    unet, autoencoder = model.unet.config, model.autoencoder.config
    layers: int | tuple[int, ...] = unet.layers_per_block
    first = layers if isinstance(layers, int) else layers[0]
    number = next(model.unet.parameters()).element_size()
    waiting = rows * height * width * unet.block_out_channels[0] * (first + 2) * number
    if tiled:
        return waiting
    number = next(model.autoencoder.parameters()).element_size()
    return max(waiting, 3 * size.area * autoencoder.block_out_channels[0] * number)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device, with those that torch holds in reserve; None: not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserve
    return _free_of_system() if device.type == "cpu" else None


def _free_of_system() -> int | None:
    """On Linux, with swap, and within the limit of a container."""
    try:
        lines = [line.split() for line in _MEMINFO.read_text("ascii").splitlines()]
        found = {line[0].rstrip(":"): int(line[1]) << 10 for line in lines}
        free = found["MemAvailable"] + found.get("SwapFree", 0)
    except (OSError, ValueError, LookupError):
        return None
    try:
        limit = int((_CGROUP / "memory.max").read_text("ascii"))
        used = int((_CGROUP / "memory.current").read_text("ascii"))
        notes = (line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines())
        cached = next(int(number) for name, number in notes if name == "inactive_file")
        return min(free, max(0, limit - used + cached))
    except (OSError, ValueError, StopIteration):  # no limit, or none that can be read
        return free
