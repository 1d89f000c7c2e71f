"""The closed process in which `sdcore convert` reads an old checkpoint; not for use by hand.

    python -I convert_worker.py OLD FOLDER NAME DTYPE MEMORY SECONDS

It gives up what it does not need (memory, processor time, new processes, the network), and only
then opens the file, with torch's unpickler that builds nothing but tensors and plain containers.
It writes FOLDER/converted.safetensors and prints one line of JSON; the converter trusts neither.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def shut_network() -> bool:
    """Leave the machine's network for an empty one; Linux lets a process of one thread do so."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0


if __name__ == "__main__":
    NETWORK_SHUT = shut_network()  # before torch, which starts threads

import torch  # noqa: E402
from safetensors.torch import (  # noqa: E402
    save_file,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor  # noqa: E402

_TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
# Under which key trainers keep the weights, where others have tensors too (an optimizer, a moving
# average); the first that is there.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "unet", "network", "net", "params")
_LISTED = 20  # names in the answer
# What trainers leave in a checkpoint beside its tensors. Nothing of these packages is imported or
# run: whatever a file says of such a class, an empty thing stands there.
_HARMLESS = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "ldm.", "sgm."),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
    *("collections.defaultdict", "argparse.Namespace", "pathlib.", "datetime.", "typing."),
    *("builtins.int", "builtins.float", "builtins.bool", "builtins.str", "builtins.dict"),
)
_PARAMETERS = "torch.nn.modules.container.Parameter"  # ...Dict and ...List, which hold tensors
_HARMLESS_LIMIT = 200  # different ones in a file


class Refused(Exception):
    """The file cannot be converted."""


class Nothing:
    """What stands for an object that carries no tensors."""

    def __new__(cls, *_: Any, **__: Any) -> Nothing:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Parameters(Nothing):
    """What stands for a ParameterDict: its tensors by name."""

    tensors: dict[str, Tensor]

    def __setstate__(self, state: Any) -> None:
        own = cast("dict[Any, Any]", state) if isinstance(state, dict) else {}
        found = own.get("_parameters")
        pairs = cast("dict[Any, Any]", found).items() if isinstance(found, dict) else ()
        self.tensors = {f"{key}": value for key, value in pairs if isinstance(value, Tensor)}


def unpickle(path: Path) -> Any:
    """What torch.save wrote, with nothing but tensors, plain containers and the classes above."""
    mapped, stubs = check_archive(path), dict[str, Any]()
    # torch goes by this ending, and would not take the file for what it is
    misnamed = path.suffix == ".safetensors"
    while True:
        safe = cast(Any, torch.serialization).safe_globals
        try:
            with safe([(stub, name) for name, stub in stubs.items()]):
                how: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
                if not misnamed:
                    return torch.load(path, **how, mmap=mapped)
                with path.open("rb") as file:
                    return torch.load(file, **how)
        except pickle.UnpicklingError as error:
            match = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
            name = match[1] if match else ""
            name = name if "." in name else f"builtins.{name}"
            if name in stubs or len(stubs) >= _HARMLESS_LIMIT:
                raise
            if name.startswith(_PARAMETERS):
                stubs[name] = type("Parameters", (Parameters,), {})
            elif name.startswith(_HARMLESS):
                stubs[name] = type("Nothing", (Nothing,), {})
            else:
                raise


def set_limits(memory: int, seconds: int) -> None:
    """`memory` bytes more than now, `seconds` of processor time, no new process."""
    import resource  # not on Windows

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = {
        resource.RLIMIT_AS: used + memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: memory,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,  # root is not held to this one
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def check_archive(path: Path) -> bool:
    """Whether it is a zip archive as torch.save writes; Refused where one is packed differently."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise Refused("the zip archive is cut short or damaged")
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise Refused("the zip archive is compressed; torch.save never writes it so")
        if entry.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", entry.filename):
            raise Refused(f"the zip archive names a file outside itself: {entry.filename[:80]!r}")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise Refused("the zip archive holds more than its size")
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise Refused("the zip archive holds no data.pkl: it is none of torch.save")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise Refused("it is a TorchScript program, not a checkpoint")
    return True


def find_tensors(content: Any, name: str, stem: str) -> tuple[dict[str, Tensor], list[str]]:
    """Name -> tensor of a checkpoint or embedding, and what else was in it."""
    if not isinstance(content, Mapping):
        raise Refused(f"it holds a {type(content).__name__}, not weights by name")
    content = {
        key: value.tensors if isinstance(value, Parameters) else value
        for key, value in cast("Mapping[Any, Any]", content).items()
    }
    if isinstance(content.get("string_to_param"), Mapping):  # web UI's textual inversion
        vectors = [v for v in content["string_to_param"].values() if isinstance(v, Tensor)]
        if len(vectors) != 1:
            raise Refused(f"it is a textual inversion with {len(vectors)} embeddings; one is usual")
        own = content.get("name")
        own = own[:100] if isinstance(own, str) and own.isprintable() else ""
        return {name or own or stem: vectors[0]}, []
    nested = _nested(content)
    left = [f"{key}" for key in content if nested is not None and key != nested]
    tensors: dict[str, Tensor] = {}
    for key, value in (content if nested is None else content[nested]).items():
        if isinstance(key, str) and isinstance(value, Tensor):
            tensors[key] = value
        else:
            left.append(f"{key}")
    if not tensors:
        raise Refused(f"no tensors are in it; its keys are {', '.join(left[:10])[:300]}")
    return tensors, left


def _nested(content: Mapping[Any, Any]) -> Any:
    """Under which key the weights are; None where they are not in a container of their own."""
    inner = [
        key
        for key, value in content.items()
        if isinstance(value, Mapping)
        and any(isinstance(one, Tensor) for one in cast("Mapping[Any, Any]", value).values())
    ]
    found = next((key for key in _WEIGHTS if key in inner), None)
    if found is not None:
        return found
    alone = not any(isinstance(value, Tensor) for value in content.values())
    return inner[0] if alone and len(inner) == 1 else None


def prepare(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A plain tensor with memory of its own: safetensors holds no shared ones."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _TYPES:
        raise Refused(f"{name[:120]} is of a kind that weights are not: {tensor.dtype}")
    floating = tensor.is_floating_point()
    return tensor.detach().to(dtype if floating else None).contiguous()


def convert(path: Path, folder: Path, name: str, dtype: torch.dtype | None) -> dict[str, Any]:
    """Read `path`, write the tensors into `folder`; what the parent is told."""
    content = unpickle(path)
    found, left = find_tensors(content, name, path.stem)
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for key, tensor in found.items():
        plain = prepare(key, tensor, dtype)
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.nbytes or storage.data_ptr() in places:
            plain = plain.clone()
        places.add(plain.untyped_storage().data_ptr())
        tensors[key] = plain
    broken = [key for key, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        where = f"{', '.join(broken[:5])}{' and more' * (len(broken) > 5)}"
        raise Refused(f"NaN or infinity, at least as {dtype or 'it is'}, in {where[:600]}")
    notes = {"format": "pt"} | ({"name": next(iter(found))} if "string_to_param" in content else {})
    save_file(tensors, folder / "converted.safetensors", metadata=notes)
    return {"tensors": len(tensors), "left": [f"{key:.80}" for key in left[:_LISTED]]}


def is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def reason_of(error: Exception) -> str:
    """What the unpickler says, without torch's advice around it to open the file unsafely.

    torch raises that advice while it handles the unpickler's own error.
    """
    own = error.__context__ if isinstance(error, pickle.UnpicklingError) else None
    text = re.split(r"\bPlease use|\bCheck the documentation", str(own or error))[0]
    return "it holds more than tensors" if "weights_only" in text else " ".join(text.split())


def main() -> int:
    path, folder, name, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    memory, seconds = int(sys.argv[5]), int(sys.argv[6])
    if sys.platform == "linux":
        set_limits(memory, seconds)
    wanted = None if dtype == "keep" else getattr(torch, dtype)
    try:
        answer = convert(path, folder, name, wanted)
    except Refused as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": "it needs more memory than it is allowed"}
    except Exception as error:  # whatever the unpickler says to a file that it does not take
        reason = reason_of(error)
        answer = {"refused": f"{type(error).__name__}: {reason[:400]}"}
        known = isinstance(error, LookupError | EOFError) or "Unsupported operand" in reason
        if known:  # it stumbled over bytes that are no pickle
            answer = {"refused": "it is damaged, or not what torch.save writes"}
    print(json.dumps({**answer, "network_shut": NETWORK_SHUT}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
