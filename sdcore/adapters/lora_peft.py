"""LoRAs as PEFT has them: a folder with `adapter_model.safetensors` and `adapter_config.json`.

The tensors are those of one network, without alpha: rank and alpha of each layer are settings. The
layers' names are those that transformers 5 and diffusers give them: there the text encoder without
projection has no `text_model.` before its names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sdcore.adapters.lora_math import Change, Hadamard, Kronecker, LowRank
from sdcore.adapters.lora_names import Place
from sdcore.errors import UsageError, name_some

PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model"
_TYPES: dict[type[Change], str] = {LowRank: "LORA", Hadamard: "LOHA", Kronecker: "LOKR"}
_CORES = ("mid", "hada_t1", "lokr_t2")  # PEFT's cores follow from one setting for all layers
_ENDINGS = {"down": "lora_A.weight", "up": "lora_B.weight"}


def peft_tensors(changes: Mapping[Place, Change]) -> dict[str, Tensor]:
    """The tensors of changes under PEFT's names. Errors: as for `peft_settings`."""
    peft_settings(changes)
    return {
        f"{_PREFIX}.{_layer(place)}.{name}": tensor
        for place, change in changes.items()
        for name, tensor in _words(change).items()
    }


def peft_settings(changes: Mapping[Place, Change]) -> dict[str, Any]:
    """What `adapter_config.json` says of changes.

    Raises:
        UsageError: they are of several networks or kinds, or of a form that PEFT does not have.
    """
    parts = sorted({place.part for place in changes})
    kinds = {type(change) for change in changes.values()}
    lengths = {"magnitude" in change.tensors() for change in changes.values()}
    if len(parts) != 1 or len(kinds) != 1 or len(lengths) != 1:
        why = f"It has {len(changes)} layers in {name_some(parts) or 'nothing'}."
        if len(parts) == 1:
            why = "Its layers are of several kinds."
        raise _cannot_be_saved("One LoRA", why, "Save each network and kind for itself.")
    for place, change in changes.items():
        _check_form(place, change)
    (kind,), (with_lengths,) = kinds, lengths
    ranks = {_layer(place): _rank(change) for place, change in changes.items()}
    alphas = {_layer(place): change.scale * _rank(change) for place, change in changes.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    settings: dict[str, Any] = {
        "peft_type": _TYPES[kind],
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "r": rank,
        "lora_alpha" if kind is LowRank else "alpha": alpha,
        "rank_pattern": {layer: own for layer, own in ranks.items() if own != rank},
        "alpha_pattern": {layer: own for layer, own in alphas.items() if own != alpha},
    }
    if kind is LowRank:
        settings |= {"bias": "none", "lora_dropout": 0.0, "use_dora": with_lengths}
    return settings


def as_peft_magnitude(change: LowRank, magnitude: Tensor) -> Tensor:
    """DoRA's lengths (O, 1) as PEFT keeps them: (O,), of a convolution (1, O, 1, 1)."""
    points = change.down.ndim - 2
    return magnitude.reshape(1, -1, *[1] * points) if points else magnitude.flatten()


def _layer(place: Place) -> str:
    return place.layer.removeprefix("text_model.") if place.part == "text_encoder" else place.layer


def _words(change: Change) -> dict[str, Tensor]:
    tensors = change.tensors()
    words = {_ENDINGS.get(name, name): t for name, t in tensors.items() if name != "magnitude"}
    if isinstance(change, LowRank) and "magnitude" in tensors:
        words["lora_magnitude_vector"] = as_peft_magnitude(change, tensors["magnitude"])
    return words


def _check_form(place: Place, change: Change) -> None:
    tensors = change.tensors()
    magnitude = tensors.get("magnitude")
    if type(change) not in _TYPES or {"bias", "diff_b"} & tensors.keys():
        why = "It is of another kind than LoRA, LoHa and LoKr, or changes a bias."
        raise _cannot_be_saved(str(place), why, 'Use spelling="kohya".')
    if cores := [name for name in _CORES if name in tensors]:
        why = f"It has a core, {cores[0]}."
    elif magnitude is not None and not isinstance(change, LowRank):
        why = "It has DoRA's lengths, and is no LoRA."
    elif magnitude is not None and magnitude.shape[1] > 1:
        why = "It has a length for each input, PEFT has one for each output."
    elif isinstance(change, Kronecker) and not _is_as_peft_divides(change):
        why = "Its factors have other shapes than PEFT divides such a layer into."
    else:
        return
    raise _cannot_be_saved(str(place), why, 'Use spelling="kohya".')


def _cannot_be_saved(what: str, why: str, hint: str) -> UsageError:
    return UsageError(f"{what} cannot be saved as PEFT's.", why, hint)


def _rank(change: Change) -> int:
    """r in PEFT's settings. Where LoKr factorised nothing, one that lets PEFT do the same."""
    tensors = change.tensors()
    rank = change.rank(tensors)
    return rank if rank is not None else max(tensors["lokr_w2"].shape[:2])


def _is_as_peft_divides(change: Kronecker) -> bool:
    """Whether PEFT makes tensors of these shapes for the layer: w1 whole, its sides the smaller of
    each dimension's nearest two factors; w2 factorised if the rank is below half its longer side.
    """
    tensors = change.tensors()
    first, second = tensors.get("lokr_w1"), tensors.get("lokr_w2")
    if first is None:
        return False
    if second is None:
        outputs, inputs = tensors["lokr_w2_a"].shape[0], None
    else:
        outputs, inputs = second.shape[0], second.shape[1]
    fits = first.shape[0] == _smaller_factor(first.shape[0] * outputs)
    if inputs is not None:
        fits = fits and first.shape[1] == _smaller_factor(first.shape[1] * inputs)
    return fits


def _smaller_factor(number: int) -> int:
    return max(n for n in range(1, int(number**0.5) + 1) if number % n == 0)


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
