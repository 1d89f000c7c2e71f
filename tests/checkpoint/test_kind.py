"""What kind of model it is: for every family, from the settings of its parts alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sdcore import TextToImage
from sdcore.checkpoint.families import FOLDER
from sdcore.checkpoint.kind import ModelKind, decide_kind
from sdcore.checkpoint.parts import TEXT_ENCODERS
from sdcore.errors import FileError, UsageError
from sdcore.text.config import CLIPTextConfig
from sdcore.unet.config import UNetConfig


def published(family: str) -> tuple[UNetConfig, dict[str, CLIPTextConfig]]:
    """The settings of a published model."""

    def read(part: str) -> dict:
        return json.loads((FOLDER / family / part / "config.json").read_text("utf-8"))

    there = [part for part in TEXT_ENCODERS if (FOLDER / family / part).is_dir()]
    return UNetConfig.from_dict(read("unet")), {p: CLIPTextConfig.from_dict(read(p)) for p in there}


BOTH = ("text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("family", "encoders", "penultimate", "numbers", "width", "name", "pipeline"),
    [
        ("sd1", BOTH[:1], False, 0, 768, "SD 1.x", "StableDiffusionPipeline"),
        ("sd2", BOTH[:1], False, 0, 1024, "SD 2.x", "StableDiffusionPipeline"),
        ("sdxl", BOTH, True, 6, 2048, "SDXL", "StableDiffusionXLPipeline"),
        (
            *("sdxl_refiner", BOTH[1:], True, 5, 1280),
            *("the SDXL refiner", "StableDiffusionXLImg2ImgPipeline"),
        ),
    ],
)
def test_the_published_models(family, encoders, penultimate, numbers, width, name, pipeline):
    kind = decide_kind(*published(family), latent_channels=4)
    assert kind == ModelKind(encoders, penultimate, penultimate, numbers, width, 4, 4)
    assert kind.refiner == (numbers == 5) and not kind.reads_mask
    assert (kind.family, kind.pipeline_class) == (name, pipeline)


def test_inpainting_models_read_a_mask():
    for family in ("sd1", "sdxl"):
        unet, encoders = published(family)
        kind = decide_kind(replace(unet, in_channels=9), encoders, latent_channels=4)
        assert kind.reads_mask and kind.pipeline_class.endswith("InpaintPipeline")
        # of an autoencoder with 16 channels, 9 are none
        assert not decide_kind(replace(unet, in_channels=9), encoders, 16).reads_mask


def test_pooled_text_that_does_not_fit_is_refused():
    unet, encoders = published("sdxl")
    for wrong in ({}, {"text_encoder": encoders["text_encoder"]}):
        with pytest.raises(UsageError, match="do not belong together"):
            decide_kind(unet, wrong, latent_channels=4)


def test_a_model_knows_its_kind_also_with_another_part(sd_folder, sdxl_folder, refiner_folder):
    sd, xl, refiner = map(TextToImage.from_pretrained, (sd_folder, sdxl_folder, refiner_folder))
    assert [model.kind.size_numbers for model in (sd, xl, refiner)] == [0, 6, 5]
    assert refiner.kind.refiner and refiner.kind.text_encoders == ("text_encoder_2",)
    assert xl.kind.family == "a model with two text encoders"
    refiner.text_encoder_2 = None
    with pytest.raises(UsageError, match="do not belong together"):
        _ = refiner.kind


def test_a_folder_whose_parts_do_not_belong_together_is_named(sdxl_folder, tmp_path: Path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for path in sdxl_folder.iterdir():
        (folder / path.name).symlink_to(path)
    index = json.loads((sdxl_folder / "model_index.json").read_text("utf-8"))
    index |= {"tokenizer_2": [None, None], "text_encoder_2": [None, None]}
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(FileError, match="odd cannot be run"):
        TextToImage.from_pretrained(folder)
