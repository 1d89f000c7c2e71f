"""What a model's files say about themselves, told from headers and settings: no weights are read.

Nothing here loads torch, but for a single file of SD 2.x that does not say what it predicts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, cast

from sdcore.checkpoint.families import describe, family_title, recognise
from sdcore.checkpoint.parts import NETWORKS, PARTS, preflight_model
from sdcore.checks import as_int, has_type
from sdcore.files.content import is_gguf, what_it_is
from sdcore.files.folder import LocalFolder, find_model, read_model_index
from sdcore.files.gguf_file import open_weights
from sdcore.files.hashes import file_hash, tensor_hash
from sdcore.files.header import WeightFile, find_weights
from sdcore.files.jsonfile import is_object, parse_json_object, read_json
from sdcore.files.layout import CONFIG_NAME, PICKLE_SUFFIXES, choose_weights, variants
from sdcore.files.preflight import MODEL_INDEX, ModelFiles

Report = dict[str, Any]

# Part of a single file -> how the names of its tensors begin.
_LDM_PARTS = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
    "EMA copy": ("model_ema.",),
}
_STEMS = tuple(dict.fromkeys(PARTS[name].contents for name in reversed(NETWORKS)))
_SETTINGS = (CONFIG_NAME, "scheduler_config.json", "tokenizer_config.json")
_LABELS = "projection_class_embeddings_input_dim"
_TAGS = 10  # of a LoRA's training captions
_SHORT = 10  # digits of a model's hash in Stable Diffusion web UI


def inspect(name: str | Path, *, variant: str | None = None, hashes: bool = False) -> Report:
    """What a file, a folder or a model on the hub is; of the hub, what would be fetched.

    Args:
        hashes: also of whole files, which takes seconds for each GB.

    Raises:
        FileError: nothing is there, or something damaged.
    """
    if has_type(name, str, Path) and Path(name).expanduser().is_file():
        return _file(Path(name).expanduser(), hashes)
    files = find_model(name)
    if not isinstance(files, LocalFolder):
        return _hub_model(files, variant)
    if (files.path / MODEL_INDEX).exists():
        return _model(files.path, variant, hashes)
    report = _component(files.path, variant, hashes)
    return {"kind": "one component of a model", "path": str(files.path), **report}


def _hub_model(files: ModelFiles, variant: str | None) -> Report:
    """Of a model on the hub, its settings and what would be fetched; no weights."""
    index = read_model_index(files.fetch([MODEL_INDEX]))
    ready = preflight_model(files, index.components, variant)
    return {
        "kind": "a model on the hub",
        "path": files.name,
        "pipeline": index.pipeline,
        "files": ready.files,
        "bytes": sum(ready.files.values()),
    }


def _model(folder: Path, variant: str | None, hashes: bool) -> Report:
    index = read_model_index(folder)
    names = [name for name in index.components if name in PARTS]
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    unet = read_json(folder / "unet" / CONFIG_NAME)
    prediction = scheduler.get("prediction_type", "epsilon")
    width, labels = (unet.get(k) for k in ("cross_attention_dim", _LABELS))
    family = family_title(width, labels, unet.get("in_channels", 4), prediction)
    return {
        "kind": "a model in diffusers layout",
        "path": str(folder),
        "pipeline": index.pipeline,
        "family": family or "no known one",
        "prediction type": prediction,
        "zero terminal SNR": bool(scheduler.get("rescale_betas_zero_snr", False)),
        "components": {name: _component(folder / name, variant, hashes) for name in names},
        "not run": [name for name in index.components if name not in PARTS],
    }


def _component(folder: Path, variant: str | None, hashes: bool) -> Report:
    """A component's class, and what its weights are where it has any."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    settings_name = next((name for name in _SETTINGS if name in names), CONFIG_NAME)
    settings = read_json(folder / settings_name)
    kinds = [settings.get(key) for key in ("_class_name", "tokenizer_class", "architectures")]
    kind = next((kind for kind in kinds if kind), "unknown")
    report: Report = {"class": kind[0] if isinstance(kind, list) else kind}
    if settings_name != CONFIG_NAME:
        return report
    stems = [stem for stem in _STEMS if choose_weights(names, stem, None) or variants(names, stem)]
    if not stems:
        pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
        report["weights"] = f"no safetensors; not opened: {', '.join(pickles) or 'nothing else'}"
        return report
    there = variants(names, stems[0])
    plain = choose_weights(names, stems[0], None) is not None
    chosen = variant if variant in there or not there or plain else there[0]
    files = find_weights(folder, stems[0], chosen)
    report |= _tensors(files)
    report["variants"] = ["plain"] * plain + there
    if hashes:
        report["sha256"] = {file.path.name: file_hash(file.path) for file in files}
    return report


def _file(path: Path, hashes: bool) -> Report:
    other = None if is_gguf(path) else what_it_is(path)
    if other is not None:
        report: Report = {"kind": other.what, "path": str(path), "bytes": path.stat().st_size}
        convert = "not opened; `sdcore convert` reads old checkpoints in a closed process"
        report["note"] = convert if other.is_pickle else other.hint
        return report | ({"sha256": file_hash(path)} if hashes else {})
    file = open_weights(path)
    kind = describe(file)
    report = {"kind": kind, "path": str(path), **_tensors([file])}
    if kind == "a whole model in LDM layout":
        family = recognise(file)
        report |= {
            "family": family.title,
            "prediction type": f"{family.prediction_type} (by {family.said_by})",
            "zero terminal SNR": family.zero_terminal_snr,
            "components": {
                part: _tensors([file], prefixes)
                for part, prefixes in _LDM_PARTS.items()
                if any(name.startswith(prefixes) for name in file.shapes)
            },
        }
    elif kind == "a LoRA":
        report |= _lora(file)
    elif "embedding" in kind:
        report["vectors"] = {name: list(shape) for name, shape in file.shapes.items()}
    if hashes:
        report |= {"sha256": file_hash(path)} if file.gguf else _hashes(file)
    if file.metadata:
        report["metadata"] = _shortened(file.metadata)
    return report


def _tensors(files: Iterable[WeightFile], prefixes: tuple[str, ...] = ("",)) -> Report:
    """Counts over the tensors whose names begin so, and a hash of their names, shapes and types."""
    layout = [
        (name, shape, file.types[name])
        for file in files
        for name, shape in file.shapes.items()
        if name.startswith(prefixes)
    ]
    types = Counter[str]()
    for _, shape, kind in layout:
        types[kind] += math.prod(shape)
    digest = hashlib.sha256(json.dumps(sorted(layout)).encode()).hexdigest()
    return {
        "tensors": len(layout),
        "parameters": sum(types.values()),
        "types": dict(types.most_common()),
        "layout hash": digest[:_SHORT],
    }


def _lora(file: WeightFile) -> Report:
    """Ranks from the shapes; the rest is what its trainer noted."""
    downs = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "hada_w1_b", "lokr_w2_b")
    ranks = Counter(
        shape[0] for name, shape in file.shapes.items() if name.endswith(downs) and shape
    )
    notes = {
        "base model": ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name"),
        "network": ("ss_network_module",),
        "alpha": ("ss_network_alpha",),
        "trigger phrase": ("modelspec.trigger_phrase",),
    }
    report: Report = {"ranks": dict(sorted(ranks.items()))}
    for title, keys in notes.items():
        if found := [file.metadata[key] for key in keys if file.metadata.get(key)]:
            report[title] = found[0]
    if tags := _tags(file.metadata):
        report["tags"] = tags
    return report


def _tags(metadata: Mapping[str, str]) -> list[str]:
    """The most frequent tags of the captions, as kohya's trainers note them."""
    try:
        folders = parse_json_object(metadata.get("ss_tag_frequency", "{}").encode())
    except ValueError:
        return []
    counts = Counter[str]()
    for tags in folders.values():
        for tag, count in tags.items() if is_object(tags) else ():
            counts[tag.strip()] += as_int(count) or 0
    return [f"{tag} ({count})" for tag, count in counts.most_common(_TAGS)]


def _hashes(file: WeightFile) -> Report:
    digest, tensors = file_hash(file.path), tensor_hash(file.path)
    report = {"sha256": digest, "web UI hash": digest[:_SHORT], "sha256 of the tensors": tensors}
    noted = file.metadata.get("sshs_model_hash")
    if noted is not None:
        agrees = noted.removeprefix("0x") == tensors
        report["sshs_model_hash"] = "agrees with the tensors" if agrees else "is of other tensors"
    return report


def _shortened(metadata: Mapping[str, str], limit: int = 200) -> dict[str, str]:
    return {
        key: text if len(text) <= limit else f"{text[:limit]}…" for key, text in metadata.items()
    }


def lines(report: Mapping[str, Any], indent: str = "") -> Iterable[str]:
    """A report for people to read. Foreign text stays on its line and cannot steer a terminal."""
    for title, value in report.items():
        if _is_mapping(value) and any(map(_is_mapping, value.values())):
            yield f"{indent}{title}:"
            yield from lines(value, f"{indent}  ")
        elif _is_mapping(value):
            pairs = (f"{_plain(key)} {_plain(item)}" for key, item in value.items())
            yield f"{indent}{_plain(title)}: {', '.join(pairs)}"
        elif isinstance(value, str) or not isinstance(value, Collection):
            yield f"{indent}{title}: {_plain(value)}"
        else:
            entries = map(_plain, cast(Collection[Any], value))
            yield f"{indent}{title}: {', '.join(entries) or 'none'}"


def _is_mapping(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _plain(value: Any) -> str:
    text = f"{value:,}" if type(value) is int else "yes" if value is True else str(value)
    return "".join(c if c.isprintable() else " " for c in ("no" if value is False else text))
