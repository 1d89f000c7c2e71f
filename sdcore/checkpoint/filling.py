"""Networks given the weights of a file: every tensor is used, known to be needless, or an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdcore.checkpoint.ldm_names import Entry
from sdcore.errors import FileError, name_some, warn
from sdcore.files.component import Component, fault_of_integers, list_faults
from sdcore.files.header import WeightFile
from sdcore.files.weights import read_tensors

Entries = Mapping[str, list[Entry]]  # part of a model -> what a file holds of it


def fill(
    models: Mapping[str, Component],
    entries: Entries,
    file: WeightFile,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quiet: Callable[[str], bool],
    told: Callable[[str], bool],
    allow_extra: bool,
) -> None:
    """Give the models the file's weights, one model after the other, in eval mode.

    Args:
        file: with the names that `entries` has.
        quiet, told: whether a tensor that is in no entry is known to be of no use; what is `told`
            is named in a warning.
        allow_extra: leave out also what is not known, with a warning.

    Raises:
        FileError: a tensor is missing, unknown, of another shape, of whole numbers, or not finite.
    """
    used = {entry.name for own in entries.values() for entry in own}
    file = file.only(lambda name: name in used or not quiet(name))
    expected = _expected(models, entries)
    file = _checked(expected, entries, file, told, allow_extra)
    for part, model in models.items():
        names = {entry.name for entry in entries[part]}
        tensors = read_tensors(file.only(names.__contains__), device, dtype)
        parameters = model.state_dict()
        state: dict[str, Tensor] = {}
        for entry in entries[part]:
            values = entry.from_file(tensors.pop(entry.name).reshape(expected[entry.name]))
            for name, value in zip(entry.parameters, values, strict=True):
                state[name] = value.reshape(parameters[name].shape)
        model.load_state_dict(state, assign=True)
        model.eval()


def _expected(models: Mapping[str, Component], entries: Entries) -> dict[str, tuple[int, ...]]:
    """The shapes that a file's tensors have."""
    expected: dict[str, tuple[int, ...]] = {}
    for part, model in models.items():
        parameters: dict[str, Any] = model.state_dict()
        for entry in entries[part]:
            whole = entry.to_file([parameters[name] for name in entry.parameters])
            expected[entry.name] = tuple(whole.shape)
    return expected


def _checked(
    expected: Mapping[str, tuple[int, ...]],
    entries: Entries,
    file: WeightFile,
    told: Callable[[str], bool],
    allow_extra: bool,
) -> WeightFile:
    """The file without what is left out, after checking that all names and shapes fit."""
    left = [name for name in file.shapes if name not in expected and told(name)]
    file = file.only(lambda name: name not in left)
    integers = [name for name in expected if name in file.integers]
    if integers:
        raise fault_of_integers(file, integers)
    found = {
        name: expected[name] if same_numbers(shape, expected.get(name, ())) else shape
        for name, shape in file.shapes.items()
    }
    unknown = [name for name in found if name not in expected]
    wanted = {name: shape for name, shape in found.items() if name in expected}
    faults = list_faults(expected, wanted if allow_extra else found)
    if faults:
        hint = "Give the settings of a changed network too: a diffusers folder, as its config."
        lacking = _lacking_part(entries, found)
        if lacking is not None and [fault.split(" ")[1] for fault in faults] == ["missing:"]:
            hint = f"Take this part from another file or folder: {lacking}=PATH."
        if not list_faults(expected, wanted):
            hint = "If you know that it is of no use, leave it out: allow_extra=True."
        what = f"{file.path} does not fit the model that it seems to be."
        raise FileError(what, f"{'; '.join(faults)}.", hint)
    for names, why in ((left, "no picture depends on"), (unknown, "are in none of its networks")):
        if names:
            said = f"({len(names)}): {name_some(names)}"
            warn(f"{file.path.name}: tensors that {why} are left out {said}")
    return file.only(expected.__contains__)


def same_numbers(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether tensors of these shapes are the same matrix, one of them as a 1x1 convolution."""
    return {len(shape), len(expected)} == {2, 4} and (
        (*shape, 1, 1) == expected or (*expected, 1, 1) == shape
    )


def _lacking_part(entries: Entries, found: Mapping[str, object]) -> str | None:
    """The one of several parts that is not whole, by the name under which it may be given."""
    parts = [part for part, own in entries.items() if any(e.name not in found for e in own)]
    if len(parts) != 1 or len(entries) == 1:
        return None
    return parts[0].removesuffix("_2")
