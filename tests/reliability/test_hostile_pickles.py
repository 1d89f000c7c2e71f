"""Checkpoints that would run code or fill the memory: refused everywhere, and no canary fires.

Every payload would make a file, the canary, when it is unpickled. Each is offered under the name of
every kind of file to everything that opens files, and to the converter's closed process.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sdcore import TextToImage, UNet
from sdcore.adapters.lora_file import read_lora
from sdcore.adapters.textual_inversion import read_embedding
from sdcore.app.convert import WORKER
from sdcore.checkpoint.inspection import inspect
from sdcore.errors import FileError, UsageError

SCRIPT = Path(__file__).parents[2] / "sample" / "convert.py"
CANARY = "canary"  # is replaced by the path of a file of the same length


class Call:
    """Pickles as a call of something by its name: `Call("os", "system", "touch ...")`."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class Writer(pickle._Pickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Python's own pickler, told to write calls of what it was never given."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Call):
            return super().save(obj, save_persistent_id)
        if self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.save(obj.arguments)
        self.write(pickle.REDUCE)


def dump(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, protocol).dump(value)
    return buffer.getvalue()


# --- what would run ----------------------------------------------------------------------------


def calls(canary: str) -> dict[str, Any]:
    """Ways to make the canary, each by something else that is importable."""
    touch, code = f"touch {canary}", f"open({canary!r}, 'w').close()"
    inner = dump(Call("os", "mkdir", canary))
    function = Call("builtins", "getattr", Call("os", "getcwd"), "__class__")
    return {
        "os.system": Call("os", "system", touch),
        "posix.system": Call("posix", "system", touch),
        "os.popen": Call("os", "popen", touch),
        "os.mkdir": Call("os", "mkdir", canary),
        "subprocess.call": Call("subprocess", "call", ["touch", canary]),
        "subprocess.Popen": Call("subprocess", "Popen", ["touch", canary]),
        "eval": Call("builtins", "eval", code),
        "exec": Call("builtins", "exec", code),
        "eval of Python 2": Call("__builtin__", "eval", code),
        "open": Call("builtins", "open", canary, "w"),
        "io.open": Call("io", "open", canary, "w"),
        "_io.FileIO": Call("_io", "FileIO", canary, "w"),
        "runpy": Call("runpy", "_run_code", Call("builtins", "compile", code, "x", "exec"), {}),
        "pkgutil.resolve_name": Call(
            "builtins", "map", Call("pkgutil", "resolve_name", "os:mkdir"), [canary]
        ),
        "timeit": Call("timeit", "timeit", code, "pass", Call("time", "perf_counter"), 1),
        "cProfile": Call("cProfile", "run", code),
        "pdb": Call("pdb", "run", code),
        "pty": Call("pty", "spawn", ["touch", canary]),
        "shutil": Call("shutil", "copyfile", sys.executable, canary),
        "pathlib": Call("pathlib", "Path.touch", Call("pathlib", "Path", canary)),
        "logging": Call("logging", "FileHandler", canary),
        "tarfile": Call("tarfile", "open", canary, "w"),
        "numpy": Call("numpy.testing._private.utils", "runstring", code, {}),
        "functools": Call("functools", "partial", Call("os", "mkdir"), canary),
        "operator": Call("operator", "methodcaller", "mkdir", canary),
        "getattr": Call("builtins", "getattr", function, "__subclasses__"),
        "importlib": Call("importlib", "import_module", "antigravity"),
        "ctypes": Call("ctypes", "CDLL", "libc.so.6"),
        "torch.load": Call("torch", "load", canary),
        "torch.save": Call("torch", "save", {}, canary),
        "torch.storage": Call(
            "torch.storage", "_load_from_bytes", dump(Call("os", "mkdir", canary))
        ),
        "torch.jit": Call("torch.jit", "load", canary),
        "torch.hub": Call("torch.hub", "load_state_dict_from_url", "http://127.0.0.1:9/x"),
        "torch._inductor": Call("torch._inductor.codecache", "PyCodeCache.load", code),
        "pickle.loads": Call("pickle", "loads", inner),
        "marshal": Call("types", "FunctionType", Call("marshal", "loads", b"x"), {}),
    }


def opcodes(canary: str) -> dict[str, bytes]:
    """The same by opcodes that a pickler would not write."""
    path = canary.encode()
    memo = b"\x8c\x02os\x94\x8c\x05mkdir\x940h\x00h\x01\x93"  # names through the memo, STACK_GLOBAL
    text = b"X" + struct.pack("<I", len(path)) + path
    return {
        "INST": b"(S'" + path + b"'\nios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\nS'" + path + b"'\no.",
        "STACK_GLOBAL through the memo": b"\x80\x04" + memo + text + b"\x85R.",
        "a frame that lies": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"
        + memo
        + text
        + b"\x85R.",
        "NEWOBJ": b"\x80\x02c_io\nFileIO\n" + text + b"X\x01\x00\x00\x00w\x86\x81.",
        "NEWOBJ_EX": b"\x80\x04\x8c\x03_io\x8c\x06FileIO\x93" + text + b"\x8c\x01w\x86}\x92.",
        "BUILD": b"\x80\x02ctorch.nn\nModule\n)\x81}X\x09\x00\x00\x00__class__cos\nmkdir\nsb.",
        "a persistent id": b"\x80\x02(X\x07\x00\x00\x00storagecos\nmkdir\n" + text + b"tQ.",
        "EXT1": b"\x80\x02\x82\x01.",
        "a pickle after a pickle": dump({"a": 1}) + dump(Call("os", "mkdir", canary)),
    }


# --- what it comes in --------------------------------------------------------------------------


def in_torch_zip(data: bytes, name: str = "archive/data.pkl", packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr(name, data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def in_torch_legacy(data: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [0x1950A86A20F9469CFC6C, 1001, system]
    return b"".join(pickle.dumps(part, 2) for part in head) + data + pickle.dumps([], 2)


def in_tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "../outside"):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def archives(canary: str) -> dict[str, Callable[[], bytes]]:
    """Archives that are hostile as such; the pickle in them makes the canary too."""
    data = dump(Call("os", "mkdir", canary))
    whole = in_torch_zip(data)
    slip = in_torch_zip(data).replace(b"archive/version", b"../../../escape")
    broken = bytearray(whole)
    broken[whole.index(data) + 5] ^= 0xFF
    script = in_torch_zip(dump({}))
    buffer = io.BytesIO(script)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/constants.pkl", data)
        archive.writestr("archive/code/__torch__.py", f"import os; os.mkdir({canary!r})")
    exported = in_torch_zip(data, "model/models/model.json")
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    plain = {
        "a tar of the old kind": in_tar(data),
        "zip slip": slip,
        "a broken checksum": bytes(broken),
        "TorchScript": buffer.getvalue(),
        "a packed zip": in_torch_zip(data, packed=True),
        ".pt2": exported,
        "two data.pkl": whole[:-22] + in_torch_zip(dump({})),
        "a zip cut short": whole[: len(whole) // 2],
        "zip behind a header": struct.pack("<Q", 2) + b"{}" + whole,
        "a mock header": struct.pack("<Q", 64) + header + data,
    }
    return {name: partial(bytes, x) for name, x in plain.items()} | {
        "a zip bomb": partial(zip_bomb, data)
    }


def zip_bomb(data: bytes) -> bytes:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            for _ in range(256):
                file.write(bytes(1 << 20))
    return bomb.getvalue()


def hostile(canary: str) -> dict[str, Callable[[], bytes]]:
    """What makes the content of every hostile file, by its name; one of them takes seconds."""
    wraps = (in_torch_zip, in_torch_legacy, bytes)
    pickles = [
        (name, dump({"state_dict": call}, protocol=(2, 4, 0, 3, 5)[number % 5]))
        for number, (name, call) in enumerate(calls(canary).items())
    ]
    made: dict[str, Callable[[], bytes]] = {}
    for several in (pickles, opcodes(canary).items()):
        for number, (name, data) in enumerate(several):
            made[name] = partial(wraps[number % 3], data)
    return made | archives(canary)


NAMES = list(hostile(CANARY))


def test_none_got_lost():
    assert len(NAMES) == 57


def test_the_canaries_would_fire(tmp_path):
    """Python's own unpickler, in a process of its own, lets the plain ones have their way."""
    fired = 0
    for name in ("os.system", "exec", "pathlib", "_io.FileIO", "runpy"):
        canary = tmp_path / name
        data = dump(calls(str(canary))[name], protocol=4)
        code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
        subprocess.run([sys.executable, "-c", code], input=data, capture_output=True)
        fired += canary.exists()
    assert fired == 5


def openers(sd_folder: Path) -> dict[str, Callable[[Path], object]]:
    return {
        "model.safetensors": TextToImage.from_pretrained,
        "model.ckpt": TextToImage.from_pretrained,
        "lora.safetensors": read_lora,
        "lora.pt": read_lora,
        "embedding.safetensors": read_embedding,
        "embedding.bin": read_embedding,
        "diffusion_pytorch_model.safetensors": lambda path: UNet.from_pretrained(path.parent),
        "diffusion_pytorch_model.bin": lambda path: UNet.from_pretrained(path.parent),
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_opens_it(sd_folder, tmp_path, name):
    canary = tmp_path / "canary"
    content = hostile(str(canary))[name]()
    for file_name, open in openers(sd_folder).items():
        folder = tmp_path / f"folder of {file_name}"
        folder.mkdir()
        (folder / "config.json").write_bytes((sd_folder / "unet" / "config.json").read_bytes())
        (folder / file_name).write_bytes(content)
        with pytest.raises((FileError, UsageError)) as caught:
            open(folder / file_name)
        assert str(folder) in str(caught.value)
        try:
            report = inspect(folder / file_name)
            assert "pickle" in report["kind"] or "zip" in report["kind"]
        except FileError as error:
            assert str(folder) in str(error)
        assert {path.name for path in folder.iterdir()} == {"config.json", file_name}
    assert not canary.exists()


BATCH = """
import runpy, sys
from pathlib import Path
worker = runpy.run_path(sys.argv[1])
for path in sorted(Path(sys.argv[2]).iterdir()):
    try:
        worker["convert"](path, Path(sys.argv[3]), "", None)
        print(path.name, "converted")
    except Exception as error:
        print(path.name, "refused", type(error).__name__)
"""


def test_the_converter_opens_none(tmp_path):
    """All in one process, by the function that the closed process calls."""
    canary, files, out = tmp_path / "canary", tmp_path / "files", tmp_path / "out"
    files.mkdir()
    out.mkdir()
    for number, make in enumerate(hostile(str(canary)).values()):
        (files / f"{number:02d}").write_bytes(make())
    command = [
        sys.executable,
        "-c",
        BATCH,
        str(WORKER),
        str(files),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == len(NAMES), done.stderr
    opened = [NAMES[int(number)] for number, answer, *_ in answers if answer != "refused"]
    assert not opened and not canary.exists() and not list(out.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "os.system"),
    ],
)
def test_the_converter_as_people_run_it(tmp_path, name):
    canary, old = tmp_path / "canary", tmp_path / "old.ckpt"
    old.write_bytes(hostile(str(canary))[name]())
    command = [
        sys.executable,
        str(SCRIPT),
        str(old),
        str(tmp_path / "new.safetensors"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (3, 4) and "why:" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
