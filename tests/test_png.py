"""Pictures that say how they were made, never half-written, never over another."""

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from sdcore.errors import FileError
from sdcore.png import ImageSettings, read_settings, save_png

SETTINGS = ImageSettings(
    prompt="a red apple, photo",
    negative_prompt="bad drawing",
    seed=7,
    steps=20,
    guidance_scale=5.0,
    guidance_rescale=0.0,
    scheduler="dpm++ 2m karras",
    width=64,
    height=48,
    clip_skip=1,
    model="fruit: ripe",
    precision="float32",
)
PICTURE = Image.new("RGB", (64, 48), "red")


def test_parameters_are_the_web_uis_text() -> None:
    from sdcore import __version__

    assert SETTINGS.to_parameters() == (
        "a red apple, photo\n"
        "Negative prompt: bad drawing\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, "
        'Size: 64x48, Model: "fruit: ripe", Clip skip: 2, RNG: CPU, '
        f"Version: sdcore {__version__}"
    )
    plain = replace(SETTINGS, negative_prompt=None, clip_skip=0, scheduler="euler a")
    text = plain.to_parameters()
    assert "Negative" not in text and "Clip skip" not in text and "Schedule type" not in text
    assert "Sampler: Euler a, CFG" in text


@pytest.mark.parametrize("prompt", ["a cat", "ein Apfel für 苹果 🍎", 'two\nlines, "quoted": yes'])
def test_both_texts_survive_the_file(tmp_path, prompt) -> None:
    settings = replace(SETTINGS, prompt=prompt)
    path = save_png(PICTURE, tmp_path / "x.png", settings)
    with Image.open(path) as image:
        assert image.info["parameters"] == settings.to_parameters()
        assert json.loads(image.info["sdcore"])["prompt"] == prompt
    read = read_settings(path)
    assert read.pop("version")
    assert ImageSettings(**read) == settings


def test_nothing_is_ever_replaced(tmp_path) -> None:
    paths = [save_png(PICTURE, tmp_path / "new" / "x.png") for _ in range(3)]
    assert [path.name for path in paths] == ["x.png", "x-1.png", "x-2.png"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["x-1.png", "x-2.png", "x.png"]


def test_a_picture_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch) -> None:
    def full_disk(self, file, **_):
        file.write(b"half")
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
