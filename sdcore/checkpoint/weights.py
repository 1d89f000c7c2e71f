"""Which weight files a folder has, and what is in them, judged by content and never by name."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdcore.checkpoint.jsonfile import (
    listing,
    name_some,
    parse_json_object,
    read_json,
    require_file,
)
from sdcore.errors import FileError, UsageError

_HEADER_LIMIT = 16 << 20  # bytes; the header of SDXL's UNet has 0.2 MiB
_REAL_TYPES = ("F64", "F32", "F16", "BF16")
_INTEGER_TYPES = ("I64", "I32")  # constants such as position_ids in old files, never weights
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# What people find under a .safetensors name, by its first bytes.
_SIGNATURES = {
    b"PK\x03\x04": "a zip archive, as torch.save writes: a pickle checkpoint",
    b"\x80\x02": "a pickle checkpoint",
    b"\x80\x03": "a pickle checkpoint",
    b"\x80\x04": "a pickle checkpoint",
    b"\x80\x05": "a pickle checkpoint",
    b"version https://git-lfs": "a git-lfs pointer; the weights themselves were not downloaded",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
}


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file whose header has been read and checked; the tensors have not.

    shapes:   name -> shape of every tensor in it.
    integers: names of those that hold whole numbers.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    integers: frozenset[str]


def weights_file_name(name: str, variant: str | None) -> str:
    """`model` and `fp16` to `model.fp16.safetensors`, diffusers' spelling."""
    return f"{name}.{variant}.safetensors" if variant else f"{name}.safetensors"


def index_file_name(name: str, variant: str | None) -> str:
    """`model` and `fp16` to `model.safetensors.index.fp16.json`, diffusers' spelling."""
    return (
        f"{name}.safetensors.index.{variant}.json" if variant else f"{name}.safetensors.index.json"
    )


def check_variant(variant: str | None) -> None:
    """Refuse a variant that is no plain word: it becomes part of a file name."""
    if variant is not None and not (isinstance(variant, str) and variant.isidentifier()):
        raise UsageError(
            f"variant={variant!r:.80} cannot be used",
            "a variant is the word in a weight file's name, as in model.fp16.safetensors",
            'use variant="fp16", or leave it out',
        )


def find_weights(folder: Path, name: str, variant: str | None) -> list[WeightFile]:
    """The weight files of a component: one file, or the shards that an index file lists.

    A whole file is preferred where both are there, as diffusers does.

    Raises:
        FileError: none there, or one of them is not a sound safetensors file.
    """
    check_variant(variant)
    whole = folder / weights_file_name(name, variant)
    index = folder / index_file_name(name, variant)
    if whole.exists() or not index.exists():
        if not whole.exists():
            raise _no_weights(folder, whole, variant)
        return [open_header(whole)]
    return _open_shards(folder, index)


def read_tensors(file: WeightFile, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a file as `dtype` on `device`, copied, so that the file is free afterwards.

    Raises:
        FileError: damaged tensors, or numbers that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(file.path, framework="pt") as source:
            for name in file.shapes:
                tensors[name] = source.get_tensor(name).to(device, dtype, copy=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _unsound(file.path, str(error)) from error
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        why = f"NaN or infinity, at least as {dtype}, in {name_some(broken)}"
        hint = "take the weights from another source, or load them as torch.float32"
        raise FileError(f"{file.path} holds numbers that are not finite", why, hint)
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, without a copy of the tensor."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def open_header(path: Path) -> WeightFile:
    """Read and check the header of a safetensors file.

    Raises:
        FileError: something else under that name, cut short, damaged, a name given twice, or
            numbers of a kind that weights do not have.
    """
    require_file(path)
    header = _read_header(path)
    header.pop("__metadata__", None)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for name, entry in header.items():
            if entry["dtype"] not in _REAL_TYPES + _INTEGER_TYPES:
                raise _unsound(path, f"{name:.120} has the type {entry['dtype']!r:.40}")
            shapes[name] = tuple(int(size) for size in entry["shape"])
        with path.open("rb") as file:
            start = 8 + struct.unpack("<Q", file.read(8))[0]
        expected, actual = start + end, path.stat().st_size
        if expected != actual:
            what = "cut short" if actual < expected else "longer than its header says"
            raise _unsound(path, f"it is {what}: {actual} bytes, the header asks for {expected}")
        with safe_open(path, framework="pt"):
            pass  # safetensors' own checks: overlaps, holes, sizes that do not fit the shapes
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise _unsound(path, f"its header is malformed ({error!r:.80})") from error
    except (SafetensorError, ValueError, OverflowError, OSError) as error:
        if isinstance(error, FileError):
            raise
        raise _unsound(path, str(error)) from error
    integers = frozenset(name for name in shapes if header[name]["dtype"] in _INTEGER_TYPES)
    return WeightFile(path, shapes, integers)


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON header, after judging by content that this is a safetensors file at all."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(32)
            length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
            if head[8:9] != b"{" or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise _unsound(path, _what_it_is(head, size, length))
            file.seek(8)
            return parse_json_object(file.read(length))
    except OSError as error:
        raise FileError(f"{path} cannot be read", str(error), "check the file's rights") from error
    except ValueError as error:
        if isinstance(error, FileError):
            raise
        raise _unsound(path, f"its header is damaged: {error}") from error


def _what_it_is(head: bytes, size: int, length: int) -> str:
    if not size:
        return "the file is empty"
    for signature, meaning in _SIGNATURES.items():
        if head.startswith(signature):
            return f"by its content it is {meaning}"
    if head[8:9] == b"{":
        return f"it is cut short or damaged: a header of {length} bytes in a file of {size}"
    return "it does not begin as a safetensors file does"


def _unsound(path: Path, why: str) -> FileError:
    hint = "download or convert it again; sdcore reads safetensors only and never unpickles"
    return FileError(f"{path} is not a sound safetensors file", f"{why:.400}", hint)


def _no_weights(folder: Path, whole: Path, variant: str | None) -> FileError:
    what = f"{whole} is missing"
    there = f"{folder} holds: {listing(folder)}"
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    others = sorted(p.name for p in folder.iterdir() if ".safetensors" in p.name)
    if others:
        hint = (
            "leave the variant out, or choose one that is there"
            if variant
            else ("choose the variant by its word, such as variant='fp16'")
        )
        return FileError(what, there, hint)
    if pickles:
        why = f"only pickle files are there ({name_some(pickles)}), which can run code when loaded"
        return FileError(what, why, "convert them to safetensors first")
    return FileError(what, there, "check the folder, or download the model again")


def _open_shards(folder: Path, index: Path) -> list[WeightFile]:
    """Every shard that the index names; together they must hold exactly the tensors it lists."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_index(index, "it has no weight_map")
    names = list(weight_map.values())
    bad = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if bad:
        raise _bad_index(index, f"{bad[0]!r:.120} is not the name of a file in its folder")
    files = [open_header(folder / name) for name in sorted(set(names))]
    for file in files:
        listed = {key for key, name in weight_map.items() if name == file.path.name}
        differing = sorted(listed ^ file.shapes.keys())
        if differing:
            why = f"{file.path.name} and the index disagree on {name_some(differing)}"
            raise _bad_index(index, why)
    return files


def _bad_index(index: Path, why: str) -> FileError:
    return FileError(f"{index} does not describe its shards", why, "download the model again")
