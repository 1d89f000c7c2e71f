"""LoRA files, written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from sdcore.adapters.lora_kinds import Full, OutputRotation
from sdcore.adapters.lora_math import Change, LowRank
from sdcore.adapters.lora_names import Place
from sdcore.adapters.lora_peft import (
    PEFT_SETTINGS,
    PEFT_WEIGHTS,
    as_peft_magnitude,
    peft_settings,
    peft_tensors,
)
from sdcore.errors import UsageError
from sdcore.files.atomic import json_writer, replace_file, replace_files
from sdcore.files.hashes import LEGACY_DIGITS, LEGACY_WINDOW
from sdcore.files.weights import tensors_writer


def save_lora(
    path: str | Path,
    changes: Mapping[Place, Change],
    *,
    spelling: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA file that diffusers, kohya's tools, A1111, ComfyUI or PEFT read.

    Args:
        changes: what happens to each layer, such as those of `fit_lora`.
        spelling: `diffusers`, LoRA and DoRA alone, alpha / rank multiplied into lora_B, as that
            spelling has no alpha; `kohya`, every kind; or `peft`, for one network, into a file
            adapter_model.safetensors with its settings adapter_config.json in the same folder.
        metadata: strings for the header. In kohya's spelling the hashes sshs_model_hash and
            sshs_legacy_hash are added, by which programs know a LoRA whatever its header says.

    Raises:
        UsageError: an unknown spelling, no change, or a kind that the spelling does not have.
        FileError: the file cannot be written.
    """
    path = Path(path)
    _check_target(path, spelling, len(changes))
    named = lora_tensors(changes, spelling=spelling)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in named.items()}
    notes = dict(metadata or {})
    if spelling == "kohya":
        notes |= _hashes(tensors, notes)
    weights = tensors_writer(tensors, {**notes, "format": "pt"})
    if spelling == "peft":
        settings = json_writer(peft_settings(changes))
        replace_files(path.parent, {PEFT_SETTINGS: settings, PEFT_WEIGHTS: weights})
    else:
        replace_file(path, weights)


def lora_tensors(changes: Mapping[Place, Change], *, spelling: str) -> dict[str, Tensor]:
    """The tensors of a file as `save_lora` writes it, by their keys.

    Raises:
        UsageError: a change is of a kind that the spelling does not have.
    """
    if spelling == "peft":
        return peft_tensors(changes)
    xl = any(place.part == "text_encoder_2" for place in changes)
    tensors: dict[str, Tensor] = {}
    for place, change in changes.items():
        if spelling == "diffusers":
            tensors |= _in_diffusers_words(place, change)
        else:
            tensors |= _in_kohya_words(place, change, xl)
    return tensors


def _hashes(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> dict[str, str]:
    """Of a file with these tensors and, of the notes, those alone that training wrote (`ss_`).

    As kohya's trainers take them for the web UI (`precalculate_safetensors_hashes`).
    """
    data = save(dict(tensors), {name: text for name, text in notes.items() if name[:3] == "ss_"})
    header = 8 + int.from_bytes(data[:8], "little")
    start, length = LEGACY_WINDOW
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(data)[header:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[start : start + length]).hexdigest()[
            :LEGACY_DIGITS
        ],
    }


def _check_target(path: Path, spelling: str, layers: int) -> None:
    known = spelling in ("diffusers", "kohya", "peft")
    if spelling == "peft":
        named, hint = path.name == PEFT_WEIGHTS, f"PEFT reads the file {PEFT_WEIGHTS} in a folder."
    else:
        named = path.suffix == ".safetensors"
        hint = 'Use spelling="kohya", "diffusers" or "peft" and a name that ends in .safetensors.'
    if not (known and named and layers):
        why = f"It is spelling={spelling!r:.40}, {layers} layers, file name {path.name!r:.80}."
        raise UsageError("The LoRA cannot be saved.", why, hint)


def _in_diffusers_words(place: Place, change: Change) -> dict[str, Tensor]:
    tensors = change.tensors()
    magnitude = tensors.pop("magnitude", None)
    row = magnitude is not None and magnitude.shape[1] > 1
    bias = tensors.pop("bias", None)
    if not isinstance(change, LowRank) or set(tensors) != {"down", "up"} or row:
        hint = 'Use spelling="kohya".'
        why = "diffusers' spelling has LoRA and DoRA alone."
        raise UsageError(f"{place} cannot be saved.", f"It is of another kind: {why}.", hint)
    up = tensors["up"] if change.scale == 1 else tensors["up"] * change.scale
    out = {f"{place}.lora_A.weight": tensors["down"], f"{place}.lora_B.weight": up}
    if bias is not None:
        out[f"{place}.lora_B.bias"] = bias * change.scale
    if magnitude is not None:
        out[f"{place}.lora_magnitude_vector.weight"] = as_peft_magnitude(change, magnitude)
    return out


_KOHYA_WORDS = {
    **{"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"},
    "magnitude": "dora_scale",
    **{name: f"{name}.weight" for name in ("a1", "a2", "b1", "b2")},
}
_NORM_WORDS = {"diff": "w_norm", "diff_b": "b_norm"}
_NOT_KOHYA = {"rotation": "a rotation of inputs, PEFT's OFT", "ia3_l": "PEFT's IA3"}


def _in_kohya_words(place: Place, change: Change, xl: bool) -> dict[str, Tensor]:
    first = "lora_te1" if xl else "lora_te"
    prefix = {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}[place.part]
    name = f"{prefix}_{place.layer.replace('.', '_')}"
    tensors = change.tensors()
    for part, kind in _NOT_KOHYA.items():
        if part in tensors:
            hint = "Keep the file that it was read from."
            raise UsageError(f"{place} cannot be saved.", f"It is {kind}.", hint)
    rank = change.rank(tensors)
    if "lokr_w1" in tensors and rank is None:
        # nothing is factorised, so programs take alpha / rank for 1
        tensors["lokr_w1"] = tensors["lokr_w1"] * change.scale
    if "bias" in tensors:  # which this spelling has without alpha only
        bias = change.scale * tensors.pop("bias")
        tensors["diff_b"] = bias + tensors["diff_b"] if "diff_b" in tensors else bias
    if "ia3_w" in tensors:
        factor = tensors.pop("ia3_w")
        out = {f"{name}.weight": factor.flatten()}
        return out | {f"{name}.on_input": torch.tensor(factor.shape[1] > 1)}
    norm = isinstance(change, Full) and tensors.get("diff", torch.zeros(1)).ndim == 1
    words = {**_KOHYA_WORDS, **(_NORM_WORDS if norm else {})}
    out = {f"{name}.{words.get(part, part)}": tensor for part, tensor in tensors.items()}
    if "magnitude" in tensors:
        points = (1,) * (change.product().ndim - 2)
        out[f"{name}.dora_scale"] = tensors["magnitude"].reshape(
            *tensors["magnitude"].shape, *points
        )
    if isinstance(change, Full):
        return out
    alpha = change.scale * rank if rank else 1.0
    alpha = change.scale if isinstance(change, OutputRotation) else alpha
    return out | {f"{name}.alpha": torch.tensor(alpha, dtype=torch.float32)}
