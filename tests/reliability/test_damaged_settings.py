"""Damaged settings of a whole model, made by number: refused by name, or opened and sound.

A setting that is gone or has another value may leave a sound model, so these cases may also open.
What never happens: another kind of error, a long wait, much memory, a file written.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcore import TextToImage
from sdcore.checkpoint.inspection import inspect
from sdcore.errors import SdcoreError
from tests.reliability.watch import watched

SETTINGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
)
Damage = Callable[[Path, random.Random], None]

JUNK: list[Any] = [
    *[None, True, False, 0, -1, 3, 1.5, -1e9, 10**400, 10**9, "", "x", "../../etc", "\0"],
    *["x" * 10_000, [], {}, [None], [[1]], {"a": {}}, ["python", "os.system"], [1] * 10_000],
    *["!!python/object:os.system", -(2**63), ["diffusers", "DiffusionPipeline"]],
]


def junk_value(path: Path, rng: random.Random) -> None:
    settings = json.loads(path.read_text())
    settings[rng.choice(sorted(settings))] = rng.choice(JUNK)
    path.write_text(json.dumps(settings))


def junk_inside(path: Path, rng: random.Random) -> None:
    """Somewhere in the lists and objects that are in it."""
    settings = json.loads(path.read_text())
    places = [
        (value, key)
        for value in settings.values()
        if isinstance(value, list | dict) and value
        for key in (range(len(value)) if isinstance(value, list) else sorted(value))
    ]
    holder, key = rng.choice(places or [(settings, next(iter(settings)))])
    holder[key] = rng.choice(JUNK)
    path.write_text(json.dumps(settings))


def value_gone(path: Path, rng: random.Random) -> None:
    settings = json.loads(path.read_text())
    settings.pop(rng.choice(sorted(settings)))
    path.write_text(json.dumps(settings))


def bytes_changed(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(bytes(data))


def broken_text(path: Path, rng: random.Random) -> None:
    text = path.read_bytes()
    damaged = [
        text[: rng.randrange(text.rindex(b"}"))],
        b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"),
        b"[" + text + b"]",
        text.replace(b"{", b'{"a": 1, "a": 2,', 1),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        text.replace(b"{", b'{"a": 1e999,', 1),
        text.replace(b"{", b'{"a": NaN,', 1),
        b"",
        b"\xff" + text,
        text + b" " * (17 << 20),
    ]
    path.write_bytes(rng.choice(damaged))


def code_asked_for(path: Path, rng: random.Random) -> None:
    code = [{"auto_map": {"AutoModel": "code.Model"}}, {"_class_name": ["code", "Model"]}]
    path.write_text(json.dumps({**json.loads(path.read_text()), **rng.choice(code)}))


def not_there(path: Path, rng: random.Random) -> None:
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()


KINDS: dict[Damage, int] = {
    junk_value: 24,
    junk_inside: 8,
    value_gone: 6,
    bytes_changed: 8,
    broken_text: 10,
    code_asked_for: 2,
    not_there: 2,
}
MAY_OPEN = (junk_value, junk_inside, value_gone, bytes_changed, code_asked_for)


def write_model(sound: Path, folder: Path) -> None:
    """A copy of a sound model in an empty folder."""
    for path in sound.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(sound)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


CASES = [
    pytest.param(
        damage,
        name,
        seed,
        id=f"{damage.__name__}-{name}-{seed}",
        marks=[pytest.mark.slow] if seed else [],
    )
    for damage, count in KINDS.items()
    for name in SETTINGS
    for seed in range(count)
]


@pytest.mark.parametrize(("damage", "name", "seed"), CASES)
def test_settings(sd_folder, tmp_path, record_property, damage, name, seed):
    folder = tmp_path / "model"
    write_model(sd_folder, folder)
    damage(folder / name, random.Random(f"{damage.__name__} {name} {seed}"))
    with watched(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = open_or_refuse(TextToImage.from_pretrained, folder)
        open_or_refuse(inspect, folder)
    record_property("answer", "opened" if opened else "refused")
    assert damage in MAY_OPEN or not opened


def open_or_refuse(open: Callable[[Path], object], folder: Path) -> bool:
    """Whether it opened; what it is refused with is one of sdcore's errors and names a file."""
    try:
        open(folder)
    except SdcoreError as error:
        assert error.what and error.why and error.hint and len(str(error)) < 2500
        assert str(folder) in str(error)
        return False
    return True
