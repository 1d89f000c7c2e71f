"""What is in weight files, told from their headers and judged by content, never by name.

Nothing here loads torch: what a file is can be told in milliseconds, whatever its size.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdcore.errors import FileError, name_some
from sdcore.files.content import Content, what_it_is
from sdcore.files.jsonfile import parse_json_object, read_json
from sdcore.files.layout import bad_index, choose_weights, shards_in_index, why_no_weights
from sdcore.files.limits import HEADER_BYTES, TENSORS
from sdcore.files.opening import listing, open_file, require_file

EIGHT_BITS = {"F8_E4M3": 1, "F8_E5M2": 1}  # real numbers, often with a scale beside (`scales`)
_REAL_TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, **EIGHT_BITS}
# Constants such as position_ids, marks, and the codes of quantised weights; never weights.
_INTEGER_TYPES = {
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1},
    **{"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
BYTES = _REAL_TYPES | _INTEGER_TYPES  # of one number, by the file's own word for its type
# Types that safetensors has and sdcore does not read: such files are sound.
_OTHER_TYPES = {
    **dict.fromkeys(("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), "real numbers of another 8 bits"),
    **dict.fromkeys(("F4", "F6_E2M3", "F6_E3M2"), "real numbers of 4 or 6 bits"),
    "C64": "complex numbers",
}
# What stands beside a weight of 8 bits: its scale, by the names of two versions of ComfyUI; what
# says how inputs of the layer are scaled, which is for kernels that compute in 8 bits; and marks.
SCALES = (".scale_weight", ".weight_scale")
_SOME_SCALE = re.compile(r"(.+\.weight)[._]\w*(?:scale|absmax|zero)\w*")
_BESIDE_EIGHT_BITS = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")


@dataclass(frozen=True)
class WeightFile:
    """One safetensors or GGUF file whose header has been read and checked; the tensors have not.

    shapes:   name -> shape of every tensor in it.
    integers: names of those that hold whole numbers.
    types:    name -> the file's own word for the number type, such as F16.
    metadata: the header's free text, such as the training notes of a LoRA.
    scales:   name of a weight of 8 bits -> that of the tensor by which it is multiplied.
    beside:   names of tensors that say how weights are stored; these are in no other list.
    names:    name in these lists -> the file's own, where it is another; see `renamed`.
    gguf:     it is a GGUF file; its types are those of ggml, such as Q8_0.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    integers: frozenset[str]
    types: dict[str, str]
    metadata: dict[str, str]
    scales: dict[str, str] = field(default_factory=dict[str, str])
    beside: frozenset[str] = frozenset()
    names: dict[str, str] = field(default_factory=dict[str, str])
    gguf: bool = False

    def renamed(self, rename: Callable[[str], str]) -> WeightFile:
        """The same file with other names for its tensors. FileError where two get one name."""
        new = {name: rename(name) for name in self.shapes}
        names: dict[str, str] = {}
        for name, other in new.items():
            own = self.names.get(name, name)
            if names.setdefault(other, own) != own:
                why = f"{names[other]:.120} and {own:.120} are two tensors of one name."
                raise FileError(f"{self.path} is damaged.", why, "Download or convert it again.")
        return replace(
            self,
            shapes={new[name]: shape for name, shape in self.shapes.items()},
            integers=frozenset(new[name] for name in self.integers),
            types={new.get(name, name): word for name, word in self.types.items()},
            scales={new[name]: scale for name, scale in self.scales.items()},
            names=names,
        )

    def only(self, wanted: Callable[[str], bool]) -> WeightFile:
        """The same file with the tensors alone whose names are wanted."""
        shapes = {name: shape for name, shape in self.shapes.items() if wanted(name)}
        return replace(
            self,
            shapes=shapes,
            integers=self.integers & shapes.keys(),
            scales={name: scale for name, scale in self.scales.items() if name in shapes},
        )


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
        raise FileError(f"{folder}/{what} is missing.", f"{folder} holds: {listing(folder)}.", hint)
    if chosen.endswith(".json"):
        return _open_shards(folder, folder / chosen)
    return [open_header(folder / chosen)]


def open_header(path: Path) -> WeightFile:
    """Read and check the header of a safetensors file.

    Raises:
        FileError: something else under that name, cut short, damaged, a name given twice, or
            numbers of a kind that weights do not have.
    """
    header, start = _read_header(path)
    metadata = header.pop("__metadata__", {})
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for name, entry in header.items():
            if entry["dtype"] not in BYTES:
                raise _other_type(path, name, entry["dtype"])
            shapes[name] = tuple(int(size) for size in entry["shape"])
        expected, actual = start + end, path.stat().st_size
        if expected != actual:
            what = "cut short" if actual < expected else "longer than its header says"
            raise unsound(path, f"It is {what}: {actual} bytes, the header asks for {expected}.")
        with safe_open(path, framework="np"):
            pass  # safetensors' own checks: overlaps, holes, sizes that do not fit the shapes
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise unsound(path, f"Its header is malformed: {error!r:.80}.") from error
    except (SafetensorError, ValueError, OverflowError, OSError) as error:
        if isinstance(error, FileError):
            raise
        raise unsound(path, f"{error}.") from error
    types = {name: header[name]["dtype"] for name in shapes}
    scales, beside = _eight_bits(path, types)
    shapes = {name: shape for name, shape in shapes.items() if name not in beside}
    integers = frozenset(name for name in shapes if types[name] in _INTEGER_TYPES)
    return WeightFile(path, shapes, integers, types, metadata, scales, beside)


def _eight_bits(path: Path, types: dict[str, str]) -> tuple[dict[str, str], frozenset[str]]:
    """The scales of weights of 8 bits, and all tensors that are there for such weights alone.

    Raises:
        FileError: they are scaled in another way.
    """
    if not EIGHT_BITS.keys() & types.values():
        return {}, frozenset()
    scales: dict[str, str] = {}
    beside: set[str] = set()
    for name in types:
        layer = next((name.removesuffix(end) for end in SCALES if name.endswith(end)), None)
        if layer is not None and types.get(f"{layer}.weight") in EIGHT_BITS:
            scales[f"{layer}.weight"] = name
            beside.add(name)
        elif name.endswith(_BESIDE_EIGHT_BITS):
            beside.add(name)
        elif (found := _SOME_SCALE.fullmatch(name)) and types.get(found[1]) in EIGHT_BITS:
            raise FileError(
                f"{path} is sound, but holds weights in a form that sdcore does not read.",
                f"{name:.120} scales {found[1]:.120} in a way that is not known.",
                "Take the same model in fp16, bf16, fp32, or fp8 with one scale for each weight.",
            )
    return scales, frozenset(beside)


def _other_type(path: Path, name: str, word: object) -> FileError:
    """The error for numbers of a type that is not read: safetensors' own, or none at all."""
    if not isinstance(word, str) or word not in _OTHER_TYPES:
        return unsound(path, f"{name:.120} has the type {word!r:.40}.")
    return FileError(
        f"{path} is sound, but holds weights in a form that sdcore does not read.",
        f"{name:.120} has the type {word}: {_OTHER_TYPES[word]}.",
        "Take the same model in fp16, bf16, fp32 or fp8.",
    )


def begins_as_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do. Raises FileError where it cannot be read."""
    with open_file(path) as file:
        return file.read(9)[8:] == b"{"


def unsound(path: Path, why: str, hint: str = "Download it again.") -> FileError:
    """The error for a file that is no sound safetensors file."""
    why = why if len(why) <= 400 else f"{why[:400]} ..."
    return FileError(f"{path} is not a sound safetensors file.", why, hint)


def _other_content(path: Path, content: Content) -> FileError:
    """The error for a file that is sound as something else."""
    hint = content.hint
    if content.is_pickle:
        target = path.with_suffix(".safetensors").name
        target = target if target != path.name else f"{path.stem}-converted.safetensors"
        hint = f"Convert it first: `sdcore convert {_typed(str(path))} {_typed(target)}`."
    return unsound(path, f"By its content it is {content.what}.", hint)


def _typed(name: str) -> str:
    """A name as it is typed in any shell."""
    return f'"{name}"' if " " in name else name


def _open_shards(folder: Path, index: Path) -> list[WeightFile]:
    """Every shard that the index names; together they must hold exactly the tensors it lists."""
    content = read_json(index)
    files = [open_header(folder / name) for name in shards_in_index(content, str(index))]
    for file in files:
        listed = {key for key, name in content["weight_map"].items() if name == file.path.name}
        differing = sorted(listed ^ (file.shapes.keys() | file.beside))
        if differing:
            why = f"{file.path.name} and the index disagree on {name_some(differing)}."
            raise bad_index(str(index), why)
    return files


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and where it ends, after judging by content that it is safetensors at all."""
    size = require_file(path)
    with open_file(path) as file:
        head = file.read(32)
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
        if head[8:9] != b"{" or not 2 <= length <= min(size - 8, HEADER_BYTES):
            if (content := what_it_is(path)) is not None:
                raise _other_content(path, content)
            raise unsound(path, _why_not(head, size, length))
        file.seek(8)
        header = file.read(length)
    if (tensors := header.count(b'"dtype"')) > TENSORS:
        raise unsound(path, f"Its header names {tensors} tensors, above {TENSORS}.")
    try:
        return parse_json_object(header), 8 + length
    except ValueError as error:
        raise unsound(path, f"Its header is damaged: {error}.") from error


def _why_not(head: bytes, size: int, length: int) -> str:
    if not size:
        return "The file is empty."
    if not any(head):
        return "It begins with zeros alone, as a download that was never filled."
    if head[8:9] == b"{":
        return f"It is cut short or damaged: a header of {length} bytes in a file of {size}."
    return "It does not begin as a safetensors file does."
