"""Caches: an entry is used for exactly what it was made of, and never when it is damaged."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdcore.errors import FileError, NonFiniteError
from sdcore.training.data.cache import LatentCache, TextCache
from sdcore.training.data.scanned import Scanned
from tests.training.data.making import encoded, make_folder, noise, scanned


class Encoder:
    """A small encoder that counts its calls."""

    def __init__(self, scale: float = 1.0) -> None:
        self.calls, self.scale = 0, scale

    def __call__(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        return pixels[:, :, ::8, ::8] * self.scale


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Scanned, ...]:
    return scanned(make_folder(tmp_path / "data", 3, (80, 72))).pictures


def test_latents_are_made_once_and_read_to_the_bit(tmp_path: Path, pictures) -> None:
    encoder = Encoder()
    cache = LatentCache(tmp_path / "cache", "model a float32", encoder)
    seen: list[tuple[int, int]] = []
    cache.fill(pictures, lambda done, total: seen.append((done, total)))
    assert encoder.calls == 3 and seen[-1] == (3, 3)
    again = LatentCache(tmp_path / "cache", "model a float32", encoder)
    for picture in pictures:
        torch.testing.assert_close(
            again.latents(picture, picture.fit), cache.latents(picture, picture.fit), rtol=0, atol=0
        )
    assert encoder.calls == 3


def test_whatever_the_latents_depend_on_makes_another_entry(tmp_path: Path, pictures) -> None:
    one = pictures[0]
    cache = LatentCache(tmp_path, "model a float32", Encoder())
    look = replace(one.item.look, background="#000000")
    others = {
        "itself": cache.path(one, one.fit),
        "content": cache.path(pictures[1], one.fit),
        "flip": cache.path(one, one.fit, True),
        "crop": cache.path(one, one.fit.moved(0.0, 0.0)),
        "size": cache.path(one, replace(one.fit, resized=one.size)),
        "background": cache.path(replace(one, item=replace(one.item, look=look)), one.fit),
        "weights": LatentCache(tmp_path, "model b float32", Encoder()).path(one, one.fit),
        "dtype": LatentCache(tmp_path, "model a bfloat16", Encoder()).path(one, one.fit),
    }
    assert len(set(others.values())) == len(others)
    renamed = replace(one, item=replace(one.item, name="elsewhere.png", caption="another"))
    assert cache.path(renamed, one.fit) == others["itself"], "names and captions do not count"


def test_a_changed_picture_is_neither_used_nor_encoded(tmp_path: Path, pictures) -> None:
    one = pictures[0]
    path = tmp_path / "data" / one.item.name
    path.write_bytes(encoded(noise(99, (80, 72)), "PNG"))
    cache = LatentCache(tmp_path / "cache", "key", Encoder())
    with pytest.raises(FileError, match="another picture than before"):
        cache.latents(one, one.fit)
    new = scanned(tmp_path / "data").pictures[0]
    assert cache.path(new, new.fit) != cache.path(one, one.fit)


@pytest.mark.parametrize("place", [3, 40, -1])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, pictures, place: int) -> None:
    encoder = Encoder()
    cache = LatentCache(tmp_path / "cache", "key", encoder)
    one = pictures[0]
    good, path = cache.latents(one, one.fit), cache.path(one, one.fit)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[place] ^= 1
    for damage in (bytes(flipped), whole[:-3], b"", bytes(len(whole))):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="made anew"):
            torch.testing.assert_close(cache.latents(one, one.fit), good, rtol=0, atol=0)
        assert path.read_bytes() == whole


def test_latents_that_are_no_numbers_are_not_kept(tmp_path: Path, pictures) -> None:
    cache = LatentCache(tmp_path / "cache", "key", Encoder(float("nan")))
    with pytest.raises(NonFiniteError, match="latents"):
        cache.latents(pictures[0], pictures[0].fit)
    assert not cache.path(pictures[0], pictures[0].fit).exists()


def _fill(folder: Path, pictures: tuple[Scanned, ...]) -> None:
    LatentCache(folder, "key", Encoder()).fill(pictures)


def test_processes_share_a_folder(tmp_path: Path, pictures) -> None:
    spawn = get_context("spawn")
    workers = [spawn.Process(target=_fill, args=(tmp_path / "c", pictures)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    encoder = Encoder()
    LatentCache(tmp_path / "c", "key", encoder).fill(pictures)
    assert encoder.calls == 0 and len(list((tmp_path / "c").rglob("*.safetensors"))) == 3
    assert not list((tmp_path / "c").rglob("*.draft"))


def test_parts_of_the_work_are_all_of_it(tmp_path: Path, pictures) -> None:
    encoder = Encoder()
    for part in range(2):
        LatentCache(tmp_path / "c", "key", encoder).fill(pictures, part=part, parts=2)
    assert encoder.calls == 3


def test_text_states_are_kept_by_the_ids_that_are_read(tmp_path: Path) -> None:
    cache, calls = TextCache(tmp_path, "encoders"), []

    def make() -> dict[str, Tensor]:
        calls.append(1)
        return {"text": torch.randn(1, 4, 8, dtype=torch.bfloat16), "pooled": torch.randn(1, 8)}

    first = cache.states([[1, 2, 3], [1, 2, 4]], make)
    again = TextCache(tmp_path, "encoders").states([[1, 2, 3], [1, 2, 4]], make)
    assert len(calls) == 1 and all(torch.equal(first[k], again[k]) for k in first)
    cache.states([[1, 2, 3], [1, 2, 5]], make)
    TextCache(tmp_path, "other encoders").states([[1, 2, 3], [1, 2, 4]], make)
    assert len(calls) == 3
