"""The tensors of weight files, in and out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sdcore.errors import FileError, NonFiniteError, name_some
from sdcore.files.atomic import Write
from sdcore.files.header import BYTES, EIGHT_BITS, WeightFile, unsound

# The file is mapped, read and unmapped in pieces of this many bytes: pages that were read stay in
# memory until then, and would make a second copy of the weights.
_PIECE = 64 << 20


def read_tensors(
    file: WeightFile, device: torch.device, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Every tensor of a file as `dtype` on `device`, copied, so that the file is free afterwards.

    None keeps each tensor's type; but numbers of 8 bits, with which nothing is computed, become
    float16, which has all of them, and float32 where a scale belongs to them.

    Raises:
        FileError: damaged tensors, or numbers that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    broken: list[str] = []
    try:
        for name, tensor in _stored(file):
            tensors[name] = tensor.to(device, dtype, copy=True)
            if not is_finite(tensors[name]):  # while it lies in the processor's cache
                broken.append(name)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise unsound(file.path, f"{error}.") from error
    if broken:
        why = f"NaN or infinity, at least as {dtype or 'it is'}, in {name_some(broken)}."
        hint = "Take the weights from another source, or load them as float32."
        raise FileError(f"{file.path} holds numbers that are not finite.", why, hint)
    return tensors


def _stored(file: WeightFile) -> Iterator[tuple[str, Tensor]]:
    """The tensors one after the other; what is given may lie in the mapped file."""
    if file.gguf:
        from sdcore.files.gguf_file import read_gguf

        from_numpy = cast(Any, torch.from_numpy)  # pyright: ignore[reportUnknownMemberType]
        yield from ((name, from_numpy(values)) for name, values in read_gguf(file))
        return
    for names in _pieces(file):
        with _opened(file) as source:
            for name in names:
                yield name, _get(file, name, source)


def _get(file: WeightFile, name: str, source: Any) -> Tensor:
    tensor: Tensor = source.get_tensor(file.names.get(name, name))
    return _widened(file, name, tensor, source) if file.types.get(name) in EIGHT_BITS else tensor


def _widened(file: WeightFile, name: str, tensor: Tensor, source: Any) -> Tensor:
    """Numbers of 8 bits as a type that computes, times their scale where they have one."""
    if name not in file.scales:
        return tensor.half()
    scale: Tensor = source.get_tensor(file.scales[name]).float()
    if scale.numel() not in (1, len(tensor)):
        why = f"{file.scales[name]:.120} is {tuple(scale.shape)}: neither one number nor a column."
        hint = "Take the same model in fp16, bf16, fp32, or fp8 with one scale for each weight."
        raise FileError(f"{file.path} is scaled in a form that sdcore does not read.", why, hint)
    return tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))


def read_tensor(file: WeightFile, name: str) -> Tensor:
    """One tensor of a file, on the CPU, as it is; numbers of 8 bits as `read_tensors` has them."""
    if file.gguf:
        return dict(_stored(file.only(lambda other: other == name)))[name]
    with _opened(file) as source:
        return _get(file, name, source)


def _opened(file: WeightFile) -> Any:
    return safe_open(file.path, framework="pt")


def tensors_writer(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> Write:
    """What writes a safetensors file.

    Args:
        tensors: contiguous, no two of them in the same memory.
        notes: strings for the header.
    """

    def write(path: Path) -> None:
        try:
            save_file(dict(tensors), path, metadata=dict(notes) if notes else None)
        except SafetensorError as error:  # what its own kind of OSError is
            raise OSError(f"{error}") from error

    return write


def check_finite(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Refuse to save weights that are NaN or infinite, at least as the type they are saved in."""
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise NonFiniteError(
            "The weights cannot be saved.",
            f"NaN or infinity, at least as {dtype or 'it is'}, in {name_some(broken)}.",
            "Keep the last good checkpoint, or save them as bfloat16.",
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, without a copy of the tensor."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())


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
