"""Examples: a batch is a function of (seed, number), whoever makes it, cached or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdcore.training.data.cache import LatentCache
from sdcore.training.data.examples import ExampleBatch, Examples
from sdcore.training.data.order import Order
from sdcore.training.data.pictures import mask_pixels, open_training_picture, pixels
from tests.training.data.making import make_folder, noise, scanned


def encode(images: Tensor) -> Tensor:
    return images[:, :, ::8, ::8] * 0.5


def examples(folder: Path, cache: Path | None = None, workers: int = 0, **changes: Any) -> Examples:
    found = scanned(folder, **changes)
    latents = LatentCache(cache, "key", encode) if cache is not None else None
    return Examples(found, Order(found.pictures, 2, 7), 7, latents, workers)


def same(one: ExampleBatch, other: ExampleBatch) -> bool:
    tensors = ("latents", "pixels", "masks", "weights")
    pairs = [(getattr(one, name), getattr(other, name)) for name in tensors]
    equal = all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)
    texts = (one.captions, one.sizes, one.names) == (other.captions, other.sizes, other.names)
    return equal and texts


DRAWN = {"flip": True, "shuffle_tags": True, "dropout": 0.2}


@pytest.mark.parametrize("crop", ["center", "random"])
def test_workers_and_the_order_of_calls_change_nothing(tmp_path: Path, crop: str) -> None:
    folder = make_folder(tmp_path / "data", 7, (90, 70))
    alone = examples(folder, tmp_path / "a", crop=crop, **DRAWN)
    expected = [alone.batch(number) for number in range(10)]
    assert (expected[0].latents is None) == (crop == "random")
    many = examples(folder, tmp_path / "b", workers=2, crop=crop, **DRAWN)
    for number in (*range(10), *range(0, 10, 3), 9, 2):
        assert same(many.batch(number), expected[number])
    many.close()


def test_cached_latents_are_those_of_the_pixels(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 5, (90, 70))
    plain, cached = examples(folder, **DRAWN), examples(folder, tmp_path / "c", **DRAWN)
    cached.fill()
    for number in range(6):
        images, latents = plain.batch(number).pixels, cached.batch(number).latents
        assert images is not None and latents is not None
        assert torch.equal(encode(images), latents)


def test_flips_and_cuts_are_drawn_and_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 2, (100, 64))
    some = examples(folder, flip=True, crop="random", buckets=False)
    crops = {size.crop for n in range(20) for size in some.batch(n).sizes}
    assert len(crops) > 5 and all(top == 0 and 0 <= left <= 36 for top, left in crops)
    batch, picture = some.batch(0), some.scan.pictures[0]
    assert batch.pixels is not None and batch.sizes[0].original == (64, 100)
    rows = batch.names.index(picture.item.name)
    whole = torch.as_tensor(np.array(noise(0, (100, 64)))).permute(2, 0, 1) / 127.5 - 1
    left = batch.sizes[rows].crop[1]
    straight, flipped = whole[:, :, left : left + 64], whole.flip(-1)[:, :, left : left + 64]
    got = batch.pixels[rows]
    assert min((got - straight).abs().max(), (got - flipped).abs().max()) < 1e-6


def test_masks_lie_on_the_grid_of_latents(tmp_path: Path) -> None:
    folder, masks = make_folder(tmp_path / "data", 2), tmp_path / "masks"
    masks.mkdir()
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    for number in range(2):
        half.save(masks / f"p{number:05d}.png")
    batch = examples(folder, masks=str(masks)).batch(0)
    assert batch.masks is not None and batch.masks.shape == (2, 1, 8, 8)
    assert batch.masks[:, :, :, :4].eq(1).all() and batch.masks[:, :, :, 4:].eq(0).all()


def test_transparency_is_a_mask_on_the_background(tmp_path: Path) -> None:
    image = noise(3).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a fox")
    found = scanned(tmp_path, masks="alpha", background="#ff0000")
    one = found.pictures[0]
    got, mask = pixels(one, one.fit), mask_pixels(one, one.fit)
    assert got[:, :, :32].flatten(1).unique(dim=1).flatten().tolist() == [1, -1, -1]
    assert mask[:, :, :32].eq(0).all() and mask[:, :, 32:].eq(1).all()
    assert open_training_picture(one.item.blob, "#ff0000").getpixel((0, 0)) == (255, 0, 0)


def test_class_pictures_have_their_prompt_and_weight(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 3)
    prior = tmp_path / "class"
    prior.mkdir()
    for number in range(4):
        noise(100 + number).save(prior / f"c{number}.png")
    options = {"source": str(prior), "prompt": "a photo of a dog", "count": 3, "weight": 0.25}
    some = examples(folder, prior=options, trigger="sks", dropout=0.0)
    batches = [some.batch(number) for number in range(some.order.per_epoch)]
    rows = [
        row for b in batches for row in zip(b.names, b.captions, b.weights.tolist(), strict=True)
    ]
    classes = [row for row in rows if row[0].startswith("class/")]
    assert len(rows) == 6 and len(classes) == 3
    assert {row[1:] for row in classes} == {("a photo of a dog", 0.25)}
    assert {row[2] for row in rows if row not in classes} == {1.0}


def test_validation_batches_are_fixed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 6)
    some = examples(folder, tmp_path / "c", held_out=2, **{**DRAWN, "dropout": 1.0})
    held = some.held_out()
    assert len(held) == 2 and all("a red fox" in batch.captions[0] for batch in held)
    assert all(same(a, b) for a, b in zip(held, some.held_out(), strict=True))
