"""A whole model by its name: a folder in diffusers layout, a name on the hub, or a single file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdcore.checkpoint.defaults import find_components, read_defaults
from sdcore.checkpoint.model import Model
from sdcore.checkpoint.parts import preflight_model
from sdcore.checkpoint.single_file import read_single_file
from sdcore.diffusion.schedulers import load_scheduler
from sdcore.errors import UsageError
from sdcore.files.atomic import json_writer, replace_file
from sdcore.files.component import check_placement
from sdcore.files.folder import LocalFolder, find_model
from sdcore.files.preflight import MODEL_INDEX
from sdcore.image.autoencoder import Autoencoder
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.unet.unet import UNet


def read_model(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    prediction_type: str | None = None,
) -> Model:
    """The parts of a model; the arguments and errors are those of `TextToImage.from_pretrained`."""
    if isinstance(name, str | Path) and os.path.isfile(Path(name).expanduser()):
        _refuse("a single file", variant=variant, revision=revision)
        return read_single_file(name, dtype=dtype, device=device, prediction_type=prediction_type)
    _refuse("a folder, whose scheduler says it", prediction_type=prediction_type)
    return _read_folder(name, dtype, device, variant, revision, offline)


def _read_folder(
    name: str | Path,
    dtype: torch.dtype | None,
    device: torch.device | str,
    variant: str | None,
    revision: str | None,
    offline: bool,
) -> Model:
    """Everything is checked to be there before weights are fetched or read."""
    dtype, device = check_placement(dtype or torch.float32, device)
    files = find_model(name, revision=revision, offline=offline)
    index = find_components(files.fetch([MODEL_INDEX]))
    ready = preflight_model(files, index.components, variant)
    folder = files.fetch(ready.files)

    def read(cls: Any, part: str) -> Any:
        if part not in index.components:
            return None  # SDXL's refiner reads with its second text encoder alone
        if cls is Tokenizer:
            return cls.from_pretrained(folder, subfolder=part)
        how: dict[str, Any] = {"dtype": dtype, "device": device, "variant": ready.variants[part]}
        return cls.from_pretrained(folder, subfolder=part, **how)

    second = (read(Tokenizer, "tokenizer_2"), read(CLIPTextEncoder, "text_encoder_2"))
    defaults = read_defaults(folder, index)
    if not isinstance(files, LocalFolder):
        defaults = replace(defaults, name=files.name)  # the cache's folder is named by its commit
    return Model(
        read(Tokenizer, "tokenizer"),
        read(CLIPTextEncoder, "text_encoder"),
        read(UNet, "unet"),
        read(Autoencoder, "vae"),
        load_scheduler(folder / "scheduler"),
        second_reader=None if None in second else second,
        defaults=defaults,
    )


def _refuse(kind: str, **given: object) -> None:
    """Refuse arguments that mean nothing for this kind of model."""
    for argument, value in given.items():
        if value is not None:
            what = f"{argument}={value!r:.80} cannot be used"
            raise UsageError(what, f"this model is {kind}", "leave it out")


def save_folder(model: Model, folder: Path) -> None:
    """Write a model in diffusers layout; the weights keep their type.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        FileError: the disk is full, or the folder cannot be written.
    """
    parts = {
        "tokenizer": (model.tokenizer, "transformers", "CLIPTokenizer"),
        "text_encoder": (model.text_encoder, "transformers", _text_class(model.text_encoder)),
        "tokenizer_2": (model.tokenizer_2, "transformers", "CLIPTokenizer"),
        "text_encoder_2": (model.text_encoder_2, "transformers", _text_class(model.text_encoder_2)),
        "unet": (model.unet, "diffusers", "UNet2DConditionModel"),
        "vae": (model.autoencoder, "diffusers", "AutoencoderKL"),
        "scheduler": (model.scheduler, "diffusers", type(model.scheduler).__name__),
    }
    index: dict[str, Any] = {"_class_name": _pipeline_class(model)}
    for name, (part, library, cls) in parts.items():
        if part is not None:
            part.save_pretrained(folder / name)
            index[name] = [library, cls]
    if model.text_encoder_2 is None:
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
        index["feature_extractor"] = [None, None]
    else:
        index["force_zeros_for_empty_prompt"] = model.defaults.zeros_for_no_prompt
    replace_file(folder / MODEL_INDEX, json_writer(index))


def _text_class(text_encoder: CLIPTextEncoder | None) -> str:
    projects = text_encoder is not None and text_encoder.config.with_projection
    return "CLIPTextModelWithProjection" if projects else "CLIPTextModel"


def _pipeline_class(model: Model) -> str:
    """diffusers' pipeline for such parts, which decides what opens the folder there."""
    xl, inpaints = model.text_encoder_2 is not None, model.unet.config.in_channels == 9
    if xl and model.text_encoder is None:
        return "StableDiffusionXLImg2ImgPipeline"
    return f"StableDiffusion{'XL' * xl}{'Inpaint' * inpaints}Pipeline"
