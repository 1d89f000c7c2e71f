"""Pictures that say how they were made, never half-written, never over another."""

import json
import os
import random
import struct
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcore.errors import FileError
from sdcore.job.adapters import EmbeddingSettings, HiresSettings, LoraSettings
from sdcore.job.job import Job
from sdcore.job.record import ImageSettings, RefinerSettings, SourceSettings
from sdcore.metadata.parameters import carries, read_parameters
from sdcore.metadata.png import read_recipe, read_settings, read_texts, save_png
from sdcore.size import Size, SizeConditioning

SETTINGS = ImageSettings(
    Job(
        prompt="a red apple, photo",
        negative_prompt="bad drawing",
        seed=7,
        steps=20,
        guidance_scale=5.0,
        guidance_rescale=0.0,
        scheduler="dpm++ 2m karras",
        size=Size(64, 48),
        clip_skip=1,
    ),
    sampler="dpm++ 2m karras",
    model="fruit: ripe",
    precision="float32",
)


def with_job(settings: ImageSettings, **fields: Any) -> ImageSettings:
    """The record with some fields of its job changed; the sampler is the job's scheduler."""
    job = replace(settings.job, **fields)
    return replace(settings, job=job, sampler=job.scheduler or settings.sampler)


EVERYTHING = with_job(
    replace(
        SETTINGS,
        model_hash="0f" * 32,
        source=SourceSettings("12" * 32, 0.6, mask="34" * 32, only_masked=32),
        refiner=RefinerSettings("finer", 0.8),
    ),
    dialect="a1111",
    loras=(LoraSettings("ink", 0.7, 0.3, "ab" * 32), LoraSettings("pen, wide", -1.5, 1, "cd" * 32)),
    embeddings=(EmbeddingSettings("<mark>", "ef" * 32),),
    hires=HiresSettings(128, 96, 0.5, steps=9),
    size_conditioning=SizeConditioning((512, 512), (0, 8), (64, 48), 6.5),
)
PICTURE = Image.new("RGB", (64, 48), "red")

# Any text at all, lone surrogates and NUL included.
any_text = some.text(some.characters(codec=None), max_size=80)
finite = some.floats(-1e6, 1e6)


@given(any_text, some.none() | any_text, some.integers(0, 2**63 - 1), finite, finite)
def test_our_json_is_exact_for_any_prompt(prompt, negative, seed, scale, strength) -> None:
    settings = with_job(
        replace(EVERYTHING, source=SourceSettings("", strength)),
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        guidance_scale=abs(scale),
        loras=(LoraSettings(prompt, strength % 100, scale % 100, ""),),
    )
    assert ImageSettings.from_json(settings.to_json()) == settings


PROMPTS = [
    *("a cat", "ein Apfel für 苹果 🍎", 'two\nlines, "quoted": yes', "", " \n a \n "),
    *("a\nNegative prompt: b\nSteps: 1, Seed: 2, Size: 3x4", "half \ud83d of a sign, NUL \0 too"),
    *("x" * 20_000, "苹" * 20_000, "\r\n\u2028\x85"),
]


@pytest.mark.parametrize("number", range(len(PROMPTS)))
@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING], ids=["plain", "everything"])
def test_settings_survive_the_file(tmp_path, number, settings) -> None:
    prompt = PROMPTS[number]
    settings = with_job(settings, prompt=prompt, negative_prompt=prompt)
    path = save_png(PICTURE, tmp_path / "x.png", settings)
    assert read_settings(path) == settings
    with Image.open(path) as image:
        assert image.info["parameters"].startswith(prompt[:5].encode("utf-8", "replace").decode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"seed"', '"sead"'), "'sead' is unknown; the nearest known one is 'seed'"),
        (('"text"', '"txt"'), "'loras[0].txt' is unknown; the nearest known one is 'text'"),
        (('"seed": 7, ', ""), "'seed' is missing"),
        (('"seed": 7', '"seed": 7.5'), "seed is 7.5"),
        (('"seed": 7', '"seed": true'), "seed is True"),
        (('"steps": 20', '"steps": "20"'), "steps is '20'"),
        (('"strength": 0.6', '"strength": 1e999'), "too large"),
        (('"strength": 0.6', '"strength": NaN'), "NaN"),
        (('"seed": 7', '"seed": 7, "seed": 8'), "'seed' is given twice"),
        (('"format": 1', '"format": 2'), "format 2, written by sdcore"),
        (("[512, 512]", "[512]"), "size.original is [512]"),
        (('{"format"', '[{"format"'), "Expecting"),
    ],
)
def test_another_record_is_refused_and_says_why(tmp_path, change, said) -> None:
    text = EVERYTHING.to_json()
    assert change[0] in text
    path = write_texts(tmp_path, sdcore=text.replace(*change, 1))
    with pytest.raises(FileError) as error:
        read_settings(path)
    assert said in error.value.why and "x.png" in error.value.what


def write_texts(folder, **texts: str):
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    PICTURE.save(folder / "x.png", pnginfo=info)
    return folder / "x.png"


@pytest.mark.parametrize("kind", ["jpg", "webp"])
@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_the_web_uis_comment_in_jpeg_and_webp(tmp_path, kind, order) -> None:
    text = "ein Apfel, 苹果\nSteps: 20, Sampler: Euler, Seed: 7, Size: 64x48"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(order)
    PICTURE.save(tmp_path / f"x.{kind}", exif=exif)
    assert read_texts(tmp_path / f"x.{kind}") == {"parameters": text}
    assert read_recipe(tmp_path / f"x.{kind}").job.seed == 7


def test_text_behind_the_pixels_is_found(tmp_path) -> None:
    PICTURE.save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    at = data.index(b"IEND") - 4
    (tmp_path / "x.png").write_bytes(data[:at] + chunk(b"tEXt", b"parameters\0late") + data[at:])
    assert read_texts(tmp_path / "x.png") == {"parameters": "late"}


def test_a_text_that_is_too_long_is_left_out_and_said(tmp_path) -> None:
    PICTURE.save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    long = chunk(b"tEXt", b"workflow\0" + b"a" * (5 << 20))
    short = chunk(b"tEXt", b"parameters\0a fox\nSteps: 9, Seed: 7, Sampler: Euler")
    (tmp_path / "x.png").write_bytes(data[:33] + long + short + data[33:])
    with pytest.warns(match="x.png: its texts over 4 MiB: workflow"):
        recipe = read_recipe(tmp_path / "x.png")
    assert (recipe.job.prompt, recipe.job.seed) == ("a fox", 7)


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


BOMB = zlib.compress(b"a" * (20 << 20))
HOSTILE = {
    "iTXt bomb": chunk(b"iTXt", b"parameters\0\1\0\0\0" + BOMB),
    "zTXt bomb": chunk(b"zTXt", b"sdcore\0\0" + BOMB),
    "5 MiB of text": chunk(b"tEXt", b"parameters\0" + b"a" * (5 << 20)),
    "no UTF-8": chunk(b"iTXt", b"sdcore\0\0\0\0\0\xff\xfe"),
    "NUL alone": chunk(b"tEXt", b"sdcore\0\0\0"),
    "no key": chunk(b"tEXt", b"\0text"),
    "blank": chunk(b"tEXt", b"parameters\0  \n "),
    "no JSON": chunk(b"tEXt", b"sdcore\0{'prompt': 'a'}"),
    "deep JSON": chunk(b"tEXt", b"sdcore\0" + b'{"a":' * 200_000),
    "deep graph": chunk(b"tEXt", b"prompt\0" + b"[" * 200_000),
    "a number as text": chunk(b"tEXt", b"prompt\x007"),
    "compression unknown": chunk(b"zTXt", b"sdcore\0\7abc"),
    "zlib damaged": chunk(b"zTXt", b"sdcore\0\0abc"),
    "longer than the file": struct.pack(">I", 1 << 30) + b"tEXtparameters\0a",
    "checksum wrong": chunk(b"tEXt", b"parameters\0a")[:-1] + b"?",
    "huge integer": chunk(b"tEXt", b'sdcore\0{"seed": ' + b"9" * 100_000 + b"}"),
    "last of two counts": chunk(b"tEXt", b"sdcore\0" + EVERYTHING.to_json().encode())
    + chunk(b"tEXt", b"sdcore\0{}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_one_error_that_names_the_file(tmp_path, name) -> None:
    PICTURE.save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    header = 8 + 25  # signature and IHDR
    (tmp_path / "x.png").write_bytes(data[:header] + HOSTILE[name] + data[header:])
    with pytest.raises(FileError, match=r"x\.png") as error:
        read_recipe(tmp_path / "x.png")
    assert len(error.value.why) < 500 and "\n" not in error.value.why


def test_two_hundred_records_survive_their_files(tmp_path) -> None:
    """Random prompts of the kinds that break readers, by the JSON and by the web UI's text."""
    rng = random.Random(11)
    pieces = [
        "Negative prompt: ",
        "Steps: 20, Seed: 1, Size: 8x8",
        "\n",
        '"',
        "\\",
        ", ",
        ": ",
        "苹果",
    ]
    pieces += ["<lora:a:1>", "(x:1.2)", "\0", "\ud800", "é", " ", "\r", "BREAK", "../../etc/passwd"]
    carried = 0
    for number in range(200):
        prompt, negative = (
            "".join(rng.choices(pieces, k=rng.randrange(12))) * rng.choice([1, 1, 1, 50])
            for _ in range(2)
        )
        settings = with_job(
            rng.choice([SETTINGS, EVERYTHING]), prompt=prompt, negative_prompt=negative, loras=()
        )
        path = save_png(PICTURE, tmp_path / f"{number}.png", settings)
        assert read_settings(path) == settings
        if carries(prompt, negative):
            read = read_parameters(read_texts(path)["parameters"])
            assert (read.prompt, read.negative_prompt) == (prompt, negative)
            carried += 1
    assert carried > 20


def test_mutated_files_are_read_or_refused(tmp_path) -> None:
    """Bytes changed, cut out and put in, checksums mended; PNG, JPEG and WebP."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a\nSteps: 2, Seed: 7, Size: 8x8".encode(
        "utf-16-be"
    )
    graph = {"1": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["1", 0]}}}
    files = [save_png(PICTURE, tmp_path / "a.png", EVERYTHING), tmp_path / "b.jpg"]
    files += [tmp_path / "c.webp", write_texts(tmp_path, prompt=json.dumps(graph))]
    for path in files[1:3]:
        PICTURE.save(path, exif=exif)
    data = [path.read_bytes() for path in files]
    rng, refused = random.Random(5), 0
    for _ in range(500):
        number = rng.randrange(len(data))
        changed = bytearray(data[number])
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(changed))
            length = rng.choice([0, 0, 1, 4, 30])
            changed[at : at + length] = rng.randbytes(rng.choice([0, 1, 4, 20])) or b"\xff"
        path = tmp_path / f"x{files[number].suffix}"
        path.write_bytes(mended(bytes(changed)) if path.suffix == ".png" else changed)
        try:
            read_recipe(path)
        except FileError as error:
            assert path.name in error.what and "\n" not in error.why
            refused += 1
    assert 200 < refused < 500


def mended(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, as far as there are whole chunks."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        out += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return out + data[at:]


def test_damaged_files_of_every_length(tmp_path) -> None:
    data = save_png(PICTURE, tmp_path / "whole.png", EVERYTHING).read_bytes()
    refused = 0
    for length in range(0, len(data), 13):
        (tmp_path / "x.png").write_bytes(data[:length])
        try:
            assert read_settings(tmp_path / "x.png") == EVERYTHING
        except FileError:
            refused += 1
    assert refused > 100


def test_nothing_is_ever_replaced(tmp_path) -> None:
    paths = [save_png(PICTURE, tmp_path / "new" / "x.png") for _ in range(3)]
    assert [path.name for path in paths] == ["x.png", "x-1.png", "x-2.png"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["x-1.png", "x-2.png", "x.png"]


def test_a_picture_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch) -> None:
    def full_disk(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(FileError, match="No space left"):
        save_png(PICTURE, tmp_path / "x.png", SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_links(tmp_path, monkeypatch) -> None:
    def no_links(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    names = [save_png(PICTURE, tmp_path / "x.png").name for _ in range(2)]
    assert names == ["x.png", "x-1.png"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name == "nt", reason="rights are different there")
def test_others_may_read_what_the_umask_allows(tmp_path) -> None:
    old = os.umask(0o022)
    try:
        assert save_png(PICTURE, tmp_path / "x.png").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


def test_pictures_of_others_are_refused(tmp_path) -> None:
    PICTURE.save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("plain.png", "text.png", "missing.png"):
        with pytest.raises(FileError, match=name):
            read_settings(tmp_path / name)
