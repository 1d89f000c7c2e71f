"""LoRAs applied to a model: several at once, with weights, beside its layers or merged into them.

    pipe = TextToImage.embedded()
    styled = apply_loras(pipe, [(read_lora("style.safetensors"), 0.8)])
    styled("a red apple")

The model that they are applied to stays as it is: what comes back is another one, which shares all
its weights but those that the LoRAs change (see `sdcore.views`). Both may be used at the same time.

Beside: each layer that a LoRA changes is an `AdaptedLayer`, which computes the change anew each
time; no memory but the LoRA's own. Merged: nothing more is computed while painting, but the changed
weights are in memory twice, with and without the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from sdcore.adapters.lora_file import Lora
from sdcore.adapters.lora_layer import AdaptedLayer, adapted_layers, without_changes
from sdcore.adapters.lora_math import Change, Layer
from sdcore.adapters.lora_names import (
    Place,
    layers_of,
    made_for_another,
    parts_of,
    spellings,
)
from sdcore.checkpoint.model import LoraOnModel, Model
from sdcore.checks import as_finite
from sdcore.errors import FileError, NonFiniteError, UsageError, name_some
from sdcore.files.weights import is_finite
from sdcore.torch_state import with_own_torch_state
from sdcore.views import view

ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True)
class LoraWeight:
    """How much of a LoRA is used, for the UNet and for the text encoders apart.

    Raises:
        UsageError: an amount is no finite number.
    """

    unet: float
    text: float

    def __post_init__(self) -> None:
        for amount in (self.unet, self.text):
            if as_finite(amount) is None:
                raise UsageError(
                    f"A LoRA's weight is {amount!r:.40}.",
                    "It must be a finite number.",
                    "Use 1 for a LoRA as it was trained.",
                )

    def of(self, place: Place) -> float:
        return self.unet if place.part == "unet" else self.text


@dataclass(frozen=True)
class FittedLora:
    """What a LoRA file does to one model.

    Attributes:
        changes: by the model's own layers; `save_lora` writes it.
        unused: the file's keys that nothing in the model corresponds to.
    """

    changes: Mapping[Place, Change] = field(repr=False)
    unused: tuple[str, ...]


@with_own_torch_state
def apply_loras(
    pipe: ModelT,
    loras: Sequence[tuple[Lora, float | LoraWeight]],
    *,
    merge: bool = False,
    allow_partial: bool = False,
) -> ModelT:
    """A model with LoRAs on its UNet and text encoders; `pipe` itself stays as it is.

    LoRAs that `pipe` has already stay on it. `loras` of what comes back says which it has.

    Args:
        loras: each with its weight; 1 is as it was trained, 0 no change, negative the opposite.
        merge: add the changes to copies of the weights, instead of computing them beside.
        allow_partial: accept a file of which only a part fits.

    Raises:
        FileError: a file was made for another model, or nothing or not all of it fits.
        UsageError: a weight is no finite number.
        NonFiniteError: a merged weight is too large for its type.
    """
    weights = [_as_weight(weight) for _, weight in loras]
    bare = _without_changes(pipe)
    names, layers = spellings(bare), layers_of(bare)
    fitted = [_fit(lora, bare, names, layers, allow_partial) for lora, _ in loras]
    changes: dict[Place, list[tuple[Change, float]]] = {}
    for fit, weight in zip(fitted, weights, strict=True):
        for place, change in fit.changes.items():
            if weight.of(place) != 0:
                changes.setdefault(place, []).append((change, weight.of(place)))
    replaced = _merged(changes, layers, pipe) if merge else _beside(changes, layers, pipe)
    networks = {part: view(net, replaced.get(part, {})) for part, net in parts_of(pipe).items()}
    applied = tuple(
        LoraOnModel(lora.path, lora.name, lora.hash, weight.unet, weight.text, merge, fit.unused)
        for (lora, _), weight, fit in zip(loras, weights, fitted, strict=True)
    )
    return pipe.replace(**networks, loras=(*pipe.loras, *applied))


def fit_lora(lora: Lora, pipe: Model, *, allow_partial: bool = False) -> FittedLora:
    """What a LoRA does to the layers of a model, without applying it.

    Args, errors: as for `apply_loras`.
    """
    bare = _without_changes(pipe)
    return _fit(lora, bare, spellings(bare), layers_of(bare), allow_partial)


Replaced = dict[str, dict[str, nn.Module | Tensor]]  # part -> name in it -> what stands there


def _without_changes(pipe: ModelT) -> ModelT:
    """The model with the layers that LoRAs are beside of, alone; for their names and shapes."""
    return pipe.replace(**{part: without_changes(net) for part, net in parts_of(pipe).items()})


def _beside(
    changes: Mapping[Place, list[tuple[Change, float]]],
    layers: Mapping[Place, Layer],
    pipe: Model,
) -> Replaced:
    """The adapted layers; one that there is gets these changes after its own."""
    replaced: Replaced = {}
    there = {part: adapted_layers(net) for part, net in parts_of(pipe).items()}
    for place, mine in changes.items():
        layer, known = layers[place], there[place.part].get(place.layer)
        weight = layer.weight
        placed = [(change.at(weight.device, weight.dtype), amount) for change, amount in mine]
        earlier = [] if known is None else known.parts()
        replaced.setdefault(place.part, {})[place.layer] = AdaptedLayer(layer, earlier + placed)
    return replaced


def _merged(
    changes: Mapping[Place, list[tuple[Change, float]]],
    layers: Mapping[Place, Layer],
    pipe: Model,
) -> Replaced:
    """The new weights."""
    replaced: Replaced = {}
    there = {part: adapted_layers(net) for part, net in parts_of(pipe).items()}
    for place, mine in changes.items():
        inside = ".base" if place.layer in there[place.part] else ""
        weight = _merge(place, layers[place].weight, mine)
        replaced.setdefault(place.part, {})[f"{place.layer}{inside}.weight"] = weight
    return replaced


def _merge(place: Place, weight: Tensor, changes: Sequence[tuple[Change, float]]) -> nn.Parameter:
    total = weight.to(torch.promote_types(weight.dtype, torch.float32))
    for change, amount in changes:
        total = total + amount * change.at(weight.device).delta(weight)
    merged = total.to(weight.dtype)
    if not is_finite(merged):
        raise NonFiniteError(
            f"{place} with the LoRAs in it is not finite as {weight.dtype}.",
            f"The weights are {[amount for _, amount in changes]}.",
            "Use smaller weights.",
        )
    return nn.Parameter(merged, requires_grad=weight.requires_grad)


def _as_weight(weight: float | LoraWeight) -> LoraWeight:
    return weight if isinstance(weight, LoraWeight) else LoraWeight(weight, weight)


def _fit(
    lora: Lora,
    pipe: Model,
    names: Mapping[str, Place],
    layers: Mapping[Place, Layer],
    allow_partial: bool,
) -> FittedLora:
    """A file's changes by the model's own layers, and its keys that fit none."""
    changes: dict[Place, Change] = {}
    unused = list(lora.unused)
    faults: list[str] = []
    for name, change in lora.changes.items():
        place = names.get(name)
        if place is None:
            unused += lora.keys[name]
        elif (fault := change.fault(layers[place].weight.shape)) is not None:
            faults.append(f"{name:.120}: {fault}")
        elif place in changes:
            raise FileError(
                f"{lora.path} is not a sound LoRA.",
                f"{name:.120} and another name both are {place}.",
                "Take it from another source.",
            )
        else:
            changes[place] = change
    if faults or not changes or (unused and not allow_partial):
        raise _misfit(lora, pipe, len(changes), unused, faults)
    return FittedLora(changes, tuple(unused))


def _misfit(
    lora: Lora, pipe: Model, fitting: int, unused: list[str], faults: list[str]
) -> FileError:
    """Why a file does not fit: another family where that can be told, else what differs."""
    noted = f" Its header says {lora.base_model:.80}." if lora.base_model else ""
    widths = {name: change.inputs() for name, change in lora.changes.items()}
    model = pipe.kind.family
    if (why := made_for_another(widths, pipe)) is not None:
        hint = f"Use a LoRA that was trained on {model}."
        return FileError(f"{lora.path} was made for another model.", f"{why}{noted}", hint)
    why = f"{fitting} of its {len(lora.changes)} layers fit {model}"
    if unused:
        why += f"; {len(unused)} keys are unknown: {name_some(unused)}"
    if faults:
        why += f"; {len(faults)} layers have another shape: {name_some(faults, 3)}"
    advice = "Use a LoRA that was trained on this kind of model."
    if fitting and not faults:
        advice += " What fits can be applied alone: allow_partial=True."
    return FileError(f"{lora.path} does not fit this model.", f"{why}.{noted}", advice)
