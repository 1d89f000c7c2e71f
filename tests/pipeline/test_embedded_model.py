"""The embedded model: its files, what it paints, and that diffusers paints the same with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sdcore
from sdcore import TextToImage
from tests.painting import paint

FOLDER = Path(sdcore.__file__).parent / "models" / "emoji"
PROMPTS = ["a fox in flat style on a light blue background", "a red apple on a yellow background"]


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage.embedded()


def test_files_are_small_and_need_no_unpickling() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6
    assert max(path.stat().st_size for path in files) <= 15e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}


def test_model_card_names_data_licences_recipe_and_limits() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in (
        "Apache-2.0",
        "MIT",
        "Fluent",
        "pretrain_unet",
        "Limits",
    ):
        assert word in card, word


def test_same_seed_same_picture_alone_or_in_a_batch(pipe: TextToImage) -> None:
    together = pipe(PROMPTS, seed=3, steps=6).images
    alone = pipe(PROMPTS[1], seed=4, steps=6).images[0]
    assert np.abs(np.int16(together[1]) - np.int16(alone)).max() <= 1


@pytest.mark.parametrize(
    ("name", "color"), [("yellow", (250, 225, 100)), ("pink", (250, 190, 205))]
)
def test_background_is_the_named_one(pipe: TextToImage, name: str, color: tuple) -> None:
    picture = np.asarray(pipe(f"a star on a {name} background", seed=1).images[0], dtype=float)
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3)])
    assert np.abs(np.median(border, axis=0) - color).max() < 30


def test_other_words_other_picture(pipe: TextToImage) -> None:
    fox, star = pipe(["a fox on white", "a star on white"], seed=5, steps=8).images
    again = pipe("a fox on white", seed=5, steps=8).images[0]
    difference = np.abs(np.float32(fox) - np.float32(star)).mean()
    assert difference > 5 > np.abs(np.float32(fox) - np.float32(again)).mean()


def test_diffusers_opens_the_folder_and_paints_the_same() -> None:
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ours = TextToImage.embedded()
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    settings = {"guidance_scale": 4.0, "latents": latents}
    picture = paint(ours, PROMPTS[0], steps=8, scheduler="ddim", **settings).images[0]
    reference = theirs(PROMPTS[0], num_inference_steps=8, **settings).images[0]
    assert np.std(np.float32(reference)) > 10
    assert np.abs(np.int16(picture) - np.int16(reference)).max() <= 1
