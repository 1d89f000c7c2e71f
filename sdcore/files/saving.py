"""Writing a component's folder: config.json and weights, whole or in shards, all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sdcore.errors import UsageError
from sdcore.files.atomic import Write, json_writer, replace_files
from sdcore.files.layout import (
    CONFIG_NAME,
    check_variant,
    index_file_name,
    shard_file_name,
    weights_file_name,
)
from sdcore.files.weights import check_finite, tensors_writer

_NOTES = {"format": "pt"}  # transformers opens no file without it


class Saved(Protocol):
    """A network that can be written: what `sdcore.files.component.Component` is."""

    WEIGHTS_NAME: ClassVar[str]

    @property
    def config(self) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def save_component(
    module: Saved,
    folder: str | Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write a model's config.json and weights so that diffusers or transformers open the folder.

    Files of the same names are replaced, none of them before all are written and synced.

    Args:
        module: its weights and its config.
        dtype: of the weights in the file; None keeps that of each parameter.
        shard_bytes: split the weights into files of at most this many bytes and an index file.

    Raises:
        NonFiniteError: a weight is NaN or infinite, or becomes so as `dtype`.
        FileError: the disk is full, or the folder cannot be written.
    """
    check_variant(variant)
    folder = Path(folder)
    state = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in module.state_dict().items()
    }
    check_finite(state, dtype)
    config = {**module.config.to_dict()}
    writers = _weight_writers(state, module.WEIGHTS_NAME, variant, shard_bytes)
    stale = _other_weights(folder, module.WEIGHTS_NAME, variant, set(writers))
    replace_files(folder, {**writers, CONFIG_NAME: json_writer(config)})
    for path in stale:
        path.unlink()


def _weight_writers(
    state: dict[str, Tensor], name: str, variant: str | None, shard_bytes: int | None
) -> dict[str, Write]:
    """File name -> function that writes it: one file, or shards and their index."""
    shards = _split(state, shard_bytes)
    if len(shards) == 1:
        return {weights_file_name(name, variant): tensors_writer(state, _NOTES)}
    writers: dict[str, Write] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        place = f"{number:05d}-of-{len(shards):05d}"
        file_name = shard_file_name(name, variant, place)
        writers[file_name] = tensors_writer(shard, _NOTES)
        weight_map.update(dict.fromkeys(shard, file_name))
    total = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    writers[index_file_name(name, variant)] = json_writer(index)
    return writers


def _split(state: dict[str, Tensor], shard_bytes: int | None) -> list[dict[str, Tensor]]:
    """Tensors in order, a new shard begun wherever the next one would make it too large."""
    if shard_bytes is None:
        return [state]
    largest = max(value.nbytes for value in state.values())
    if shard_bytes < largest:
        why = f"The largest weight alone has {largest} bytes."
        raise UsageError(f"shard_bytes={shard_bytes} is too small.", why, f"Use {largest} or more.")
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for key, value in state.items():
        if value.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = value
        room -= value.nbytes
    return shards


def _other_weights(folder: Path, name: str, variant: str | None, keep: set[str]) -> list[Path]:
    """Weights of an earlier save that would be read in place of, or beside, the new ones."""
    if not folder.is_dir():
        return []
    shards = folder.glob(shard_file_name(name, variant, "?????-of-?????"))
    single = [folder / weights_file_name(name, variant), folder / index_file_name(name, variant)]
    return [path for path in (*single, *shards) if path.exists() and path.name not in keep]
