"""Damaged model folders, made by number: each is refused quickly and by name, nothing is written.

Every case is a kind of damage and a seed, so a failure is repeated by its test id alone.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcore.checkpoint.inspection import inspect, lines
from sdcore.errors import FileError, UsageError
from sdcore.text.encoder import CLIPTextConfig, CLIPTextEncoder
from tests.reliability.watch import snapshot as snapshot
from tests.reliability.watch import watched

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
Damage = Callable[[Path, random.Random], None]


@cache
def network() -> dict[str, bytes]:
    """File name -> content of a sound folder."""
    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=6,
        eos_token_id=19,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        CLIPTextEncoder(config).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, bytes]:
    """File name -> content of a sound folder."""
    folder = tmp_path_factory.mktemp("sound")
    for name, content in network().items():
        (folder / name).write_bytes(content)
    CLIPTextEncoder.from_pretrained(folder)
    return network()


# --- the parts of a safetensors file ---------------------------------------------------------


def parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    return header, data[8 + length :]


def join(folder: Path, header: dict[str, Any] | bytes, payload: bytes, name: str = WEIGHTS) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + payload)


def pick(header: dict[str, Any], rng: random.Random) -> str:
    return rng.choice(sorted(header))


# --- damage to the weights -------------------------------------------------------------------


def cut_anywhere(folder: Path, rng: random.Random) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: rng.randrange(len(data))])


def cut_near_an_edge(folder: Path, rng: random.Random) -> None:
    data = (folder / WEIGHTS).read_bytes()
    edge = rng.choice([0, 8, 8 + struct.unpack("<Q", data[:8])[0], len(data)])
    (folder / WEIGHTS).write_bytes(data[: max(0, edge - rng.randrange(1, 8))])


def header_length(folder: Path, rng: random.Random) -> None:
    data = (folder / WEIGHTS).read_bytes()
    true = struct.unpack("<Q", data[:8])[0]
    lies = [0, 1, true - 1, true + 1, len(data), 100_000_001, 1 << 40, 1 << 63, (1 << 64) - 1]
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", rng.choice(lies)) + data[8:])


def header_byte(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    text = bytearray(json.dumps(header, separators=(",", ":")).encode())
    place = rng.randrange(len(text))
    text[place] = rng.choice([byte for byte in range(33, 256) if byte != text[place]])
    join(folder, bytes(text), payload)


def key_twice(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    name = pick(header, rng)
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    join(folder, text.encode(), payload)


def offsets(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    entry = header[pick(header, rng)]
    start, end = entry["data_offsets"]
    entry["data_offsets"] = rng.choice(
        [
            *[[start + 4, end + 4], [0, end - start - 4], [end, start], [-4, end], [start], "0"],
            *[[start, 1 << 63], [start, 1 << 70], [start + 0.5, end], None],
        ]
    )
    join(folder, header, payload)


def shape(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    entry = header[pick(header, rng)]
    sizes = entry["shape"]
    entry["shape"] = rng.choice(
        [
            *[[*sizes, 2], [-size for size in sizes], [1 << 32, 1 << 32, *sizes], [0], None, "8"],
            *[{}, [1 << 64], [*sizes, 1.5], [sizes]],
        ]
    )
    join(folder, header, payload)


def other_shape_same_size(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    entry = header[pick(header, rng)]
    entry["shape"] = rng.choice([[1, *entry["shape"]], [*entry["shape"], 1]])
    join(folder, header, payload)


def number_type(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    entry = header[pick(header, rng)]
    entry["dtype"] = rng.choice(["F16", "F64", "I32", "U8", "F8_E4M3", "BOOL", "C64", "f32", "", 3])
    join(folder, header, payload)


def tail(folder: Path, rng: random.Random) -> None:
    tails = [b"\0", b"PK\x03\x04" + bytes(60), b"<html><script>x</script></html>", bytes(4096)]
    with (folder / WEIGHTS).open("ab") as file:
        file.write(rng.choice(tails))


def not_finite(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    data = bytearray(payload)
    place = 4 * rng.randrange(len(data) // 4)
    data[place : place + 4] = struct.pack("<f", rng.choice([math.nan, math.inf, -math.inf]))
    join(folder, header, bytes(data))


def missing_key(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    last = max(header, key=lambda name: header[name]["data_offsets"][1])
    start, _ = header.pop(last)["data_offsets"]
    join(folder, header, payload[:start])


def surplus_key(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    names = ["../../etc/x", "__class__", "a\0b", "k" * 10_000, "", "text_model", "🦊", "..", "x.y"]
    header[rng.choice(names)] = {
        "dtype": "F32",
        "shape": [2],
        "data_offsets": [len(payload), len(payload) + 8],
    }
    join(folder, header, payload + bytes(8))


def renamed_key(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    name = pick(header, rng)
    odd = [name.upper(), name + " ", name.replace("text_model", "vision_model"), f"module.{name}"]
    header[rng.choice(odd)] = header.pop(name)
    join(folder, header, payload)


def odd_header(folder: Path, rng: random.Random) -> None:
    _, payload = parts(folder)
    text = rng.choice(
        [
            *[b"{" + b" " * 64 + b"}", b"[]", b'{"a":' * 20_000, b"{" + b"\xff" * 99, b'{"a":1}'],
            *[b'{"__metadata__": 3}', b'{"a":{"dtype":"F32"}}', b'{"a": NaN}', b'{"a": [[[1]]]}'],
        ]
    )
    join(folder, text, payload)


def huge_header(folder: Path, rng: random.Random) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"key{rng.random()}.{i}": entry for i in range(100_000)})
    join(folder, text.encode(), b"")


def another_kind_of_file(folder: Path, rng: random.Random) -> None:
    protocol = rng.randrange(6)
    contents = [
        pickle.dumps({"weight": [1.0] * 1000}, protocol),
        b"PK\x03\x04" + rng.randbytes(500),
        b"<!DOCTYPE html><html><body>Sign in</body></html>" * 20,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"GGUF" + rng.randbytes(100),
        rng.randbytes(5000),
        bytes(5000),
        b"{}",
    ]
    (folder / WEIGHTS).write_bytes(rng.choice(contents))


def not_a_file(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice([WEIGHTS, CONFIG])
    path.unlink()
    kind = rng.choice(["missing", "folder", "pipe", "dangling", "loop"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(folder / "gone")
    elif kind == "loop":
        path.symlink_to(path)


def only_pickles(folder: Path, rng: random.Random) -> None:
    name = rng.choice(["pytorch_model.bin", "model.pt", "model.ckpt", "model.fp16.safetensors"])
    (folder / WEIGHTS).rename(folder / name)


# --- damage to config.json -------------------------------------------------------------------


def config_text(folder: Path, rng: random.Random) -> None:
    path = folder / CONFIG
    text = path.read_bytes()
    damaged = [
        text[: rng.randrange(text.rindex(b"}"))],
        b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"),
        b"[" + text + b"]",
        text.replace(b"{", b'{"hidden_size": 8,', 1),
        text + text,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        text.replace(b"1e-05", rng.choice([b"NaN", b"Infinity", b"1e999", b"1" * 5000])),
        b"null",
        b"\xff" + text,
        text.replace(b"}", b" " * (17 << 20) + b"}"),
    ]
    path.write_bytes(rng.choice(damaged))


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
]


def config_size(folder: Path, rng: random.Random) -> None:
    bad = [0, -1, 3, 10**6, 10**9, 2**63, 10**400, 2.5, "8", True, None, [8], {}]
    edit_config(folder, {rng.choice(SIZES): rng.choice(bad)})


def config_setting(folder: Path, rng: random.Random) -> None:
    changes = [
        {"hidden_act": "gelu_new"},
        {"hidden_act": ["gelu"]},
        {"layer_norm_eps": 0},
        {"layer_norm_eps": "small"},
        {"attention_dropout": 0.1},
        {"eos_token_id": [19, 2]},
        {"eos_token_id": None},
        {"architectures": ["CLIPVisionModel"]},
        {"architectures": "CLIPTextModel"},
        {"architectures": [["CLIPTextModel"]]},
        {"architectures": ["CLIPTextModelWithProjection"]},
        {"model_type": "t5"},
        {"_class_name": ["module", "Class"]},
        {"auto_map": {"AutoModel": "code.Model"}},
        {"quantization_config": {"bits": 4}},
        {"hiden_size": 8},
    ]
    edit_config(folder, rng.choice(changes))


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- damage to sharded weights ---------------------------------------------------------------


def shards(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    (folder / WEIGHTS).unlink()
    weight_map: dict[str, Any] = {}
    for number in (0, 1):
        part = {key: value for i, (key, value) in enumerate(header.items()) if i % 2 == number}
        write_shard(folder, f"model-{number}.safetensors", part, payload)
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    first = sorted(weight_map)[0]
    outside = folder.parent / "outside.safetensors"
    damaged = [
        {**weight_map, first: "model-9.safetensors"},
        {**weight_map, first: "../outside.safetensors"},
        {**weight_map, first: str(outside)},
        {**weight_map, first: 3},
        {**weight_map, first: ["model-0.safetensors"]},
        {**weight_map, "surplus": "model-0.safetensors"},
        {**weight_map, first: "config.json"},
        {key: value for key, value in weight_map.items() if key != first},
        dict.fromkeys(weight_map, "model-0.safetensors"),
        list(weight_map),
        {},
        None,
    ]
    (folder / INDEX).write_text(json.dumps({"weight_map": rng.choice(damaged)}))


def cut_shard(folder: Path, rng: random.Random) -> None:
    header, payload = parts(folder)
    write_shard(folder, "model-0.safetensors", header, payload)
    (folder / WEIGHTS).unlink()
    weight_map = dict.fromkeys(header, "model-0.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    data = (folder / "model-0.safetensors").read_bytes()
    (folder / "model-0.safetensors").write_bytes(data[: rng.randrange(len(data))])


def write_shard(folder: Path, name: str, part: dict[str, Any], payload: bytes) -> None:
    header, data = {}, b""
    for key, entry in part.items():
        start, end = entry["data_offsets"]
        header[key] = {**entry, "data_offsets": [len(data), len(data) + end - start]}
        data += payload[start:end]
    join(folder, header, data, name)


# --- the test --------------------------------------------------------------------------------

CASES: dict[Damage, int] = {
    cut_anywhere: 30,
    cut_near_an_edge: 12,
    header_length: 12,
    header_byte: 30,
    key_twice: 5,
    offsets: 16,
    shape: 14,
    other_shape_same_size: 5,
    number_type: 12,
    tail: 5,
    not_finite: 8,
    missing_key: 1,
    surplus_key: 10,
    renamed_key: 8,
    odd_header: 12,
    huge_header: 1,
    another_kind_of_file: 14,
    not_a_file: 12,
    only_pickles: 6,
    config_text: 20,
    config_size: 30,
    config_setting: 24,
    shards: 20,
    cut_shard: 8,
}


@pytest.mark.parametrize(
    ("damage", "seed"),
    [
        pytest.param(
            damage,
            seed,
            id=f"{damage.__name__}-{seed}",
            marks=[pytest.mark.slow] if seed > 1 else [],
        )
        for damage, count in CASES.items()
        for seed in range(count)
    ],
)
def test_refused(sound, tmp_path, damage, seed):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in sound.items():
        (folder / name).write_bytes(content)
    damage(folder, random.Random(f"{damage.__name__} {seed}"))
    with watched(folder), pytest.raises((FileError, UsageError)) as caught:
        CLIPTextEncoder.from_pretrained(folder)
    assert str(folder) in caught.value.what and len(str(caught.value)) < 2500
    assert caught.value.why and caught.value.hint
    look_at(folder)


def look_at(folder: Path) -> None:
    """What `sdcore inspect` says of it: a report or an error with a file's name, never a crash."""
    with watched(folder):
        try:
            assert "\n".join(lines(inspect(folder)))
        except (FileError, UsageError) as error:
            assert str(folder) in str(error)


def test_there_are_at_least_300_cases():
    assert sum(CASES.values()) >= 300
