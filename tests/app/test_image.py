"""The command that paints from a picture, as people run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcore.app import image as image_to_image
from sdcore.metadata.png import read_recipe


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where somebody works: a picture, masks, and files that are none."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "fox.png")
    mask = Image.new("L", picture.size)
    mask.paste(255, (32, 0, 64, 48))
    mask.save(tmp_path / "mask.png")
    erased = picture.convert("RGBA")
    erased.putalpha(Image.eval(mask, lambda level: 255 - level))
    erased.save(tmp_path / "erased.png")
    Image.new("L", (64, 48)).save(tmp_path / "black.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "fox.png").read_bytes()[:200])
    (tmp_path / "page.png").write_text("<html>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, sd_folder, capsys):
    """Run the command; gives exit code, printed paths, and what went to stderr."""

    def call(*arguments: str) -> tuple[int, list[Path], str]:
        fast = ["--model", str(sd_folder), "--steps", "4", "--seed", "5"]
        code = image_to_image.main([*fast, *arguments])
        captured = capsys.readouterr()
        return code, [Path(line) for line in captured.out.splitlines()], captured.err

    return call


def levels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_from_a_picture(run) -> None:
    code, paths, err = run("fox.png", "a cat", "a dog", "--strength", "0.5", "--images", "2")
    assert code == 0 and "step 3 of 3" in err  # PLMS asks twice in its first step
    assert [path.name for path in paths] == ["a-cat.png", "a-cat-1.png", "a-dog.png", "a-dog-1.png"]
    assert levels(paths[0]).shape == (48, 64, 3)
    settings = read_recipe(paths[1]).settings
    assert settings is not None and settings.job.seed == 6
    assert settings.source is not None and settings.source.strength == 0.5


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--mask", "mask.png"], slice(0, 32)),
        (["--mask", "mask.png", "--invert-mask"], slice(32, 64)),
        (["--mask-transparent"], slice(0, 32)),
        (["--mask", "mask.png", "--only-masked", "--size", "32"], slice(0, 32)),
        (["--mask", "mask.png", "--only-masked", "4"], slice(0, 32)),
    ],
)
def test_masks_keep_what_they_keep(run, flags, kept) -> None:
    source = "erased.png" if "--mask-transparent" in flags else "fox.png"
    code, (path,), _ = run(source, "a cat", *flags)
    assert code == 0
    got, given = levels(path), levels("fox.png")
    assert (got[:, kept] == given[:, kept]).all()
    assert (got != given).any(axis=(0, 2)).sum() >= 30, "the other half is painted"


def test_a_second_pass(run) -> None:
    code, (path,), err = run("fox.png", "a cat", "--hires", "96x72", "--hires-strength", "0.5")
    assert code == 0 and "second pass" in err
    assert levels(path).shape == (72, 96, 3)
    code, (path,), _ = run("fox.png", "a cat", "--size", "40x32", "--tiled")
    assert code == 0 and levels(path).shape == (32, 40, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.png", "a cat"], 3, "nowhere.png"),
        (["cut.png", "a cat"], 3, "cut.png is damaged"),
        (["page.png", "a cat"], 3, "page.png"),
        (["fox.png", "a cat", "--mask", "cut.png"], 3, "cut.png"),
        (["fox.png", "a cat", "--mask", "black.png"], 2, "black everywhere"),
        (["fox.png", "a cat", "--mask-transparent"], 3, "no transparency"),
        (["fox.png", "a cat", "--only-masked"], 2, "--only-masked"),
        (["fox.png", "a cat", "--invert-mask"], 2, "--invert-mask"),
        (["fox.png", "a cat", "--mask", "mask.png", "--hires", "96"], 2, "--hires"),
        (
            ["fox.png", "a cat", "--mask", "mask.png", "--only-masked", "-3"],
            2,
            "--only-masked is -3",
        ),
        (["fox.png", "a cat", "--strength", "0"], 2, "strength is 0"),
        (["fox.png", "a cat", "--strength", "nan"], 2, "strength is nan"),
        (["fox.png", "a cat", "--size", "65"], 2, "multiple of 8"),
        (["fox.png", "a cat", "--seed", "-1"], 2, "seed"),
    ],
)
def test_refusals_come_before_the_model_is_loaded(run, folder, arguments, code, said) -> None:
    got, paths, err = run(*arguments, "--model", "no/such/model")
    assert got == code and not paths
    assert said in err and "why:" in err and "try:" in err
    assert "Traceback" not in err and "no/such/model" not in err
    assert not (folder / "outputs").exists()
