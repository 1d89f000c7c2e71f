"""Bad weights: networks, adapters, single files, GGUF, old checkpoints."""

from __future__ import annotations

import json
import random
import struct
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from sdcore import TextToImage, apply_embeddings, apply_loras, read_embedding, read_lora
from sdcore.checkpoint.inspection import inspect
from sdcore.checkpoint.single_file import read_single_file, save_single_file
from sdcore.files.gguf_file import open_gguf, read_gguf
from sdcore.text.encoder import CLIPTextEncoder
from tests import tiny
from tests.reliability import test_damaged_adapters as adapters
from tests.reliability import test_damaged_files as container
from tests.reliability import test_damaged_single_files as single
from tests.reliability import test_hostile_pickles as pickles
from tests.reliability.corpus.case import Reader

Damage = Callable[[Path, random.Random], None]
SAFETENSORS = {
    "bytes of numbers": "finite numbers of the right type and shape: safetensors has no checksum",
    "bytes of notes": "a letter of __metadata__, which is shown and decides nothing",
}


@cache
def model_folder() -> Path:
    """A tiny Stable Diffusion 1.x."""
    return tiny.write_sd(Path(tempfile.mkdtemp(prefix="sdcore-corpus-")) / "sd")


@cache
def model() -> TextToImage:
    return TextToImage.from_pretrained(model_folder())


def choose(kinds: Mapping[Damage, int], rng: random.Random) -> Damage:
    """One of several kinds of damage, each as often as its number says."""
    return rng.choices(list(kinds), list(kinds.values()))[0]


def flip(path: Path, rng: random.Random, head: int | None = None) -> None:
    """Change a few bytes of a file, or of its first ones."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 8, 40])):
        data[rng.randrange(min(len(data), head or len(data)))] = rng.randrange(256)
    path.write_bytes(bytes(data))


def touched(sound: bytes, path: Path) -> str:
    """Which part of a safetensors file was changed."""
    data, start = path.read_bytes(), 8 + struct.unpack("<Q", sound[:8])[0]
    if data[:start] == sound[:start]:
        return "bytes of numbers"
    try:
        before, after = json.loads(sound[8:start]), json.loads(data[8:start])
    except ValueError:
        return "bytes of the header, which is none"
    before.pop("__metadata__", None)
    notes = after.pop("__metadata__", None) if isinstance(after, dict) else None
    same = before == after and data[:8] == sound[:8]
    return "bytes of notes" if same and isinstance(notes, dict | None) else "bytes of the table"


# --- a network -----------------------------------------------------------------------------------


def damaged_network(folder: Path, rng: random.Random) -> str:
    inside = folder / "model"
    inside.mkdir()
    for name, content in container.network().items():
        (inside / name).write_bytes(content)
    if rng.random() < 0.25:
        flip(inside / container.WEIGHTS, rng)
        return touched(container.network()[container.WEIGHTS], inside / container.WEIGHTS)
    damage = choose(container.CASES, rng)
    damage(inside, rng)
    return damage.__name__


def open_network(folder: Path) -> None:
    try:
        CLIPTextEncoder.from_pretrained(folder / "model")
    finally:
        inspect(folder / "model")


# --- adapters ------------------------------------------------------------------------------------


def damaged_lora(folder: Path, rng: random.Random) -> str:
    adapters.write_lora(folder, rng.choice(list(adapters.SPELLINGS)))
    path = folder / adapters.FILE
    if rng.random() < 0.2:
        sound = path.read_bytes()
        flip(path, rng)
        return touched(sound, path)
    if rng.random() < 0.2:
        notes_of(path, rng)
        return "notes"
    damage = choose(adapters.LORA, rng)
    damage(folder, rng)
    return damage.__name__


NOTES = ("ss_network_alpha", "ss_network_dim", "ss_network_args", "modelspec.architecture")
NOTES += ("lora_adapter_metadata", "ss_base_model_version", "ss_v2", "ss_tag_frequency", "format")


def notes_of(path: Path, rng: random.Random) -> None:
    """What a file says about itself, as no trainer says it."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    values = ["9" * 400, "1e400", "-1", "NaN", "null", "", "[" * 5000, '{"r": ' + "9" * 400 + "}"]
    values += ["\x1b[2J", "{}", "[1]", "x" * 100_000, '{"alpha_pattern": {"a": "b"}}', "true"]
    header["__metadata__"] = {
        name: rng.choice(values) for name in rng.sample(NOTES, rng.randrange(1, len(NOTES)))
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def open_lora(folder: Path) -> None:
    path = folder / adapters.FILE
    path = path if path.exists() or not folder.is_dir() else folder
    try:
        apply_loras(model(), [(read_lora(path), 1)])
    finally:
        inspect(path)


def damaged_embedding(folder: Path, rng: random.Random) -> str:
    adapters.write_embedding(folder)
    path = folder / adapters.FILE
    if rng.random() < 0.3:
        sound = path.read_bytes()
        flip(path, rng)
        return touched(sound, path)
    damage = choose(adapters.EMBEDDING, rng)
    damage(folder, rng)
    return damage.__name__


def open_embedding(folder: Path) -> None:
    apply_embeddings(model(), [read_embedding(folder / adapters.FILE)])


# --- whole models in a file ----------------------------------------------------------------------


@cache
def single_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_single_file(model(), Path(folder) / "a.safetensors")
        return (Path(folder) / "a.safetensors").read_bytes()


def damaged_single_file(folder: Path, rng: random.Random) -> str:
    sound, path = single_file(), folder / "model.safetensors"
    length = struct.unpack("<Q", sound[:8])[0]
    if rng.random() < 0.3:
        path.write_bytes(sound)
        flip(path, rng, 8 + length)
        return touched(sound, path)
    header, payload = json.loads(sound[8 : 8 + length]), bytearray(sound[8 + length :])
    damage = rng.choice(single.DAMAGES)
    damage(header, payload, rng)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    return damage.__name__


def open_single_file(folder: Path) -> None:
    read_single_file(folder / "model.safetensors", config=model_folder())


@cache
def gguf_file() -> bytes:
    import gguf
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        writer = gguf.GGUFWriter(path, "sd1")
        writer.add_string("general.name", "a")
        for number in range(4):
            writer.add_tensor(f"layer.{number}.weight", np.ones((8, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def damaged_gguf(folder: Path, rng: random.Random) -> str:
    path, data = folder / "model.gguf", gguf_file()
    kind = rng.choice(["bytes", "cut", "number", "tail"])
    if kind == "cut":
        data = data[: rng.randrange(len(data))]
    elif kind == "number":
        place = rng.randrange(4, 400, 4)
        huge = rng.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
        data = data[:place] + struct.pack("<Q", huge) + data[place + 8 :]
    elif kind == "tail":
        data += rng.randbytes(rng.randrange(1, 5000))
    path.write_bytes(data)
    if kind == "bytes":
        flip(path, rng, 500)
    return kind


def open_a_gguf(folder: Path) -> None:
    for _ in read_gguf(open_gguf(folder / "model.gguf")):
        pass


# --- old checkpoints -----------------------------------------------------------------------------


def hostile_pickle(folder: Path, rng: random.Random) -> str:
    made = pickles.hostile(str(folder / "canary"))
    name = rng.choice([name for name in made if name != "a zip bomb"])
    data = bytearray(made[name]())
    if rng.random() < 0.5:
        data[rng.randrange(len(data))] = rng.randrange(256)
    (folder / rng.choice(["a.ckpt", "a.safetensors", "a.bin", "a.pt"])).write_bytes(bytes(data))
    return name


def open_pickle(folder: Path) -> None:
    """As a model, as an adapter, and by the function of the converter's closed process."""
    from sdcore.app import convert_worker
    from sdcore.errors import FileError, SdcoreError

    path = next(path for path in folder.iterdir() if path.name.startswith("a."))
    for open in (TextToImage.from_pretrained, read_lora, read_embedding):
        try:
            open(path)
            raise AssertionError(f"{open.__qualname__} opened it")
        except SdcoreError:
            pass
    try:
        convert_worker.convert(path, folder, "", None)
    except Exception as error:
        assert not (folder / "canary").exists(), "code ran"
        reason = convert_worker.reason_of(error)
        assert "weights_only" not in reason, "advice to open it unsafely"
        raise FileError("It was not converted.", f"{reason:.80}.", "Do not trust it.") from error
    assert not (folder / "canary").exists(), "code ran"


READERS = (
    Reader("weights", 800, 20_000, damaged_network, open_network, SAFETENSORS),
    Reader(
        "LoRAs",
        400,
        4000,
        damaged_lora,
        open_lora,
        {
            **SAFETENSORS,
            "notes": "of what a file says about itself an alpha within its range alone is used",
        },
    ),
    Reader("learned words", 100, 1500, damaged_embedding, open_embedding, SAFETENSORS),
    Reader("single files", 100, 2000, damaged_single_file, open_single_file, SAFETENSORS),
    Reader(
        "GGUF",
        100,
        1500,
        damaged_gguf,
        open_a_gguf,
        {
            "tail": "bytes behind the last tensor, where files are padded: none of them is read",
            "bytes": "a letter of a note, or of a name, which a network then does not have; or "
            "another place of finite numbers: GGUF has no checksum",
            "number": "a number of a note, or another place of finite numbers: no checksum",
        },
    ),
    Reader(
        "old checkpoints",
        60,
        500,
        hostile_pickle,
        open_pickle,
        {"*": "the changed byte took the call out: the closed process reads tensors alone"},
    ),
)
