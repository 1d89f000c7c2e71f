"""LoRA files, read strictly and without a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdcore.adapters.lora_kinds import KINDS, OutputRotation
from sdcore.adapters.lora_math import Change, LowRank
from sdcore.adapters.lora_names import (
    BUNDLED,
    CHANGED,
    COUNTERS,
    refused_kind,
    split_key,
    without_adapter,
)
from sdcore.adapters.lora_words import in_our_words
from sdcore.adapters.textual_inversion import Embedding, bundled_words
from sdcore.checks import as_finite, as_int
from sdcore.errors import FileError, name_some
from sdcore.files.hashes import tensor_hash
from sdcore.files.header import WeightFile, open_header
from sdcore.files.jsonfile import is_object, parse_json_object, read_json
from sdcore.files.weights import read_tensors

# PEFT's and diffusers' names for the file in a folder.
_FILE_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_SCALE_LIMIT = 1e4  # of alpha / rank; 1 or less is usual
_IA3 = ".on_input"
_NUMBERS = ("alpha", "on_input")  # what may be a whole number
_DIFFUSERS_SETTINGS = "lora_adapter_metadata"


@dataclass(frozen=True)
class Lora:
    """A LoRA file.

    Attributes:
        name: the file's, without its suffix.
        hash: SHA-256 of its tensors, see `sdcore.files.hashes`.
        changes: what happens to each layer, by the layer's name in the file.
        keys: the file's keys that each of these was read from.
        unused: keys that belong to no change.
        words: learned words that lie in it beside the changes (`bundle_emb`).
        metadata: the header's free text, as it is; never trusted.
    """

    path: Path
    name: str
    hash: str
    changes: dict[str, Change] = field(repr=False)
    keys: dict[str, tuple[str, ...]] = field(repr=False)
    unused: tuple[str, ...]
    metadata: dict[str, str] = field(repr=False)
    words: tuple[Embedding, ...] = ()

    @property
    def base_model(self) -> str | None:
        """What its trainer says it was trained on, such as `sdxl_base_v1-0`."""
        names = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
        return next((self.metadata[name] for name in names if self.metadata.get(name)), None)

    @property
    def trigger_words(self) -> str | None:
        """What its maker says a prompt should hold."""
        return self.metadata.get("modelspec.trigger_phrase") or None

    @property
    def tag_counts(self) -> dict[str, int]:
        """The tags of its training captions, the most frequent first; empty where not noted."""
        try:
            folders = parse_json_object(self.metadata.get("ss_tag_frequency", "{}").encode())
        except ValueError:
            return {}
        counts: Counter[str] = Counter()
        for tags in folders.values():
            for tag, count in tags.items() if is_object(tags) else ():
                if as_int(count, 1) is not None:
                    counts[tag.strip()] += count
        return dict(counts.most_common())


def read_lora(path: str | Path) -> Lora:
    """Read a file of any kind in lora_math.py and lora_kinds.py, in any spelling of lora_names.py.

    Args:
        path: a safetensors file; or a folder that PEFT or diffusers saved one in.

    Raises:
        FileError: damaged, no LoRA, of a kind that sdcore does not have, incomplete, or with an
            alpha or weights that cannot be.
    """
    path = _file_in(Path(path).expanduser())
    file = open_header(path)
    _refuse_other_kinds(file)
    groups, unused, bundled = _grouped(file)
    if not groups:
        raise _no_lora(path, list(file.shapes))
    stored = read_tensors(file, torch.device("cpu"), None)
    scales = _Scales(path, file.metadata)
    changes = {
        name: _change(path, name, {tensor: stored[key] for tensor, key in keys.items()}, scales)
        for name, keys in groups.items()
    }
    keys = {name: tuple(keys.values()) for name, keys in groups.items()}
    words = bundled_words(path, {key: stored[key] for key in bundled})
    return Lora(
        path, path.stem, tensor_hash(path), changes, keys, tuple(unused), file.metadata, words
    )


def _grouped(file: WeightFile) -> tuple[dict[str, dict[str, str]], list[str], list[str]]:
    """Layer -> tensor -> key; keys of no change; keys of learned words."""
    stretched = {key.removesuffix(_IA3) for key in file.shapes if key.endswith(_IA3)}
    groups: dict[str, dict[str, str]] = {}
    unused: list[str] = []
    bundled: list[str] = []
    adapters: set[str | None] = set()
    for key in file.shapes:
        if key.startswith(BUNDLED):
            bundled.append(key)
            continue
        if key in COUNTERS:
            continue
        plain, adapter = without_adapter(key)
        adapters |= {adapter} if adapter else set()
        split = split_key(plain, stretched)
        whole = key in file.integers and split is not None and split[1] not in _NUMBERS
        if split is None or whole:
            unused.append(key)
        elif groups.setdefault(split[0], {}).setdefault(split[1], key) != key:
            why = f"{groups[split[0]][split[1]]:.120} and {key:.120} are the same tensor."
            if len(adapters) > 1:
                why = f"It holds several adapters: {name_some(sorted(map(str, adapters)))}."
            what = f"{file.path} is not a sound LoRA."
            raise FileError(what, why, "Take it from another source.")
    alone = [name for name, keys in groups.items() if set(keys) == {"alpha"}]
    unused += [groups.pop(name)["alpha"] for name in alone]
    return groups, unused, bundled


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in _FILE_NAMES if (path / name).exists()]
    if len(found) != 1:
        why = f"It holds {len(found)} of {' and '.join(_FILE_NAMES)}."
        raise FileError(f"{path} is a folder.", why, "Name the LoRA file itself.")
    return found[0]


def _refuse_other_kinds(file: WeightFile) -> None:
    kinds: dict[str, str] = {}
    for key in file.shapes:
        if (kind := refused_kind(key)) is not None:
            kinds.setdefault(kind, key)
    if kinds:
        named = "; ".join(f"{kind}: {key:.120}" for kind, key in kinds.items())
        hint = "Convert it with the tool that made it, to a LoRA or to full differences."
        raise FileError(f"{file.path} is of a kind that sdcore does not have.", f"{named}.", hint)


def _no_lora(path: Path, keys: list[str]) -> FileError:
    hint = "Name a LoRA file."
    if {"emb_params", "clip_l", "clip_g"} & set(keys):
        hint = "It is a textual inversion; use it as an embedding."
    elif any(key.startswith(("model.diffusion_model.", "conv_in.", "text_model.")) for key in keys):
        hint = "It holds the weights of a network; load it as a model."
    why = f"Its {len(keys)} keys are not those of a LoRA: {name_some(keys) or 'none'}."
    return FileError(f"{path} holds no LoRA.", why, hint)


def _change(path: Path, name: str, tensors: dict[str, Tensor], scales: _Scales) -> Change:
    """One layer's change, or FileError."""

    def wrong(why: str) -> FileError:
        hint = "Take it from another source, or train it again."
        return FileError(f"{path}: {name:.120} cannot be used.", why, hint)

    alpha = tensors.pop("alpha", None)
    try:
        tensors = in_our_words(name, tensors, scales.settings_of(name))
    except (ValueError, RuntimeError, IndexError, KeyError) as error:
        raise wrong(f"It cannot be of its kind: {error}.") from error
    if "vector" in tensors:
        tensors["magnitude"] = tensors.pop("vector").reshape(-1, 1)
    elif "magnitude" in tensors:
        tensors["magnitude"] = _as_magnitude(tensors["magnitude"])
    present = frozenset(tensors) - Change.BESIDE
    kind = next((kind for kind in KINDS if present in kind.FORMS), None)
    if kind is None or (kind is not LowRank and "bias" in tensors):
        parts = ", ".join(sorted(tensors)) or "none"
        raise wrong(f"A part is missing or too many: it has {parts}.")
    for part, tensor in tensors.items():
        flat = part in ("bias", "diff_b")
        matrix = tensor.ndim == 1 if flat else tensor.ndim in (2, 4) or not kind.MATRICES
        if 0 in tensor.shape or not tensor.ndim or not matrix:
            raise wrong(f"Its {part} is no matrix: the shape is {tuple(tensor.shape)}.")
    least = 0 if kind is OutputRotation else math.ulp(0)  # a limit, which may be none
    if alpha is not None and (alpha.numel() != 1 or not least <= alpha.item() < math.inf):
        shown = [number.item() for number in alpha.flatten()[:3]]
        raise wrong(f"Its alpha is {shown}; it must be one number above 0.")
    if kind is OutputRotation:
        return kind(tensors, 0.0 if alpha is None else alpha.item())
    scale = scales.of(name, kind.rank(tensors), None if alpha is None else alpha.item())
    if not 0 < scale <= _SCALE_LIMIT:
        raise wrong(f"Alpha / rank is {scale:g}; it must be above 0 and at most {_SCALE_LIMIT:g}.")
    return kind(tensors, scale)


def _as_magnitude(tensor: Tensor) -> Tensor:
    """LyCORIS' dora_scale, (O, 1...) or (1, I, 1...), as (O, 1) or (1, I)."""
    if tensor.ndim > 1 and tensor.shape[0] == 1 and tensor.numel() == tensor.shape[1]:
        return tensor.reshape(1, -1)
    return tensor.reshape(-1, 1)


class _Scales:
    """s = alpha / rank of each layer: from the file's own alpha, else from settings beside it.

    PEFT keeps alpha in adapter_config.json, newer diffusers in the header; without any, s is 1.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = path
        self.settings: dict[str, dict[str, Any]] = {}  # prefix of the layers' names -> settings
        if path.name == _FILE_NAMES[0] and (path.parent / "adapter_config.json").exists():
            self.settings[""] = read_json(path.parent / "adapter_config.json")
        elif _DIFFUSERS_SETTINGS in metadata:
            try:
                noted = parse_json_object(metadata[_DIFFUSERS_SETTINGS].encode())
            except ValueError as error:
                what = f"{path}: {_DIFFUSERS_SETTINGS} in its header is damaged."
                why = f"It is no sound JSON: {error}."
                raise FileError(what, why, "Take it from another source.") from error
            for name, value in noted.items():
                part, _, setting = name.partition(".")
                if part in CHANGED:
                    self.settings.setdefault(f"{part}.", {})[setting] = value

    def settings_of(self, layer: str) -> dict[str, Any]:
        """What is written beside the file, or in its header, for a layer."""
        mine = (s for prefix, s in self.settings.items() if layer.startswith(prefix))
        return next(mine, dict[str, Any]())

    def of(self, layer: str, rank: int | None, alpha: float | None) -> float:
        if alpha is not None:
            return 1.0 if rank is None else alpha / rank
        settings = self.settings_of(layer)
        chosen = _for_layer(layer, settings.get("alpha_pattern"))
        if chosen is None:
            chosen = settings.get("lora_alpha", settings.get("alpha"))
        if chosen is None:
            return 1.0
        rank = rank or settings.get("r")
        over, under = as_finite(chosen), as_finite(rank)
        if over is None or not under:
            why = f"They say alpha {chosen!r:.40} and rank {rank!r:.40} for {layer:.120}."
            hint = "Restore the file from where the LoRA came from."
            raise FileError(f"{self.path}: its settings cannot be used.", why, hint)
        return over / (math.sqrt(under) if settings.get("use_rslora") else under)


def _for_layer(layer: str, pattern: Any) -> Any:
    """PEFT's alpha_pattern: the first entry that is the end of the layer's name.

    PEFT takes the entries for regular expressions; diffusers and the usual recipes write plain
    names, and a stranger's expression is not run here.
    """
    entries = pattern.items() if is_object(pattern) else ()
    plain = ((name.removeprefix("^").removesuffix("$"), value) for name, value in entries)
    return next((v for name, v in plain if layer == name or layer.endswith(f".{name}")), None)
