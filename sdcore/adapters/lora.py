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
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from sdcore.adapters.lora_blocks import base_factor, factors, read_blocks
from sdcore.adapters.lora_file import Lora
from sdcore.adapters.lora_kinds import Full
from sdcore.adapters.lora_layer import AdaptedLayer, adapted_layers, without_changes
from sdcore.adapters.lora_math import Change
from sdcore.adapters.lora_names import (
    Place,
    made_for_another,
    parts_of,
    spellings,
    weights_of,
)
from sdcore.adapters.textual_inversion import apply_embeddings
from sdcore.checkpoint.model import LoraOnModel, Model
from sdcore.checks import as_finite
from sdcore.errors import FileError, NonFiniteError, UsageError, name_some, warn
from sdcore.files.limits import LORA_WEIGHT
from sdcore.files.weights import is_finite
from sdcore.torch_state import with_own_torch_state
from sdcore.views import twin, view

ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True)
class LoraWeight:
    """How much of a LoRA is used, for the UNet and for the text encoders apart.

    Attributes:
        blocks: block weights, see `sdcore.adapters.lora_blocks`; "" is all blocks alike.

    Raises:
        UsageError: an amount is no number or far too large, or block weights that cannot be.
    """

    unet: float
    text: float
    blocks: str = ""

    def __post_init__(self) -> None:
        for amount in (self.unet, self.text):
            if as_finite(amount, -LORA_WEIGHT, LORA_WEIGHT) is None:
                raise UsageError(
                    f"A LoRA's weight is {amount!r:.40}.",
                    f"It must be a number from -{LORA_WEIGHT} to {LORA_WEIGHT}.",
                    "Use 1 for a LoRA as it was trained.",
                )
        read_blocks(self.blocks)

    def of(self, place: Place, blocks: Mapping[Place, float]) -> float:
        """Args: blocks: what `lora_blocks.factors` says of these block weights."""
        if place.part == "unet":
            return self.unet * blocks.get(place, 1.0)
        return self.text * base_factor(self.blocks)


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
    dialect: str = "plain",
) -> ModelT:
    """A model with LoRAs on its UNet and text encoders; `pipe` itself stays as it is.

    LoRAs that `pipe` has already stay on it. `loras` of what comes back says which it has.
    It also knows the learned words that lie in the files.

    Args:
        loras: each with its weight; 1 is as it was trained, 0 no change, negative the opposite.
        merge: add the changes to copies of the weights, instead of computing them beside.
        allow_partial: accept a file of which only a part fits.
        dialect: of the prompts; says how they call a learned word, see `apply_embeddings`.

    Raises:
        FileError: a file was made for another model, or nothing or not all of it fits.
        UsageError: a weight is no finite number, or a learned word has a meaning already.
        NonFiniteError: a merged weight is too large for its type.
    """
    weights = [_as_weight(weight) for _, weight in loras]
    bare = _without_changes(pipe)
    names, layers = spellings(bare), weights_of(bare)
    fitted = [_fit(lora, bare, names, layers, allow_partial) for lora, _ in loras]
    changes: dict[Place, list[tuple[Change, float]]] = {}
    for fit, weight in zip(fitted, weights, strict=True):
        blocks = factors(weight.blocks, bare)
        for place, change in fit.changes.items():
            if (amount := weight.of(place, blocks)) != 0:
                changes.setdefault(place, []).append((change, amount))
    replaced = _merged(changes, layers, pipe) if merge else _beside(changes, layers, pipe)
    networks = {part: view(net, replaced.get(part, {})) for part, net in parts_of(pipe).items()}
    applied = tuple(
        LoraOnModel(
            *(lora.path, lora.name, lora.hash, weight.unet, weight.text, merge, fit.unused),
            blocks=weight.blocks,
        )
        for (lora, _), weight, fit in zip(loras, weights, fitted, strict=True)
    )
    styled = pipe.replace(**networks, loras=(*pipe.loras, *applied))
    for lora, _ in loras:  # such as an LCM-LoRA, which makes any model one of few steps
        styled = styled.with_preset_of(lora.metadata)
    known = {(word.hash, word.name) for word in pipe.embeddings}
    words = [
        each for lora, _ in loras for each in lora.words if (each.hash, each.name) not in known
    ]
    return apply_embeddings(styled, words, dialect=dialect, bundled=True) if words else styled


def fit_lora(lora: Lora, pipe: Model, *, allow_partial: bool = False) -> FittedLora:
    """What a LoRA does to the layers of a model, without applying it.

    Args, errors: as for `apply_loras`.
    """
    bare = _without_changes(pipe)
    return _fit(lora, bare, spellings(bare), weights_of(bare), allow_partial)


Replaced = dict[str, dict[str, nn.Module | Tensor]]  # part -> name in it -> what stands there


def _without_changes(pipe: ModelT) -> ModelT:
    """The model with the layers that LoRAs are beside of, alone; for their names and shapes."""
    return pipe.replace(**{part: without_changes(net) for part, net in parts_of(pipe).items()})


def _beside(
    changes: Mapping[Place, list[tuple[Change, float]]],
    layers: Mapping[Place, nn.Module],
    pipe: Model,
) -> Replaced:
    """The adapted layers; one that there is gets these changes after its own.

    Of normalisations and embeddings the changed vectors, which are small or in one piece anyway.
    """
    replaced: Replaced = {}
    there = {part: adapted_layers(net) for part, net in parts_of(pipe).items()}
    for place, mine in changes.items():
        layer, known = layers[place], there[place.part].get(place.layer)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight
            placed = [(change.at(weight.device, weight.dtype), amount) for change, amount in mine]
            earlier = [] if known is None else known.parts()
            layer = AdaptedLayer(layer, earlier + placed)
        else:
            layer = _merge(place, layer, mine)
        replaced.setdefault(place.part, {})[place.layer] = layer
    return replaced


def _merged(
    changes: Mapping[Place, list[tuple[Change, float]]],
    layers: Mapping[Place, nn.Module],
    pipe: Model,
) -> Replaced:
    """The layers with new weights and biases."""
    replaced: Replaced = {}
    there = {part: adapted_layers(net) for part, net in parts_of(pipe).items()}
    for place, mine in changes.items():
        inside = ".base" if place.layer in there[place.part] else ""
        layer = _merge(place, layers[place], mine)
        replaced.setdefault(place.part, {})[f"{place.layer}{inside}"] = layer
    return replaced


def _merge(place: Place, layer: nn.Module, changes: Sequence[tuple[Change, float]]) -> nn.Module:
    """The layer over other tensors; a bias that nothing changes stays as it is."""
    weight, bias = (
        cast("nn.Parameter | None", getattr(layer, n, None)) for n in ("weight", "bias")
    )
    assert weight is not None
    amounts = [amount for _, amount in changes]
    placed = [change.at(weight.device) for change, _ in changes]
    new = _sum(place, weight, [change.delta(weight) for change in placed], amounts)
    biases = [change.delta_bias(bias) for change in placed]
    pairs = [(more, a) for more, a in zip(biases, amounts, strict=True) if more is not None]
    parameters = {**vars(layer)["_parameters"], "weight": new}
    if pairs:
        own = bias if bias is not None else nn.Parameter(torch.zeros_like(pairs[0][0]).to(weight))
        parameters["bias"] = _sum(place, own, [more for more, _ in pairs], [a for _, a in pairs])
    return twin(layer, _parameters=parameters)


def _sum(
    place: Place, tensor: Tensor, deltas: Sequence[Tensor], amounts: Sequence[float]
) -> nn.Parameter:
    total = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    for delta, amount in zip(deltas, amounts, strict=True):
        total = total + amount * delta.reshape(tensor.shape)
    merged = total.to(tensor.dtype)
    if not is_finite(merged):
        raise NonFiniteError(
            f"{place} with the LoRAs in it is not finite as {tensor.dtype}.",
            f"The weights are {list(amounts)}.",
            "Use smaller weights.",
        )
    return nn.Parameter(merged, requires_grad=tensor.requires_grad)


def _as_weight(weight: float | LoraWeight) -> LoraWeight:
    return weight if isinstance(weight, LoraWeight) else LoraWeight(weight, weight)


def _fit(
    lora: Lora,
    pipe: Model,
    names: Mapping[str, Place],
    layers: Mapping[Place, nn.Module],
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
        elif (fault := _fault(change, layers[place])) is not None:
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
    if unused:
        said = f"({len(unused)}): {name_some(unused)}"
        warn(f"{lora.path.name}: what fits nothing in the model is left out {said}")
    return FittedLora(changes, tuple(unused))


def _fault(change: Change, layer: nn.Module) -> str | None:
    """Why a change cannot be that of this layer; None where it can."""
    full, affine = isinstance(change, Full), isinstance(layer, nn.Linear | nn.Conv2d)
    if not full and not affine:
        return f"it is a {type(layer).__name__}, of which there are full changes alone"
    if isinstance(layer, nn.Embedding) and "diff_b" in change.tensors():
        return "it is an Embedding, which has no bias"
    return change.fault(cast(Tensor, layer.weight).shape)


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
