"""GGUF files: weights in few bits, as stable-diffusion.cpp and ComfyUI-GGUF write them.

`open_weights` opens these and safetensors.

Read by the package `gguf` (extra `gguf`), and widened to real numbers when they are loaded: the
numbers are those that the file stands for, the memory is that of the network in its own type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from sdcore.errors import FileError, UsageError
from sdcore.files.content import GGUF_MARK, is_gguf
from sdcore.files.header import WeightFile, open_header
from sdcore.files.limits import GGUF_NOTES, TENSORS
from sdcore.files.opening import open_file

_VERSIONS = (2, 3)
_INTEGERS = ("I8", "I16", "I32", "I64")
_SHAPE = (
    "comfy.gguf.orig_shape."  # of a tensor that was flattened so that its rows are whole blocks
)


def open_weights(path: Path) -> WeightFile:
    """The header of a safetensors or a GGUF file, whatever it is called.

    Errors: as `sdcore.files.header.open_header` and `open_gguf`.
    """
    return open_gguf(path) if is_gguf(path) else open_header(path)


def open_gguf(path: Path) -> WeightFile:
    """The names, shapes and types in a GGUF file.

    Raises:
        FileError: damaged.
        UsageError: the package `gguf` is not installed.
    """
    reader = _reader(path)
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    for name, tensor, shape in _tensors(path, reader):
        if name in shapes:
            raise unsound_gguf(path, f"{name:.120} is given twice.")
        shapes[name], types[name] = shape, tensor.tensor_type.name
    integers = frozenset(name for name, word in types.items() if word in _INTEGERS)
    return WeightFile(path, shapes, integers, types, {}, gguf=True)


def read_gguf(file: WeightFile) -> Iterator[tuple[str, Any]]:
    """The tensors of a file as numpy arrays of real numbers, under the names of its list."""
    import numpy as np

    dequantize: Any = import_module("gguf.quants").dequantize

    wanted = {file.names.get(name, name): name for name in file.shapes}
    for own, tensor, shape in _tensors(file.path, _reader(file.path)):
        if own not in wanted:
            continue
        try:
            values: Any = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise FileError(
                f"{file.path} is sound, but holds weights in a form that is not read.",
                f"{own:.120} has the type {tensor.tensor_type.name}: {error!r:.120}.",
                "Take the same model as Q8_0, Q6_K, Q5_K, Q4_K or fp16.",
            ) from error
        yield wanted[own], np.require(values.reshape(shape), requirements=["W"])


def unsound_gguf(path: Path, why: str) -> FileError:
    """The error for a file that is no sound GGUF file."""
    return FileError(f"{path} is not a sound GGUF file.", why, "Download it again.")


def _reader(path: Path) -> Any:
    with open_file(path) as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != GGUF_MARK:
        raise unsound_gguf(path, "It is cut short.")
    version, tensors, notes = struct.unpack("<IQQ", head[4:])
    if version not in _VERSIONS or tensors > TENSORS or notes > GGUF_NOTES:
        why = f"Its head says version {version}, {tensors} tensors and {notes} notes."
        raise unsound_gguf(path, why)
    try:
        gguf: Any = import_module("gguf")
    except ImportError as error:
        raise UsageError(
            f"{path} is a GGUF file, which needs one package more.",
            "The package gguf is not installed.",
            'Install it: pip install "sdcore[gguf]".',
        ) from error
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # there is no telling what damage leads to
        raise unsound_gguf(path, f"The package gguf says {error!r:.200}.") from error


def _tensors(path: Path, reader: Any) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """Name, tensor and shape of each."""
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        noted = reader.get_field(_SHAPE + tensor.name)
        if noted is not None:
            said = tuple(int(noted.parts[place][0]) for place in noted.data)
            count = 1
            for size in said:
                count *= size
            if count != int(tensor.n_elements):
                raise unsound_gguf(path, f"{tensor.name:.120} cannot have the shape {said}.")
            shape = said
        yield tensor.name, tensor, shape
