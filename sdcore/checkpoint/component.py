"""A model from a diffusers component folder (config.json and safetensors) and back, strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdcore.checkpoint.folder import component_folder, refuse_custom_code
from sdcore.checkpoint.jsonfile import name_some, read_json
from sdcore.checkpoint.publish import publish
from sdcore.checkpoint.weights import (
    WeightFile,
    check_variant,
    find_weights,
    index_file_name,
    is_finite,
    read_tensors,
    weights_file_name,
)
from sdcore.errors import FileError, NonFiniteError, UsageError

CONFIG_NAME = "config.json"


class Component(nn.Module):
    """A network that diffusers or transformers keep in a folder of its own.

    `Config` has `from_dict` (refuses by name what it does not know) and `to_dict`; the instance has
    its config at `.config`. A class may also have `published_name(key) -> str | None`, which says
    what the parameter is called here that a file calls `key`; None leaves out a key that holds no
    weights.
    """

    Config: ClassVar[Any]
    WEIGHTS_NAME: ClassVar[str]
    config: Any

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        variant: str | None = None,
    ) -> Self:
        """The network of a diffusers folder; every key and shape must fit, see load_component."""
        return load_component(
            cls, folder, subfolder=subfolder, dtype=dtype, device=device, variant=variant
        )

    def save_pretrained(
        self, folder: str | Path, *, variant: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write config.json and weights that diffusers or transformers open, see save_component."""
        save_component(self, folder, variant=variant, dtype=dtype)


ModelT = TypeVar("ModelT", bound=Component)


def load_component(
    cls: type[ModelT],
    folder: str | Path,
    *,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> ModelT:
    """A model with the weights of a folder, in eval mode.

    Args:
        cls: a `Component`, such as UNet or CLIPTextEncoder.
        folder: a local folder, or a hub name such as `owner/model`.
        subfolder: the component's folder inside it, such as `unet`.
        dtype: of the weights in memory, whatever the file has; None is torch.float32.
        variant: word in the weight file's name: `fp16` reads `*.fp16.safetensors`.

    Raises:
        FileError: a file is missing, damaged or not what its name says, the configuration is not
            one of this class, or a weight is missing, unknown or of another shape.
        UsageError: an argument that cannot be used.
    """
    check_variant(variant)
    dtype, device = _check_placement(dtype or torch.float32, device)
    folder = component_folder(folder, subfolder)
    model = build_without_memory(cls, folder / CONFIG_NAME)
    files = find_weights(folder, cls.WEIGHTS_NAME, variant)
    names = _match_names(cls, files, model)
    state: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in read_tensors(file, device, dtype).items():
            if (name := names[key]) is not None:
                state[name] = tensor
    model.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def save_component(
    module: Component,
    folder: str | Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write a model's config.json and weights so that diffusers or transformers open the folder.

    Files of the same names are replaced, none of them before all are written and synced.

    Args:
        module: any `Component`.
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
    broken = [key for key, value in state.items() if not is_finite(value)]
    if broken:
        why = f"NaN or infinity, at least as {dtype or 'it is'}, in {name_some(broken)}"
        raise NonFiniteError("saving weights", why, "keep the last good checkpoint; use bfloat16")
    config = {**module.config.to_dict()}
    writers = _weight_writers(state, module.WEIGHTS_NAME, variant, shard_bytes)
    stale = _other_weights(folder, module.WEIGHTS_NAME, variant, set(writers))
    publish(folder, {**writers, CONFIG_NAME: partial(_write_json, config)})
    for path in stale:
        path.unlink()


def _check_placement(
    dtype: torch.dtype, device: str | torch.device
) -> tuple[torch.dtype, torch.device]:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        hint = "use torch.float32, torch.bfloat16 or torch.float16"
        raise UsageError(f"dtype={dtype} cannot be used", "weights are real numbers", hint)
    try:
        return dtype, torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).splitlines()[0].split(". ")[0]  # the rest lists torch's own backends
        raise UsageError(f"device={device!r} cannot be used", why, 'use device="cpu"') from error


def build_without_memory(
    cls: type[ModelT], path: Path, changes: Mapping[str, Any] | None = None
) -> ModelT:
    """The model that a config.json describes, on the meta device: structure and shapes alone.

    Args:
        changes: settings that take the place of those in the file.

    Raises:
        FileError: the file is missing or damaged, or describes no model of this class.
    """
    settings = {**read_json(path), **(changes or {})}
    refuse_custom_code(settings, path)
    try:
        config = cls.Config.from_dict(settings)
        with torch.device("meta"):
            return cls(config)
    except UsageError as error:
        raise FileError(f"{path}: {error.what}", error.why, error.hint) from error
    except (TypeError, ValueError, LookupError, ArithmeticError, AssertionError) as error:
        why = f"no {cls.__name__} can be built from it ({error!r:.200})"
        raise FileError(f"{path} cannot be used", why, "restore the original file") from error


def _match_names(
    cls: type[nn.Module], files: list[WeightFile], model: nn.Module
) -> dict[str, str | None]:
    """File key -> parameter name, after checking that names and shapes agree exactly."""
    published: Callable[[str], str | None] = getattr(cls, "published_name", lambda key: key)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names: dict[str, str | None] = {}
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for key, shape in file.shapes.items():
            name = published(key)
            if key in names or name in found:
                hint = "download or convert the model again"
                raise FileError(
                    f"{file.path}: {key:.120} comes twice", "two tensors, one name", hint
                )
            names[key] = name
            if name is not None and key in file.integers:
                why = "weights are real numbers"
                raise FileError(f"{file.path}: {key:.120} holds whole numbers", why, "convert it")
            if name is not None:
                found[name] = shape
    faults = list_faults(expected, found)
    if faults:
        raise FileError(
            f"{files[0].path if len(files) == 1 else files[0].path.parent}: "
            f"the weights do not fit this {cls.__name__}",
            "; ".join(faults),
            "check that config.json and the weights belong to the same model",
        )
    return names


def list_faults(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What keeps the weights `found` (name -> shape) from being exactly those expected."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "wrong shape": shapes}
    return [f"{len(names)} {kind}: {name_some(names)}" for kind, names in kinds.items() if names]


def _weight_writers(
    state: dict[str, Tensor], name: str, variant: str | None, shard_bytes: int | None
) -> dict[str, Callable[[Path], None]]:
    """File name -> function that writes it: one file, or shards and their index."""
    shards = _split(state, shard_bytes)
    if len(shards) == 1:
        return {weights_file_name(name, variant): partial(_write_tensors, state)}
    writers: dict[str, Callable[[Path], None]] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        shard_name = f"{name}-{number:05d}-of-{len(shards):05d}"
        file_name = weights_file_name(shard_name, variant)
        writers[file_name] = partial(_write_tensors, shard)
        weight_map.update(dict.fromkeys(shard, file_name))
    total = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    writers[index_file_name(name, variant)] = partial(_write_json, index)
    return writers


def _split(state: dict[str, Tensor], shard_bytes: int | None) -> list[dict[str, Tensor]]:
    """Tensors in order, a new shard begun wherever the next one would make it too large."""
    if shard_bytes is None:
        return [state]
    largest = max(value.nbytes for value in state.values())
    if shard_bytes < largest:
        why = f"the largest weight alone has {largest} bytes"
        raise UsageError(f"shard_bytes={shard_bytes} is too small", why, f"use {largest} or more")
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
    shards = folder.glob(weights_file_name(f"{name}-?????-of-?????", variant))
    single = [folder / weights_file_name(name, variant), folder / index_file_name(name, variant)]
    return [path for path in (*single, *shards) if path.exists() and path.name not in keep]


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
