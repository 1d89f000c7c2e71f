"""Single files against diffusers: what we write it opens, name by name and bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders import single_file_utils as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdcore import TextToImage
from sdcore.checkpoint.clip_tokenizer import clip_tokenizer
from sdcore.checkpoint.families import FOLDER
from sdcore.checkpoint.ldm_names import table
from sdcore.checkpoint.single_file import read_single_file, save_single_file
from sdcore.diffusion.schedulers import load_scheduler
from sdcore.files.component import build_without_memory
from sdcore.image.autoencoder import Autoencoder
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.unet.config import UNetConfig
from sdcore.unet.unet import UNet
from tests import tiny

CLASSES = {
    "unet": UNet,
    "vae": Autoencoder,
    "text_encoder": CLIPTextEncoder,
    "text_encoder_2": CLIPTextEncoder,
}


def write_inpainting(folder: Path) -> Path:
    torch.manual_seed(5)
    StableDiffusionInpaintPipeline(
        vae=tiny.make_autoencoder(),
        text_encoder=CLIPTextModel(tiny.make_text_config()).eval(),
        tokenizer=tiny.make_tokenizer(),
        unet=tiny.make_unet(in_channels=9),
        scheduler=PNDMScheduler(**tiny.NOISE_SCHEDULE, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_refiner(folder: Path) -> Path:
    torch.manual_seed(6)
    text = tiny.make_text_config(hidden_size=40, hidden_act="gelu", num_attention_heads=5)
    StableDiffusionXLImg2ImgPipeline(
        vae=tiny.make_autoencoder(scaling_factor=0.13025),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        tokenizer_2=tiny.make_tokenizer(pad_token="!"),
        unet=tiny.make_unet(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=2,
            use_linear_projection=True,
            cross_attention_dim=40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 5 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**tiny.NOISE_SCHEDULE, steps_offset=1),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "SD 1": (tiny.write_sd, StableDiffusionPipeline),
    "SD 2": (tiny.write_sd2, StableDiffusionPipeline),
    "inpainting": (write_inpainting, StableDiffusionInpaintPipeline),
    "SDXL": (tiny.write_sdxl, StableDiffusionXLPipeline),
    "refiner": (write_refiner, StableDiffusionXLImg2ImgPipeline),
}


def open_folder(folder: Path) -> TextToImage:
    """All parts of a folder; the refiner has no first text encoder."""
    parts: dict[str, Any] = {
        part: cls.from_pretrained(folder, subfolder=part)
        for part, cls in CLASSES.items()
        if (folder / part).is_dir()
    }
    second = None
    if "text_encoder_2" in parts:
        tokenizer = Tokenizer.from_pretrained(folder, subfolder="tokenizer_2")
        second = (tokenizer, parts["text_encoder_2"])
    return TextToImage(
        None,  # pyright: ignore[reportArgumentType]
        parts.get("text_encoder"),  # pyright: ignore[reportArgumentType]
        parts["unet"],
        parts["vae"],
        load_scheduler(folder / "scheduler"),
        second_reader=second,
    )


def assert_same(ours: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ours.keys() == others.keys()
    assert [name for name in ours if not torch.equal(ours[name], others[name])] == []


class Written(NamedTuple):
    """A folder that diffusers wrote, what we read from it, and the single file we made of it."""

    kind: str
    folder: Path
    pipe: TextToImage
    file: Path


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    base = tmp_path_factory.mktemp("single")
    folder = KINDS[request.param][0](base / "folder")
    pipe = open_folder(folder)
    save_single_file(pipe, base / "model.safetensors")
    return Written(request.param, folder, pipe, base / "model.safetensors")


def test_diffusers_opens_what_we_write(written: Written) -> None:
    pipeline = KINDS[written.kind][1]
    opened = pipeline.from_single_file(
        str(written.file), config=str(written.folder), local_files_only=True
    )
    original = pipeline.from_pretrained(written.folder)
    for part in CLASSES:
        if (expected := getattr(original, part, None)) is not None:
            assert_same(getattr(opened, part).state_dict(), expected.state_dict())


def test_we_open_it_again(written: Written) -> None:
    pipe, kind = written.pipe, written.kind
    parts = read_single_file(written.file, config=written.folder)
    assert_same(parts.unet.state_dict(), pipe.unet.state_dict())
    assert_same(parts.autoencoder.state_dict(), pipe.autoencoder.state_dict())
    assert (parts.text_encoder is None) == (parts.tokenizer is None) == (kind == "refiner")
    if parts.text_encoder is not None:
        assert_same(parts.text_encoder.state_dict(), pipe.text_encoder.state_dict())
    assert (parts.text_encoder_2 is not None) == (kind in ("SDXL", "refiner"))
    if parts.text_encoder_2 is not None:
        assert pipe.text_encoder_2 is not None
        assert_same(parts.text_encoder_2.state_dict(), pipe.text_encoder_2.state_dict())


@pytest.mark.parametrize("family", ["sd1", "sd2_base", "sd2", "sdxl", "sdxl_refiner"])
def test_names_at_full_size_are_those_that_diffusers_knows(family: str) -> None:
    """diffusers' converters take the real family's names back to ours; on the meta device."""
    models: dict[str, Any] = {
        part: build_without_memory(cls, FOLDER / family / part / "config.json")
        for part, cls in CLASSES.items()
        if (FOLDER / family / part).is_dir()
    }
    states = {part: model.state_dict() for part, model in models.items()}
    entries = table(models)
    file = {
        entry.name: entry.to_file([states[part][name] for name in entry.parameters])
        for part in models
        for entry in entries[part]
    }
    unet = theirs.convert_ldm_unet_checkpoint(dict(file), models["unet"].config.to_dict())
    assert {name: id(tensor) for name, tensor in unet.items()} == {
        name: id(tensor) for name, tensor in states["unet"].items()
    }
    vae = theirs.convert_ldm_vae_checkpoint(dict(file), models["vae"].config.to_dict())
    assert shapes(vae) == shapes(states["vae"])
    for part in ("text_encoder", "text_encoder_2"):
        if part in models:
            assert shapes(convert_text(file, entries[part][0].name, models[part])) == shapes(
                states[part]
            )


def convert_text(file: dict[str, Tensor], first: str, model: CLIPTextEncoder) -> dict[str, Tensor]:
    if ".transformer.text_model." in first:
        prefix = first[: first.index("text_model.")]
        return theirs.convert_ldm_clip_checkpoint(dict(file), prefix)
    prefix = first[: first.index("model.") + len("model.")]
    if model.config.num_hidden_layers == 23:  # it takes the projection's width for that of SD 2
        prefix = "cond_stage_model.model."
    with torch.device("meta"):
        config = tiny.make_text_config(**{**model.config.to_dict(), "vocab_size": 49408})
        text = CLIPTextModelWithProjection(config)
    return theirs.convert_open_clip_checkpoint(text, dict(file), prefix=prefix)


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@st.composite
def unet_configs(draw: st.DrawFn) -> UNetConfig:
    """UNets of any depth, with attention on any level."""
    count = draw(st.integers(1, 4))
    attends = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    down = [("CrossAttn" if yes else "") + "DownBlock2D" for yes in attends]
    up = [("CrossAttn" if yes else "") + "UpBlock2D" for yes in reversed(attends)]
    return UNetConfig(
        block_out_channels=tuple(draw(st.sampled_from([8, 16, 24])) for _ in range(count)),
        layers_per_block=draw(st.integers(1, 3)),
        transformer_layers_per_block=draw(st.integers(1, 2)),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=draw(st.booleans()),
        in_channels=draw(st.sampled_from([4, 9])),
    )


@settings(max_examples=10, deadline=None)
@given(unet_configs())
def test_any_unet_has_the_names_that_diffusers_knows(config: UNetConfig) -> None:
    with torch.device("meta"):
        unet = UNet(config)
    state = unet.state_dict()
    entries = table({"unet": unet})["unet"]
    file = {entry.name: state[entry.parameters[0]] for entry in entries}
    assert len(file) == len(state)
    converted = theirs.convert_ldm_unet_checkpoint(file, config.to_dict())
    assert {name: id(tensor) for name, tensor in converted.items()} == {
        name: id(tensor) for name, tensor in state.items()
    }


@pytest.mark.parametrize("pad_id", [49407, 0])
def test_clip_tokenizer_is_that_of_transformers(pad_id: int) -> None:
    ours = clip_tokenizer(pad_id)
    files = ours._files
    reference = CLIPTokenizer(
        vocab=files.vocab,
        merges=list(files.merges),
        model_max_length=77,
        pad_token="<|endoftext|>" if pad_id else "!",
    )
    prompts = [
        "",
        "a photo of a cat, 4k (masterpiece) wow!!",
        "Ünïcode naïve Straße 北京 🦊🏽 don't",
    ]
    expected = reference(prompts, padding="max_length", truncation=True).input_ids
    assert ours(prompts).ids.tolist() == expected
