"""Which weight files a component has, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdcore.checkpoint.header import BYTES, WeightFile, open_header, unsound
from sdcore.checkpoint.jsonfile import listing, name_some, read_json
from sdcore.checkpoint.layout import bad_index, choose_weights, shards_in_index, why_no_weights
from sdcore.errors import FileError

# The file is mapped, read and unmapped in pieces of this many bytes: pages that were read stay in
# memory until then, and would make a second copy of the weights.
_PIECE = 64 << 20


def find_weights(folder: Path, name: str, variant: str | None) -> list[WeightFile]:
    """The weight files of a component: one file, or the shards that an index file lists.

    A whole file is preferred where both are there, as diffusers does.

    Raises:
        FileError: none there, or one of them is not a sound safetensors file.
    """
    names = [path.name for path in folder.iterdir()]
    chosen = choose_weights(names, name, variant)
    if chosen is None:
        what, hint = why_no_weights(names, name, variant)
        raise FileError(f"{folder}/{what} is missing", f"{folder} holds: {listing(folder)}", hint)
    if chosen.endswith(".json"):
        return _open_shards(folder, folder / chosen)
    return [open_header(folder / chosen)]


def read_tensors(
    file: WeightFile, device: torch.device, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Every tensor of a file as `dtype` on `device`, copied, so that the file is free afterwards.

    None keeps each tensor's type.

    Raises:
        FileError: damaged tensors, or numbers that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    try:
        for names in _pieces(file):
            with safe_open(file.path, framework="pt") as source:
                for name in names:
                    tensors[name] = source.get_tensor(name).to(device, dtype, copy=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise unsound(file.path, str(error)) from error
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        why = f"NaN or infinity, at least as {dtype or 'it is'}, in {name_some(broken)}"
        hint = "take the weights from another source, or load them as torch.float32"
        raise FileError(f"{file.path} holds numbers that are not finite", why, hint)
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, without a copy of the tensor."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def _pieces(file: WeightFile) -> Iterator[list[str]]:
    """The names of a file's tensors, about `_PIECE` bytes of them at a time."""
    names: list[str] = []
    size = 0
    for name, shape in file.shapes.items():
        names.append(name)
        size += math.prod(shape) * BYTES[file.types[name]]
        if size >= _PIECE:
            yield names
            names, size = [], 0
    if names:
        yield names


def _open_shards(folder: Path, index: Path) -> list[WeightFile]:
    """Every shard that the index names; together they must hold exactly the tensors it lists."""
    content = read_json(index)
    files = [open_header(folder / name) for name in shards_in_index(content, str(index))]
    for file in files:
        listed = {key for key, name in content["weight_map"].items() if name == file.path.name}
        differing = sorted(listed ^ file.shapes.keys())
        if differing:
            why = f"{file.path.name} and the index disagree on {name_some(differing)}"
            raise bad_index(str(index), why)
    return files
