"""A whole model in one .safetensors file in LDM layout: opened, and written back by the inverse.

    header ─families─► settings ─► models without memory ─ldm_names─► their weights ─► parts

Opening reads the file and sdcore's own settings of its family, nothing else: no network, no
configuration from elsewhere. Every tensor is used or is on a short list of what may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdcore.checkpoint.clip_tokenizer import clip_tokenizer
from sdcore.checkpoint.defaults import ZERO_SNR_RESCALE, read_defaults
from sdcore.checkpoint.edm import Edm, edm_marks, read_edm
from sdcore.checkpoint.families import check_whole, recognise, spoken_prediction
from sdcore.checkpoint.filling import fill
from sdcore.checkpoint.ldm_names import table
from sdcore.checkpoint.ldm_spellings import is_leftover, is_told_leftover
from sdcore.checkpoint.model import Model
from sdcore.checkpoint.part_files import Others, as_ldm, ldm_entries, prefix_of
from sdcore.checkpoint.parts import NETWORKS, PARTS, TOKENIZER_OF, find_components
from sdcore.diffusion.scheduler_config import is_edm
from sdcore.diffusion.schedulers import load_scheduler, make_scheduler, with_settings
from sdcore.errors import UsageError
from sdcore.files.atomic import replace_file
from sdcore.files.component import Component, build_without_memory, check_placement, list_faults
from sdcore.files.folder import ModelIndex
from sdcore.files.gguf_file import open_weights
from sdcore.files.header import WeightFile
from sdcore.files.weights import check_finite, tensors_writer
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.torch_state import with_own_torch_state


@dataclass(frozen=True)
class _Plan:
    """What a file is opened as.

    folder:          settings in diffusers layout.
    unet:            settings of the UNet that the file knows better.
    prediction_type: None where the folder's scheduler says it.
    edm:             what the file says of EDM noise, if it was trained with it.
    """

    folder: Path
    unet: Mapping[str, Any]
    prediction_type: str | None
    zero_terminal_snr: bool
    edm: Edm | None

    def changes(self, part: str) -> Mapping[str, Any]:
        """Settings of a part that the file knows better."""
        if part == "vae" and self.edm is not None:
            return self.edm.vae
        return self.unet if part == "unet" else {}


@with_own_torch_state
def read_single_file(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    prediction_type: str | None = None,
    config: str | Path | None = None,
    parts: Mapping[str, Sequence[str | Path]] | None = None,
    allow_extra: bool = False,
) -> Model:
    """The parts of a whole Stable Diffusion 1.x, 2.x or XL model in LDM layout.

    Args:
        path: a .safetensors or .gguf file; with `parts`, also one of the UNet alone.
        dtype: of the weights in memory, whatever the file has; None is torch.float32.
        prediction_type: "epsilon" or "v_prediction", where the file says it wrongly or not at all;
            see `sdcore.checkpoint.families.recognise` for what it says.
        config: a folder in diffusers layout (settings and tokenizers; no weights are read) for a
            network that is of none of the families, such as a distilled one.
        parts: files or folders for parts that are taken from there, under the names of
            `sdcore.checkpoint.part_files.OTHERS`.
        allow_extra: leave out tensors that are in none of the networks, with a warning.

    Raises:
        FileError: the file is damaged, holds something else, lacks a tensor, or has one that is
            unknown or of another shape.
        UsageError: an argument that cannot be used.
    """
    dtype, device = check_placement(dtype or torch.float32, device)
    file = as_ldm(open_weights(Path(path).expanduser()))
    others = Others(parts or {}, dtype, device, allow_extra)
    unet = others.unet_file() or file
    plan = _plan(file, unet, others, prediction_type, None if config is None else Path(config))
    index = find_components(plan.folder)
    names = [part for part in NETWORKS if part in index.components]
    settings = {part: plan.folder / part / "config.json" for part in names}
    read = others.read(settings, {part: plan.changes(part) for part in names})
    models = {
        part: build_without_memory(PARTS[part].load_class(), settings[part], plan.changes(part))
        for part in names
        if part not in read
    }
    _fill(models, file, names, dtype, device, allow_extra)
    model = _assemble(file, plan, index, {**models, **read})
    model.defaults = replace(model.defaults, name=others.name_of(model.defaults.name))
    return model


def save_single_file(
    model: Model,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as one .safetensors file in LDM layout, by the exact inverse of reading.

    The file says what the UNet predicts: the marker tensors v_pred, ztsnr and those of `edm` where
    they apply, and modelspec.prediction_type in the header. Other settings are not in such files; a
    model of none of the families can be opened again with `config=` only. A file of that name is
    replaced, once the new one is written and synced.

    Args:
        dtype: of the weights in the file; None keeps that of each parameter.
        metadata: further strings for the header.

    Raises:
        UsageError: what the model predicts, or its noise, is none that files can say, or it has
            parameters that files have no place for, such as those of a LoRA that is not merged.
        NonFiniteError: a weight is NaN or infinite, or becomes so as `dtype`.
        FileError: the disk is full, or the folder cannot be written.
    """
    path = Path(path).expanduser()
    models = model.networks
    _check_parameters(models)
    tensors = _markers(model.scheduler.config, model.autoencoder.config.to_dict())
    for part, entries in table(models).items():
        parameters = models[part].state_dict()
        for entry in entries:
            whole = entry.to_file([parameters[name].detach() for name in entry.parameters])
            tensors[entry.name] = whole.to("cpu", dtype).contiguous()
    check_finite(tensors, dtype)
    word = "v" if _predicted(model.scheduler.config) == "v_prediction" else "epsilon"
    notes = {**(metadata or {}), "format": "pt", "modelspec.prediction_type": word}
    replace_file(path, tensors_writer(tensors, notes))


def _check_parameters(models: Mapping[str, Any]) -> None:
    """Check that each model is one that files can hold, with the parameters it was built with."""
    for part, model in models.items():
        if type(model) is not (expected := PARTS[part].load_class()):
            why = f"Single files hold a {expected.__name__}."
            what = f"The {part} is a {type(model).__name__}, which no single file can hold."
            raise UsageError(what, why, "Save it as a folder.")
        with torch.device("meta"):
            fresh = type(model)(model.config)
        shapes = (
            {name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (fresh, model)
        )
        if faults := list_faults(*shapes):
            hint = "Merge a LoRA or take it off before saving."
            raise UsageError(f"The {part} is not as it was built.", f"{'; '.join(faults)}.", hint)


def _predicted(scheduler: Mapping[str, Any]) -> str:
    return scheduler.get("prediction_type", "epsilon")


def _markers(scheduler: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Tensor]:
    predicted = _predicted(scheduler)
    if is_edm(scheduler):
        marks = edm_marks(scheduler, vae)
        if marks is None:
            raise UsageError(
                "This model's EDM noise cannot be written into a single file.",
                "Such files can say the noise of Playground 2.5 and that of CosXL.",
                "Save it as a folder.",
            )
        return {name: torch.tensor(numbers) for name, numbers in marks.items()}
    if predicted not in ("epsilon", "v_prediction"):
        raise UsageError(
            f"A model that predicts {predicted!r} cannot be written as a single file.",
            "Such files can say epsilon and v_prediction.",
            "Save it as a folder.",
        )
    markers = {
        "v_pred": predicted == "v_prediction",
        "ztsnr": bool(scheduler.get("rescale_betas_zero_snr")),
    }
    return {name: torch.zeros(0) for name, applies in markers.items() if applies}


def _plan(
    file: WeightFile,
    unet: WeightFile,
    others: Others,
    prediction_type: str | None,
    config: Path | None,
) -> _Plan:
    """Args: file: what is opened; unet: what holds the UNet, where it is another file."""
    check_whole(file, without=others.given)
    if config is None:
        others_parts = ("vae", "text_encoder")
        family = recognise(unet, prediction_type=prediction_type, without=others_parts)
        changes = {"in_channels": family.in_channels}
        zero_snr, predicted = family.zero_terminal_snr, family.prediction_type
        return _Plan(family.folder, changes, predicted, zero_snr, read_edm(unet))
    said = spoken_prediction(unet, prediction_type)
    return _Plan(config, {}, said[0] if said else None, "ztsnr" in unet.shapes, read_edm(unet))


def _fill(
    models: Mapping[str, Component],
    file: WeightFile,
    parts: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
    allow_extra: bool,
) -> None:
    """Give the models the file's weights. Args: parts: all networks of the model."""
    entries, file = ldm_entries(models, file, parts)
    elsewhere = tuple(prefix_of(part, parts) for part in parts if part not in models)
    fill(
        models,
        entries,
        file,
        dtype,
        device,
        quiet=lambda name: name.startswith(elsewhere) or is_leftover(name, models, parts),
        told=lambda name: is_told_leftover(name, models, parts),
        allow_extra=allow_extra,
    )


def _assemble(file: WeightFile, plan: _Plan, index: ModelIndex, models: Mapping[str, Any]) -> Model:
    tokenizers = {
        part: _tokenizer(plan.folder / tokenizer, models[part])
        for part, tokenizer in TOKENIZER_OF.items()
        if part in models
    }
    second = models.get("text_encoder_2")
    model = Model(
        tokenizers.get("text_encoder"),
        models.get("text_encoder"),
        models["unet"],
        models["vae"],
        _scheduler(plan, index.pipeline),
        second_reader=None if second is None else (tokenizers["text_encoder_2"], second),
    )
    model.defaults = replace(
        read_defaults(plan.folder, index, model.kind, file.metadata), name=file.path.stem
    )
    if plan.zero_terminal_snr:
        model.defaults = replace(model.defaults, guidance_rescale=ZERO_SNR_RESCALE)
    return model


def _tokenizer(folder: Path, text_encoder: CLIPTextEncoder) -> Tokenizer:
    """The folder's tokenizer; a family's folder has none, since CLIP's is always the same."""
    if folder.is_dir():
        return Tokenizer.from_pretrained(folder)
    pad_id = text_encoder.config.pad_token_id
    assert pad_id is not None
    return clip_tokenizer(pad_id)


def _scheduler(plan: _Plan, pipeline: str) -> Any:
    """The settings' scheduler, told what this file's UNet predicts and how it was trained."""
    if plan.edm is not None:
        config = {**plan.edm.scheduler, "prediction_type": plan.prediction_type}
        return make_scheduler(plan.edm.solver, config)
    published = load_scheduler(plan.folder / "scheduler", pipeline)
    changes: dict[str, Any] = {}
    if plan.prediction_type is not None:
        changes["prediction_type"] = plan.prediction_type
    if plan.zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if plan.zero_terminal_snr and "rescale_betas_zero_snr" not in published.config:
        # This solver cannot start from pure noise.
        config = {k: v for k, v in published.config.items() if k != "_use_default_values"}
        return make_scheduler("ddim", config | changes)
    return with_settings(published, **changes)
