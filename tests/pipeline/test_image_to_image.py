"""Pictures as input: every kind that people have, broken ones, strength, second passes."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdcore import TextToImage
from sdcore.control.reweight import Reweight
from sdcore.diffusion.methods import METHODS, STOCHASTIC
from sdcore.diffusion.schedulers import make_scheduler, set_steps
from sdcore.diffusion.steps import visited_times
from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.files.limits import PICTURE_PIXELS
from sdcore.image import tiles
from sdcore.image.pictures import (
    open_mask,
    open_picture,
    open_transparency,
    to_mask,
    to_rgb,
)
from sdcore.pipeline.second_pass import enlarge, first_size, refine
from sdcore.size import Size, SizeConditioning
from tests.painting import paint

FAST = {"steps": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def embedded() -> TextToImage:
    return TextToImage.embedded()


def clouds(size: tuple[int, int] = (64, 64), seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# --- kinds of pictures ---------------------------------------------------------------------------


def test_every_kind_of_picture_becomes_rgb() -> None:
    rgb = clouds()
    grey = rgb.convert("L")
    deep = Image.fromarray((levels(grey) * 257).astype(np.uint16))
    assert deep.mode == "I;16"
    same = {
        "RGB": (rgb, rgb),
        "L": (grey, grey.convert("RGB")),
        "LA": (grey.convert("LA"), grey.convert("RGB")),
        "RGBA": (rgb.convert("RGBA"), rgb),
        "I;16": (deep, grey.convert("RGB")),
        "I": (deep.convert("I"), grey.convert("RGB")),
        "1": (grey.convert("1"), grey.convert("1").convert("RGB")),
        "P": (rgb.quantize(), rgb.quantize().convert("RGB")),
        "CMYK": (rgb.convert("CMYK"), rgb),
        "YCbCr": (rgb.convert("YCbCr"), rgb),
    }
    for mode, (given, expected) in same.items():
        assert given.mode == mode
        got = to_rgb(given)
        assert got.mode == "RGB"
        assert np.abs(levels(got) - levels(expected)).max() <= (4 if mode == "YCbCr" else 0), mode


def test_what_is_transparent_lies_on_white_and_is_no_part_of_a_mask() -> None:
    image = Image.new("RGBA", (4, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (200, 0, 0, 128))
    got = levels(to_rgb(image))[0]
    assert got[0].tolist() == [200, 0, 0] and got[1].tolist() == [255, 255, 255]
    assert np.abs(got[2] - [227, 127, 127]).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    assert levels(to_rgb(palette))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    white = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    white.putpixel((1, 0), (255, 255, 255, 0))
    assert levels(to_mask(white))[0].tolist() == [255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_tag_says(tmp_path, orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    clouds((24, 16)).save(path, exif=exif)
    got = open_picture(path)
    assert got.size == ((24, 16) if orientation < 5 else (16, 24))
    turns = {1: (), 3: ("ROTATE_180",), 6: ("ROTATE_270",), 8: ("ROTATE_90",)}
    if orientation in turns:
        expected = clouds((24, 16))
        for turn in turns[orientation]:
            expected = expected.transpose(Image.Transpose[turn])
        assert got.tobytes() == expected.tobytes()
    assert to_rgb(got).size == got.size, "turned once"
    with Image.open(path) as opened:  # as a caller opens it
        assert to_rgb(opened).tobytes() == got.tobytes()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.avif"])
def test_five_formats_are_read_whatever_the_name(tmp_path, name) -> None:
    clouds().save(tmp_path / name, quality=95)
    moved = (tmp_path / name).rename(tmp_path / "picture.txt")
    assert np.abs(levels(open_picture(moved)) - levels(clouds())).mean() < 6


def test_transparency_can_be_the_mask(tmp_path) -> None:
    image = clouds().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(tmp_path / "erased.png")
    mask = levels(open_transparency(tmp_path / "erased.png"))
    assert (mask[:, :32] == 255).all() and (mask[:, 32:] == 0).all()
    clouds().save(tmp_path / "opaque.png")
    with pytest.raises(FileError, match="no transparency"):
        open_transparency(tmp_path / "opaque.png")


# --- broken and hostile files --------------------------------------------------------------------


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def encoded(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    clouds().save(buffer, format=format, **options)
    return buffer.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"<html>not a picture</html>",
    "bomb": png(30_000, 30_000),
    "wide": png(PICTURE_PIXELS // 8 + 1, 8),
    "no rows": png(64, 64),
    "zero wide": png(0, 64),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
    "crc": encoded("PNG").replace(b"IHDR", b"IHDX"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_and_foreign_files_are_refused_by_name(tmp_path, kind) -> None:
    path = tmp_path / f"{kind}.png"
    path.write_bytes(BROKEN[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (open_picture, open_mask):
            with pytest.raises(FileError, match=kind) as error:
                read(path)
            assert error.value.why and error.value.hint
            assert ("too large" in error.value.what) == (kind in ("bomb", "wide"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "AVIF"])
def test_a_cut_file_is_refused_by_name(tmp_path, format) -> None:
    whole = encoded(format)
    for share in range(5, 100, 5):
        path = tmp_path / f"cut{share}"
        path.write_bytes(whole[: len(whole) * share // 100])
        with pytest.raises(FileError, match=f"cut{share}"):
            open_picture(path)


def test_seeded_damage_gives_a_picture_or_a_named_refusal(tmp_path) -> None:
    random = np.random.default_rng(7)
    sources = [encoded("PNG"), encoded("JPEG"), encoded("WEBP"), encoded("PNG", bits=4)]
    path = tmp_path / "damaged"
    refused = 0
    for number in range(200):
        content = bytearray(sources[number % len(sources)])
        for _ in range(int(random.integers(1, 8))):
            content[int(random.integers(len(content)))] = int(random.integers(256))
        path.write_bytes(bytes(content))
        try:
            assert open_picture(path).mode == "RGB"
        except FileError as error:
            assert str(path) in error.what
            refused += 1
    assert refused > 50


def test_folders_and_missing_files_are_refused(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.png"):
        with pytest.raises(FileError, match=r"is not a file|is missing"):
            open_picture(path)


@pytest.mark.parametrize(
    "image", [Image.new("F", (8, 8)), Image.new("I", (8, 8), 70_000), Image.new("L", (0, 8))]
)
def test_pictures_without_a_range_are_refused(image) -> None:
    with pytest.raises(UsageError):
        to_rgb(image)


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", *sorted(STOCHASTIC)])
def test_image_i_is_the_image_of_seed_plus_i(pipe, scheduler) -> None:
    how = {**FAST, "scheduler": scheduler, "strength": 0.7}
    images = [clouds(seed=1), clouds(seed=2)]
    batch = pipe(["a red apple", "the fox"], image=images, seed=7, images_per_prompt=2, **how)
    for i in (1, 2):
        prompt = batch.settings[i].job.prompt
        alone = pipe(prompt, image=images[i // 2], seed=7 + i, **how)
        assert np.abs(levels(alone.images[0]) - levels(batch.images[i])).max() <= 1
        assert alone.settings[0].source == batch.settings[i].source is not None
    one = pipe(["a red apple", "the fox"], image=images[0], seed=7, **how)
    assert np.abs(levels(one.images[0]) - levels(batch.images[0])).max() <= 1
    each = pipe("the fox", image=images, images_per_prompt=2, seed=7, **how)
    assert each.settings[1].source == batch.settings[2].source


def test_less_strength_stays_nearer_to_the_picture(embedded) -> None:
    fox = embedded("a fox on a white background", seed=3, steps=12).images[0]
    how = {"image": fox, "seed": 5, "steps": 20}
    distances = [
        np.abs(levels(embedded("a red apple on white", strength=s, **how).images[0]) - levels(fox))
        for s in (0.1, 0.5, 0.9)
    ]
    near, middle, far = (distance.mean() for distance in distances)
    assert near < 8 and near < middle < far


def test_latents_may_be_what_a_run_begins_from(pipe) -> None:
    first = pipe("a cat", seed=1, **FAST)
    how = {"strength": 0.7, "seed": 2, **FAST}
    again = pipe("a dog", image=first.latents, **how)
    assert again.images[0].size == first.images[0].size
    other = pipe("a dog", image=first.latents + 1, **how)
    assert not torch.allclose(again.latents, other.latents)
    assert again.settings[0].source != other.settings[0].source


@pytest.mark.parametrize("name", METHODS)
def test_a_run_in_two_parts_visits_each_time_once(pipe, name) -> None:
    for share in (0.2, 0.5, 0.8):
        scheduler = make_scheduler(name, pipe.scheduler.config)
        set_steps(scheduler, 8)
        first = visited_times(scheduler, 8, end=share)
        second = visited_times(scheduler, 8, start=share)
        assert torch.equal(torch.cat([first, second]), scheduler.timesteps)
        assert len(first) % scheduler.order == 0


def test_one_model_in_two_parts_is_one_run_for_schedulers_without_memory(pipe) -> None:
    for name in ("ddim", "euler", "heun"):
        how = {"seed": 1, "scheduler": name, **FAST, "steps": 8}
        whole = pipe("a cat", **how)
        begun = paint(pipe, "a cat", denoising_end=0.6, **how)
        ended = paint(pipe, "a cat", image=begun.latents, denoising_start=0.6, **how)
        torch.testing.assert_close(ended.latents, whole.latents)
        assert not begun.images and begun.stopped_at == 0.6
        assert levels(ended.images[0]).std() > 0


def test_tiles_change_little_and_are_used(pipe, monkeypatch) -> None:
    used = []

    def spy(call, x, *sides):
        used.append(x.shape[2:])
        return tiles.in_tiles(call, x, *sides)

    monkeypatch.setattr("sdcore.image.autoencoder.in_tiles", spy)
    how = {"image": clouds((128, 128)), "strength": 0.4, "seed": 1, **FAST}
    tiled = paint(pipe, "a cat", tiled=True, **how)
    assert used == [(128, 128), (16, 16)], "encoded in tiles, and decoded"
    assert tiled.images[0].size == (128, 128)


IMAGE, MASK = clouds(), Image.new("L", (64, 64), 255)
LATENTS = torch.zeros(1, 4, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": IMAGE, "strength": 0.0}, "strength is 0.0"),
        ({"image": IMAGE, "strength": 1.1}, "strength"),
        ({"image": IMAGE, "strength": "1"}, "strength"),
        ({"image": IMAGE, "strength": float("nan")}, "strength"),
        ({"image": IMAGE, "strength": 0.1, "steps": 5}, "Nothing is left to do with 5 steps"),
        ({"strength": 0.5}, "strength is given alone"),
        ({"mask": MASK}, "mask is given alone"),
        ({"image": IMAGE, "only_masked": 3}, "only_masked is given alone"),
        ({"image": IMAGE, "mask": MASK, "only_masked": -1}, "only_masked is -1"),
        ({"image": IMAGE, "mask": MASK, "only_masked": 1.5}, "only_masked is 1.5"),
        ({"image": IMAGE, "mask": Image.new("L", (64, 64))}, "black everywhere"),
        ({"image": IMAGE, "mask": Image.new("L", (64, 64), 90)}, "too small or too dark"),
        ({"image": [IMAGE, IMAGE, IMAGE]}, "3 pictures for 1 prompts"),
        ({"image": []}, "list of images is empty"),
        ({"image": [IMAGE], "mask": [MASK, MASK]}, "2 masks for 1 pictures"),
        ({"image": "fox.png"}, "of type str"),
        ({"image": np.zeros((8, 8, 3))}, "of type ndarray"),
        ({"image": torch.zeros(1, 3, 64, 64)}, "taken for latents"),
        ({"image": LATENTS, "mask": MASK}, "mask is given with latents"),
        ({"image": LATENTS, "denoising_start": 1.0}, "denoising_start"),
        ({"image": IMAGE, "latents": LATENTS}, "Noise is given with a picture"),
        ({"denoising_end": 0}, "denoising_end"),
        ({"image": LATENTS, "denoising_start": 0.8, "denoising_end": 0.4}, "Nothing is left"),
        ({"image": IMAGE, "width": 60}, "width is 60"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents have the shape"),
        ({"control": "x"}, "control is of type str"),
        ({"size_conditioning": SizeConditioning.of(Size(64, 64))}, "reads nothing about sizes"),
        ({"size_conditioning": object()}, "size_conditioning is of type object"),
    ],
)
def test_bad_arguments_are_refused_in_three_parts(pipe, arguments, message) -> None:
    with pytest.raises(UsageError, match=message) as error:
        paint(pipe, "a cat", **{"steps": 4, **arguments})
    assert error.value.why and error.value.hint


@pytest.mark.parametrize("argument", ["latents", "image"])
def test_latents_that_are_not_finite_are_the_callers(pipe, argument) -> None:
    bad = torch.full((1, 4, 8, 8), float("nan"))
    with pytest.raises(NonFiniteError, match="given so"):
        paint(pipe, "a cat", steps=2, **{argument: bad})


# --- second passes -------------------------------------------------------------------------------


def test_the_first_pass_has_the_models_area_and_the_pictures_shape(pipe) -> None:
    assert first_size(pipe, Size(64, 64)) == Size(64, 64)
    assert first_size(pipe, Size(256, 64)) == Size(128, 32)
    assert first_size(pipe, Size(40, 24)) == Size(40, 24)
    with pytest.raises(UsageError, match="width"):
        first_size(pipe, Size(100, 64))


@pytest.mark.parametrize("upscale", ["pixels", "latents"])
def test_enlarged_pictures_are_those_of_their_seeds(pipe, upscale) -> None:
    how = {"width": 96, "height": 72, "strength": 0.5, "upscale": upscale}
    first = {**FAST, "steps": 4, "width": 64, "height": 48, "negative_prompt": "a tree"}
    prompts = ["a red fox", "the cat"]
    large = enlarge(pipe, pipe(prompts, seed=3, **first), **how)
    alone = enlarge(pipe, pipe(prompts[1], seed=4, **first), **how)
    assert [image.size for image in large.images] == [(96, 72)] * 2
    assert np.abs(levels(alone.images[0]) - levels(large.images[1])).max() <= 1
    settings = large.settings[1]
    assert (settings.job.size.width, settings.job.seed, settings.job.steps) == (64, 4, 4)
    assert settings.job.hires is not None and settings.job.hires.width == 96
    assert settings.job.hires.upscale == upscale


def test_prompts_that_change_go_on_in_a_second_pass(pipe) -> None:
    how = {"width": 96, "height": 96, "strength": 0.5, "steps": 8}
    first = pipe("a cat", seed=3, scheduler="ddim", **{**FAST, "steps": 4})
    assert first.steps_run == 4

    def second(prompt: str) -> torch.Tensor:
        jobs = [replace(first.jobs[0], prompt=prompt, dialect="a1111")]
        large = enlarge(pipe, replace(first, jobs=jobs), **how)
        assert large.steps_run == 4 + 4
        return large.latents

    cat, dog = second("a cat"), second("a dog")
    assert not torch.equal(cat, dog)
    for over in ("a [cat:dog:0.5]", "a [cat:dog:3]", "a [cat:dog:1.0]"):
        assert torch.equal(second(over), dog), over
    assert torch.equal(second("a [cat:dog:8]"), cat)
    for changing in ("a [cat:dog:1.5]", "a [cat:dog:5]"):  # web UI: (1.5 - 1) * 4, 5 - 4
        both = second(changing)
        assert not torch.equal(both, cat) and not torch.equal(both, dog)
    with pytest.raises(UsageError, match="steps_before is -1"):
        paint(pipe, "a cat", steps_before=-1, **FAST)


def test_a_control_of_the_second_pass_is_noted(pipe) -> None:
    first = pipe("a cat", seed=3, **FAST)
    control = Reweight(pipe.tokenizer("a cat"), {"cat": 2.0})
    large = enlarge(pipe, first, width=96, height=96, strength=0.5, control=control)
    assert large.settings[0].beyond == ("control",)


def test_an_enlarged_picture_shows_what_the_small_one_shows(embedded) -> None:
    small = embedded("a star on a yellow background", seed=3, steps=12)
    large = enlarge(embedded, small, width=192, height=192, strength=0.4).images[0]
    again = large.resize((128, 128), Image.Resampling.BOX)
    other = embedded("a fox on a white background", seed=3, steps=12).images[0]
    distance = np.abs(levels(again) - levels(small.images[0])).mean()
    assert distance < 0.5 * np.abs(levels(other) - levels(small.images[0])).mean()


def test_second_passes_refuse_what_they_cannot_use(pipe) -> None:
    whole = pipe("a cat", seed=1, **FAST)
    begun = paint(pipe, "a cat", seed=1, denoising_end=0.5, **FAST)
    with pytest.raises(UsageError, match="upscale is 'magic'"):
        enlarge(pipe, whole, width=96, height=96, upscale="magic")
    with pytest.raises(UsageError, match="no pictures"):
        enlarge(pipe, begun, width=96, height=96)
    with pytest.raises(UsageError, match="nothing left"):
        refine(pipe, whole)
    masked = pipe("a cat", image=IMAGE, mask=MASK, seed=1, **FAST)
    with pytest.raises(UsageError, match="had a mask"):
        enlarge(pipe, masked, width=96, height=96)
    refined = refine(pipe, begun)
    assert refined.settings[0].refiner is not None
    assert refined.settings[0].refiner.switch_at == 0.5
