"""Real pictures on disk for tests, and the faults that are planted among them."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdcore.text.tokenizer import Tokenizer
from sdcore.training.data.scan import scan
from sdcore.training.data.scanned import Scan
from sdcore.training.data.settings import DataSettings
from sdcore.training.data.sources import read_items
from tests import tiny

SIDE = 64


def noise(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A picture that no other seed gives."""
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def make_folder(folder: Path, count: int, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """Sound pictures `p00000.png` and so on, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        data = encoded(noise(number, size), ("PNG", "JPEG")[number % 2])
        (folder / f"p{number:05d}.{('png', 'jpg')[number % 2]}").write_bytes(data)
        (folder / f"p{number:05d}.txt").write_text(f"a red fox, number {number}", "utf-8")
    return folder


def settings_of(source: Path | str, **changes: Any) -> DataSettings:
    return DataSettings.model_validate({"source": str(source), "resolution": SIDE, **changes})


def scanned(source: Path | str, cache: Path | None = None, **changes: Any) -> Scan:
    settings = settings_of(source, **changes)
    return scan(read_items(settings, cache), settings, cache)


def tokenizer() -> Tokenizer:
    tokens, merges = tiny.vocabulary()
    return Tokenizer.from_vocab(tokens, merges, max_length=77)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of some size and has no rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


# --- planted faults: each changes the picture, caption or mask of one stem ------------------------


class Place:
    """One picture with its caption and its mask, which a fault is planted in."""

    def __init__(self, folder: Path, masks: Path, number: int) -> None:
        self.folder, self.masks, self.number = folder, masks, number
        self.stem = f"p{number:05d}"
        self.picture = folder / f"{self.stem}.png"
        self.caption = folder / f"{self.stem}.txt"
        self.mask = masks / f"{self.stem}.png"
        self.name = self.picture.name  # what the scan is to name

    def sound(self, mask: bytes) -> None:
        self.picture.write_bytes(encoded(noise(self.number), "PNG", compress_level=1))
        self.caption.write_text(f"a red fox, number {self.number}", "utf-8")
        self.mask.write_bytes(mask)

    def image(self, image: Image.Image, format: str = "PNG", **options: Any) -> None:
        self.picture.write_bytes(encoded(image, format, **options))
        white = Image.new("L", image.size, 255)
        self.mask.write_bytes(encoded(white, "PNG"))

    def cut(self, format: str) -> None:
        data = encoded(noise(self.number), format)
        self.picture.write_bytes(data[: len(data) * 3 // 4])


def _zeros(place: Place) -> None:
    data = encoded(noise(place.number), "JPEG")
    place.picture.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))


def _flipped(place: Place) -> None:
    data = bytearray(place.picture.read_bytes())
    data[len(data) // 2] ^= 4
    place.picture.write_bytes(data)


def _link(place: Place) -> None:
    place.picture.unlink()
    place.picture.symlink_to(place.folder / "gone.png")


def _animated(place: Place) -> None:
    frames = [noise(place.number + 1_000_000), noise(place.number + 2_000_000)]
    place.image(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


def _copied(place: Place) -> None:
    place.picture.write_bytes((place.folder / "p00000.png").read_bytes())


def _saved_again(place: Place) -> None:
    place.image(noise(0), "BMP")


def _lone_text(place: Place) -> None:
    place.picture.unlink()
    place.mask.unlink()
    place.name = place.caption.name


def _black(place: Place) -> None:
    place.mask.write_bytes(encoded(Image.new("L", (SIDE, SIDE)), "PNG"))


def _small_mask(place: Place) -> None:
    place.mask.write_bytes(encoded(Image.new("L", (SIDE // 2, SIDE), 255), "PNG"))


def _see_through(place: Place) -> None:
    image = noise(place.number).convert("RGBA")
    image.putalpha(0)
    place.image(image)


def _plain(place: Place) -> None:
    colour = place.number % 251, place.number // 251, 3
    place.image(Image.new("RGB", (SIDE, SIDE), colour))


Plant = Callable[[Place], object]
FAULTS: dict[str, tuple[str, Plant]] = {  # title -> (kind that the scan says, what plants it)
    "no bytes": ("empty", lambda p: p.picture.write_bytes(b"")),
    "cut JPEG": ("damaged", lambda p: p.cut("JPEG")),
    "cut PNG": ("damaged", lambda p: p.cut("PNG")),
    "cut WebP": ("damaged", lambda p: p.cut("WEBP")),
    "zeros": ("damaged", _zeros),
    "flipped bit": ("damaged", _flipped),
    "web page": ("not a picture", lambda p: p.picture.write_bytes(b"<!DOCTYPE html><p>404</p>")),
    "bomb": ("too large", lambda p: p.picture.write_bytes(png_header(20_000, 20_000))),
    "small": ("too small", lambda p: p.image(noise(p.number, (12, 12)))),
    "long": ("extreme shape", lambda p: p.image(noise(p.number, (600, 64)))),
    "see-through": ("transparent", _see_through),
    "dangling link": ("missing", _link),
    "no caption": ("caption missing", lambda p: p.caption.unlink()),
    "empty caption": ("caption empty", lambda p: p.caption.write_text(" \n")),
    "binary caption": ("caption undecodable", lambda p: p.caption.write_bytes(b"\x00\xff\x81\x8d")),
    "no mask": ("mask missing", lambda p: p.mask.unlink()),
    "small mask": ("mask size", _small_mask),
    "black mask": ("mask black", _black),
    "animated": ("animated", _animated),
    "one colour": (
        "one colour",
        lambda p: p.image(Image.new("RGB", (SIDE, SIDE), (p.number % 251, p.number // 251, 3))),
    ),
    "near-empty caption": ("caption near empty", lambda p: p.caption.write_text(" . ")),
    "cp1252 caption": ("caption encoding", lambda p: p.caption.write_bytes(b"a caf\xe9 \x96 fox")),
    "long caption": ("caption cut", lambda p: p.caption.write_text("a fox on the tree, " * 40)),
    "copied": ("duplicate file", _copied),
    "saved again": ("duplicate pixels", _saved_again),
}
assert len(FAULTS) == 25


def plant(folder: Path, count: int, faults: int) -> tuple[DataSettings, set[tuple[str, str]]]:
    """`count` pictures, some with one fault each: the settings, and (name, kind) of the faults."""
    pictures, masks = folder / "pictures", folder / "masks"
    shutil.rmtree(folder, ignore_errors=True)
    pictures.mkdir(parents=True)
    masks.mkdir()
    mask = encoded(Image.new("L", (SIDE, SIDE), 255), "PNG")
    places = [Place(pictures, masks, number) for number in range(count)]
    for place in places:
        place.sound(mask)
    expected: set[tuple[str, str]] = set()
    kinds = list(FAULTS.values())
    for number in range(faults):  # spread over all but the first, of which there are copies
        place = places[1 + number * (count - 1) // faults]
        kind, change = kinds[number % len(kinds)]
        change(place)
        expected.add((place.name, kind))
    settings = settings_of(pictures, masks=str(masks), on_bad_sample="skip", most_bad=1.0)
    return settings, expected
