"""LoRAs on a pipeline: several at once, with weights, beside the model's layers or merged in.

    lora = read_lora("style.safetensors")
    with apply_loras(pipe, [(lora, 0.8)]):
        pipe("a red apple")

Beside: each layer that a LoRA changes is wrapped in an `AdaptedLayer` that holds the layer itself,
and computes the change anew each time; no memory but the LoRA's own. Merged: nothing is computed
while painting, but the layers' original weights are kept aside. Either way `remove()` puts back the
very layers and weights that were there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdcore.adapters.lora_file import Lora, read_lora
from sdcore.adapters.lora_math import Change, Layer
from sdcore.adapters.lora_names import (
    Place,
    layers_of,
    made_for_another,
    parts_of,
    spellings,
)
from sdcore.adapters.lora_saving import save_lora
from sdcore.checks import as_finite
from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.files.jsonfile import name_some
from sdcore.files.weights import is_finite

if TYPE_CHECKING:
    from sdcore.checkpoint.model import Model

__all__ = [
    "AdaptedLayer",
    "AppliedLoras",
    "Lora",
    "LoraWeight",
    "Place",
    "apply_loras",
    "read_lora",
    "save_lora",
]


@dataclass(frozen=True)
class LoraWeight:
    """How much of a LoRA is used, for the UNet and for the text encoders apart."""

    unet: float
    text: float

    def of(self, place: Place) -> float:
        return self.unet if place.part == "unet" else self.text


class AdaptedLayer(nn.Module):
    """A linear layer or convolution with changes beside it: base(x) + Σ weight · ΔW x."""

    def __init__(self, base: Layer, changes: Sequence[Change]) -> None:
        super().__init__()
        self.base = base
        self.changes = nn.ModuleList(changes)
        self.amounts = [0.0] * len(changes)
        self.register_state_dict_pre_hook(_refuse_saving)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        for change, amount in zip(self.changes, self.amounts, strict=True):
            if amount != 0:
                out = out + amount * change(x, self.base)
        return out


def apply_loras(
    pipe: Model,
    loras: Sequence[tuple[Lora, float | LoraWeight]],
    *,
    merge: bool = False,
    allow_partial: bool = False,
) -> AppliedLoras:
    """Apply LoRAs to a pipeline's UNet and text encoders.

    Args:
        loras: each with its weight; 1 is as it was trained, 0 no change, negative the opposite.
        merge: add the changes to the layers' weights, instead of computing them beside.
        allow_partial: accept a file of which only a part fits; what does not is in `.unused`.

    Raises:
        FileError: a file was made for another model, or nothing or not all of it fits.
        UsageError: a weight is no finite number, or LoRAs are already beside this model's layers.
        NonFiniteError: a merged weight is too large for its type.
    """
    _check_free(pipe)
    amounts = [_as_weight(weight) for _, weight in loras]
    names, layers = spellings(pipe), layers_of(pipe)
    fitted = [_fit(lora, pipe, names, layers, allow_partial) for lora, _ in loras]
    applied = AppliedLoras(pipe, [lora for lora, _ in loras], fitted, merge)
    applied.set_weights(amounts)
    return applied


class AppliedLoras:
    """LoRAs that are on a pipeline until `remove()`, or until the end of a `with` block.

    Attributes:
        loras: the files, in the order in which they were given.
        unused: for each file, the keys that nothing in the model corresponds to.
    """

    def __init__(
        self,
        pipe: Model,
        loras: Sequence[Lora],
        fitted: Sequence[tuple[dict[Place, Change], tuple[str, ...]]],
        merge: bool,
    ) -> None:
        self.loras = tuple(loras)
        self.unused = tuple(unused for _, unused in fitted)
        self._changes = tuple(changes for changes, _ in fitted)
        self._amounts: list[LoraWeight] | None = None  # not on the model yet
        self._removed = False
        kind = _Merged if merge else _Beside
        parts, layers = parts_of(pipe), layers_of(pipe)
        places = dict.fromkeys(place for changes in self._changes for place in changes)
        self._seats: dict[Place, _Merged | _Beside] = {}
        for place in places:
            mine = [changes[place] for changes in self._changes if place in changes]
            self._seats[place] = kind(parts[place.part], place.layer, layers[place], mine)

    def changes(self, index: int) -> Mapping[Place, Change]:
        """What LoRA number `index` does, by the model's own layers; `save_lora` writes it."""
        return self._changes[index]

    def set_weights(self, weights: Sequence[float | LoraWeight]) -> None:
        """Use the LoRAs by other amounts, one for each, without reading them again."""
        amounts = [_as_weight(weight) for weight in weights]
        if len(amounts) != len(self.loras):
            why = f"{len(amounts)} weights for {len(self.loras)} LoRAs"
            raise UsageError("the weights do not fit", why, "give one weight for each LoRA")
        if self._removed:
            hint = "apply them again with apply_loras"
            raise UsageError("the LoRAs have been removed", "they are on no model", hint)
        try:
            self._set(amounts)
        except BaseException:  # no layer by other weights than the rest
            if self._amounts is None:
                self._restore()
            else:
                self._set(self._amounts)
            raise
        self._amounts = amounts

    def _set(self, amounts: list[LoraWeight]) -> None:
        for place, seat in self._seats.items():
            here = zip(amounts, self._changes, strict=True)
            seat.set([amount.of(place) for amount, changes in here if place in changes])

    def remove(self) -> None:
        """Put back the layers and weights that were there before; a second call does nothing.

        Raises:
            UsageError: something was put on top of it, which must be removed first.
        """
        on_top = [str(place) for place, seat in self._seats.items() if not seat.in_place()]
        if on_top:
            why = f"{name_some(on_top)} changed since"
            raise UsageError("the LoRAs cannot be removed", why, "remove first what came later")
        self._restore()

    def _restore(self) -> None:
        """As `remove`, whatever is in place now."""
        for seat in self._seats.values():
            seat.restore()
        self._seats, self._removed = {}, True

    def __enter__(self) -> AppliedLoras:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


class _Beside:
    """One layer, wrapped where it sits."""

    def __init__(self, network: nn.Module, name: str, layer: Layer, changes: list[Change]) -> None:
        self.parent, _, self.name = name.rpartition(".")
        weight = layer.weight
        changes = [change.at(weight.device, weight.dtype) for change in changes]
        self.network, self.layer = network, AdaptedLayer(layer, changes)

    def _put(self, module: nn.Module) -> None:
        setattr(self.network.get_submodule(self.parent), self.name, module)

    def set(self, amounts: list[float]) -> None:
        self.layer.amounts = amounts
        self._put(self.layer)

    def in_place(self) -> bool:
        parent = self.network.get_submodule(self.parent)
        return getattr(parent, self.name) is self.layer

    def restore(self) -> None:
        self._put(self.layer.base)


class _Merged:
    """One layer, whose weight is replaced and kept aside."""

    def __init__(self, network: nn.Module, name: str, layer: Layer, changes: list[Change]) -> None:
        self.name, self.layer, self.changes = name, layer, changes
        self.original: nn.Parameter = layer.weight  # pyright: ignore[reportAttributeAccessIssue]
        self.placed = self.original

    @torch.no_grad()
    def set(self, amounts: list[float]) -> None:
        original = self._original()
        total = original.to(torch.promote_types(original.dtype, torch.float32))
        for change, amount in zip(self.changes, amounts, strict=True):
            if amount != 0:
                total = total + amount * change.at(original.device).delta(original)
        merged = total.to(original.dtype)
        if not is_finite(merged):
            what = f"{self.name} with the LoRAs in it is not finite as {original.dtype}"
            raise NonFiniteError(what, f"the weights are {amounts}", "use smaller weights")
        self.placed = nn.Parameter(merged, requires_grad=original.requires_grad)
        self.layer.weight = self.placed

    def _original(self) -> nn.Parameter:
        """The original weight, moved to where the layer is now."""
        self.original.data = self.original.data.to(self.layer.weight)
        return self.original

    def in_place(self) -> bool:
        return self.layer.weight is self.placed

    def restore(self) -> None:
        self.layer.weight = self._original()


def _refuse_saving(module: nn.Module, *_: Any) -> None:
    raise UsageError(
        "the weights cannot be taken out while LoRAs are beside the model's layers",
        "the file would hold neither the model as it was nor as it paints now",
        "remove() the LoRAs first, or apply them with merge=True to save them as one model",
    )


def _check_free(pipe: Model) -> None:
    for part, network in parts_of(pipe).items():
        if any(isinstance(module, AdaptedLayer) for module in network.modules()):
            hint = "give all LoRAs in one call, or remove() the earlier ones"
            raise UsageError("LoRAs are already on this model", f"the {part} has some", hint)


def _as_weight(weight: float | LoraWeight) -> LoraWeight:
    if not isinstance(weight, LoraWeight):
        weight = LoraWeight(weight, weight)
    for amount in (weight.unet, weight.text):
        if as_finite(amount) is None:
            why = "it must be a finite number"
            raise UsageError(f"a LoRA's weight is {amount!r:.40}", why, "1 is as it was trained")
    return weight


def _fit(
    lora: Lora,
    pipe: Model,
    names: Mapping[str, Place],
    layers: Mapping[Place, Layer],
    allow_partial: bool,
) -> tuple[dict[Place, Change], tuple[str, ...]]:
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
            why = f"{name:.120} and another name both are {place}"
            raise FileError(f"{lora.path} is not a sound LoRA", why, "take it from another source")
        else:
            changes[place] = change
    if faults or not changes or (unused and not allow_partial):
        raise _misfit(lora, pipe, len(changes), unused, faults)
    return changes, tuple(unused)


def _misfit(
    lora: Lora, pipe: Model, fitting: int, unused: list[str], faults: list[str]
) -> FileError:
    """Why a file does not fit: another family where that can be told, else what differs."""
    noted = f"; its header says {lora.base_model:.80}" if lora.base_model else ""
    widths = {name: change.inputs() for name, change in lora.changes.items()}
    model = pipe.kind.family
    if (why := made_for_another(widths, pipe)) is not None:
        hint = f"use a LoRA that was trained on {model}"
        return FileError(f"{lora.path} was made for another model", f"{why}{noted}", hint)
    why = f"{fitting} of its {len(lora.changes)} layers fit {model}"
    if unused:
        why += f"; {len(unused)} keys are unknown: {name_some(unused)}"
    if faults:
        why += f"; {len(faults)} layers have another shape: {name_some(faults, 3)}"
    hint = "use a LoRA that was trained on this kind of model"
    if fitting and not faults:
        hint += "; allow_partial=True applies what fits"
    return FileError(f"{lora.path} does not fit this model", f"{why}{noted}", hint)
