"""A whole model by its name: a folder in diffusers layout, a name on the hub, or a single file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdcore.checkpoint.defaults import read_defaults
from sdcore.checkpoint.kind import ModelKind
from sdcore.checkpoint.model import Model
from sdcore.checkpoint.part_files import Others
from sdcore.checkpoint.parts import (
    NETWORKS,
    PARTS,
    TEXT_ENCODERS,
    ModelPart,
    find_components,
    preflight_model,
)
from sdcore.checkpoint.single_file import read_single_file
from sdcore.checks import has_type
from sdcore.diffusion.schedulers import load_scheduler
from sdcore.errors import FileError, UsageError
from sdcore.files.atomic import json_writer, replace_file
from sdcore.files.component import check_placement
from sdcore.files.folder import LocalFolder, find_model
from sdcore.files.layout import CONFIG_NAME
from sdcore.files.preflight import MODEL_INDEX
from sdcore.text.recurrent_encoder import RecurrentTextEncoder
from sdcore.torch_state import with_own_torch_state


@with_own_torch_state
def read_model(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    prediction_type: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | Sequence[str | Path] | None = None,
    unet: str | Path | None = None,
    allow_extra: bool = False,
) -> Model:
    """The parts of a model; the arguments and errors are those of `TextToImage.from_pretrained`."""
    parts = {"unet": _listed(unet), "vae": _listed(vae), "text_encoder": _listed(text_encoder)}
    if has_type(name, str, Path) and os.path.isfile(Path(name).expanduser()):
        _refuse("a single file", variant=variant, revision=revision)
        how: dict[str, Any] = {"dtype": dtype, "device": device, "allow_extra": allow_extra}
        model = read_single_file(name, **how, prediction_type=prediction_type, parts=parts)
    else:
        _refuse("a folder, whose scheduler says it", prediction_type=prediction_type)
        dtype, device = check_placement(dtype or torch.float32, device)
        others = Others(parts, dtype, device, allow_extra)
        model = _read_folder(name, others, dtype, device, variant, revision, offline)
    return model


def _listed(paths: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    if paths is None:
        return []
    return [paths] if isinstance(paths, str | Path) else list(paths)


def _read_folder(
    name: str | Path,
    others: Others,
    dtype: torch.dtype,
    device: torch.device,
    variant: str | None,
    revision: str | None,
    offline: bool,
) -> Model:
    """Everything is checked to be there before weights are fetched or read."""
    files = find_model(name, revision=revision, offline=offline)
    index = find_components(files.fetch([MODEL_INDEX]))
    ready = preflight_model(files, index.components, variant)
    folder = files.fetch(ready.files)
    networks = [part for part in NETWORKS if part in index.components]
    elsewhere = others.read({part: folder / part / CONFIG_NAME for part in networks}, {})

    def read(name: str) -> Any:
        if name not in index.components:
            return None  # SDXL's refiner reads with its second text encoder alone
        if name in elsewhere:
            return elsewhere[name]
        part = PARTS[name]
        if not part.is_network:
            return part.load_class().from_pretrained(folder, subfolder=name)
        how: dict[str, Any] = {"dtype": dtype, "device": device, "variant": ready.variants[name]}
        how["allow_extra"] = others.allow_extra
        cls = part.load_class(index.components[name])
        return cls.from_pretrained(folder, subfolder=name, **how)

    second = (read("tokenizer_2"), read("text_encoder_2"))
    model = Model(
        read("tokenizer"),
        read("text_encoder"),
        read("unet"),
        read("vae"),
        load_scheduler(folder / "scheduler", index.pipeline),
        second_reader=None if None in second else second,
    )
    model.defaults = read_defaults(folder, index, _kind_of(model, files.name))
    if not isinstance(files, LocalFolder):  # the cache's folder is named by its commit
        model.defaults = replace(model.defaults, name=files.name)
    model.defaults = replace(model.defaults, name=others.name_of(model.defaults.name))
    return model


def _kind_of(model: Model, name: str) -> ModelKind:
    """What kind of model was read. FileError where its parts do not belong together."""
    try:
        return model.kind
    except UsageError as error:
        raise FileError(f"{name} cannot be run. {error.what}", error.why, error.hint) from error


def _refuse(kind: str, **given: object) -> None:
    """Refuse arguments that mean nothing for this kind of model."""
    for argument, value in given.items():
        if value is not None:
            what = f"{argument}={value!r:.80} cannot be used."
            raise UsageError(what, f"This model is {kind}.", "Leave it out.")


def save_folder(model: Model, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model in diffusers layout.

    Args:
        dtype: of the weights in the files; None keeps that of each parameter.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        FileError: the disk is full, or the folder cannot be written.
    """
    kind = model.kind
    index: dict[str, Any] = {"_class_name": kind.pipeline_class}
    for name, part in PARTS.items():
        if (value := model.part(name)) is not None:
            how = {"dtype": dtype} if part.is_network else {}
            value.save_pretrained(folder / name, **how)
            index[name] = _published(part, value)
    if not kind.pooled_text:
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
        index["feature_extractor"] = [None, None]
    else:
        index["force_zeros_for_empty_prompt"] = model.defaults.zeros_for_no_prompt
    replace_file(folder / MODEL_INDEX, json_writer(index))


def _published(part: ModelPart, value: Any) -> list[str]:
    """Library and class that model_index.json names for a part."""
    if not part.classes:
        return [part.library, type(value).__name__]  # a scheduler of diffusers
    if isinstance(value, RecurrentTextEncoder):  # transformers has no such class
        return ["sdcore", type(value).__name__]
    projects = part.name in TEXT_ENCODERS and value.config.with_projection
    return [part.library, part.classes[1 if projects else 0]]
