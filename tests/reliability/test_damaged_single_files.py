"""Damaged single files, made by number: each is refused by name, nothing is written.

What is wrong with a header as such is tested with folders; here it is what only whole models have.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcore import TextToImage
from sdcore.checkpoint.families import FOLDER, recognise
from sdcore.checkpoint.single_file import read_single_file, save_single_file
from sdcore.errors import FileError
from sdcore.files.header import WeightFile
from tests.checkpoint.test_single_file import shapes_of

Header = dict[str, Any]
Damage = Callable[[Header, bytearray, random.Random], None]
SEEDS = [range(2), pytest.param(range(2, 6), marks=pytest.mark.slow)]
STRANGE = ("../../etc/passwd", "__class__", "a\0b", "x" * 10_000, "v_pred.weight", "model.", "🦊")


def weights(header: Header) -> list[str]:
    """The names of tensors that a model needs."""
    return sorted(name for name in header if name != "__metadata__")


def pick(header: Header, rng: random.Random, rank: int = 1) -> str:
    return rng.choice([name for name in weights(header) if len(header[name]["shape"]) >= rank])


def letter(header: Header, payload: bytearray, rng: random.Random) -> None:
    name = pick(header, rng)
    place = rng.randrange(len(name))
    other = rng.choice([c for c in "abcxyz0189._" if c != name[place]])
    header[name[:place] + other + name[place + 1 :]] = header.pop(name)


def left_out(header: Header, payload: bytearray, rng: random.Random) -> None:
    """One tensor under the name of another that is there already as an ignored one."""
    header["model_ema." + str(rng.random())] = header.pop(pick(header, rng))


def strange_name(header: Header, payload: bytearray, rng: random.Random) -> None:
    header[rng.choice(STRANGE)] = {
        "dtype": "F32",
        "shape": [0],
        "data_offsets": [len(payload), len(payload)],
    }


def two_names_changed(header: Header, payload: bytearray, rng: random.Random) -> None:
    first, second = pick(header, rng), pick(header, rng)
    while header[first]["shape"] == header[second]["shape"]:
        second = pick(header, rng)
    header[first], header[second] = header[second], header[first]


def turned(header: Header, payload: bytearray, rng: random.Random) -> None:
    entry = header[pick(header, rng, rank=2)]
    while len(set(entry["shape"])) < 2:
        entry = header[pick(header, rng, rank=2)]
    entry["shape"] = [*entry["shape"][1:], entry["shape"][0]]
    if entry["shape"][0] == entry["shape"][-1]:
        entry["shape"] = [*entry["shape"], 1]


def other_rank(header: Header, payload: bytearray, rng: random.Random) -> None:
    entry = header[pick(header, rng)]
    size = torch.Size(entry["shape"]).numel()
    entry["shape"] = rng.choice(
        [[1, *entry["shape"]], [size, 1], [1, 1, size], [*entry["shape"], 1]]
    )


def whole_numbers(header: Header, payload: bytearray, rng: random.Random) -> None:
    header[pick(header, rng)]["dtype"] = "I32"


def not_finite(header: Header, payload: bytearray, rng: random.Random) -> None:
    start, end = header[pick(header, rng)]["data_offsets"]
    place = rng.randrange(start, end, 4)
    payload[place : place + 4] = struct.pack("<f", rng.choice([torch.nan, torch.inf, -torch.inf]))


def prefix(header: Header, payload: bytearray, rng: random.Random) -> None:
    """A whole part under another name."""
    old = rng.choice(["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
    for name in [name for name in header if name.startswith(old)]:
        header[old.replace("model.", f"model{rng.randrange(9)}.", 1) + name] = header.pop(name)


def note(header: Header, payload: bytearray, rng: random.Random) -> None:
    header["__metadata__"]["modelspec.prediction_type"] = rng.choice(["", "w", "ε", "v" * 1000])


DAMAGES: list[Damage] = [
    *(letter, left_out, strange_name, two_names_changed, turned, other_rank),
    *(whole_numbers, not_finite, prefix, note),
]


@pytest.fixture(scope="module")
def sound(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "sound.safetensors"
    save_single_file(TextToImage.from_pretrained(sd_folder), path)
    read_single_file(path, config=sd_folder)
    return path.read_bytes()


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files_are_refused(
    sound: bytes, sd_folder: Path, tmp_path: Path, damage: Damage, seeds: range
) -> None:
    length = struct.unpack("<Q", sound[:8])[0]
    path = tmp_path / "damaged.safetensors"
    for seed in seeds:
        header, payload = json.loads(sound[8 : 8 + length]), bytearray(sound[8 + length :])
        damage(header, payload, random.Random(seed))
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
        with pytest.raises(FileError) as caught:
            read_single_file(path, config=sd_folder)
        assert str(path) in str(caught.value), seed
        assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 3000
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 100), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sdxl_refiner"])
def test_no_header_confuses_the_recognition(family: str, seeds: range, tmp_path: Path) -> None:
    """300 headers of full size with damaged shapes and names: a family or a FileError."""
    shapes = shapes_of(family)
    file = WeightFile(tmp_path / "m.safetensors", shapes, frozenset(), {}, {})
    decisive = [
        name for name in shapes if "attn2.to_k" in name or "label_emb" in name or ".0.0." in name
    ]
    found = 0
    for seed in seeds:
        rng = random.Random(seed)
        changed = dict(shapes)
        for _ in range(rng.randrange(1, 30)):
            name = rng.choice([*decisive, *shapes])
            wrong: list[tuple[int, ...]] = [(), (0,), (9,), (1 << 62, 4), (320, 9, 3, 3), (1, 768)]
            changed[name] = rng.choice(wrong)
            if rng.random() < 0.3:
                changed.pop(rng.choice(decisive), None)
        try:
            found += recognise(replace(file, shapes=changed)).folder.parent == FOLDER
        except FileError as error:
            assert "m.safetensors" in error.what
    assert (
        0 < found < len(seeds)
    )  # damage elsewhere is for the strict comparison of names and shapes
