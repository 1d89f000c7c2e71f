"""The names of files in diffusers' folder layout: weights, variants, shards, settings.

Only names are looked at here, so the same rules hold for a folder on disk and a listing of the hub.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any

from sdcore.errors import FileError, UsageError, name_some
from sdcore.files.jsonfile import is_object

CONFIG_NAME = "config.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def weights_file_name(name: str, variant: str | None) -> str:
    """`model` and `fp16` to `model.fp16.safetensors`, diffusers' spelling."""
    return f"{name}.{variant}.safetensors" if variant else f"{name}.safetensors"


def shard_file_name(name: str, variant: str | None, place: str) -> str:
    """`model`, `fp16` and `00001-of-00002` to `model.fp16-00001-of-00002.safetensors`."""
    return f"{name}.{variant}-{place}.safetensors" if variant else f"{name}-{place}.safetensors"


def index_file_name(name: str, variant: str | None) -> str:
    """`model` and `fp16` to `model.safetensors.index.fp16.json`, diffusers' spelling."""
    return (
        f"{name}.safetensors.index.{variant}.json" if variant else f"{name}.safetensors.index.json"
    )


def check_variant(variant: str | None) -> None:
    """Refuse a variant that is no plain word: it becomes part of a file name."""
    word = isinstance(variant, str) and variant.isidentifier()  # pyright: ignore[reportUnnecessaryIsInstance]
    if variant is not None and not word:
        raise UsageError(
            f"The variant {variant!r:.80} cannot be used.",
            "A variant is the word in a weight file's name, as in model.fp16.safetensors.",
            "Use fp16, or leave it out.",
        )


def choose_weights(files: Collection[str], name: str, variant: str | None) -> str | None:
    """Which of a component's files is opened: the whole weights, else the index of its shards.

    Args:
        files: the names in the component's folder.
        name: of the weights, such as `model`.
    """
    check_variant(variant)
    candidates = (weights_file_name(name, variant), index_file_name(name, variant))
    return next((file for file in candidates if file in files), None)


def variants(files: Collection[str], name: str) -> list[str]:
    """The variants that a component's weights come in, such as fp16; not the plain ones."""
    one_file = re.compile(rf"{re.escape(name)}\.([^\W\d]\w*)\.safetensors")
    index = re.compile(rf"{re.escape(name)}\.safetensors\.index\.([^\W\d]\w*)\.json")
    matches = (one_file.fullmatch(file) or index.fullmatch(file) for file in files)
    return sorted({match[1] for match in matches if match})


def why_no_weights(files: Collection[str], name: str, variant: str | None) -> tuple[str, str]:
    """The file that `choose_weights` looked for, and what can be done about it."""
    missing = weights_file_name(name, variant)
    there = variants(files, name)
    pickles = sorted(file for file in files if PurePosixPath(file).suffix in PICKLE_SUFFIXES)
    if choose_weights(files, name, None):
        return missing, "Leave the variant out: the plain weights are there."
    if there:
        return missing, f"Choose a variant that is there: {name_some(there)}."
    if pickles:
        return missing, f"Convert {pickles[0]}, a pickle file, with `sdcore convert`."
    return missing, "Check the folder, or download the model again."


def shards_in_index(content: dict[str, Any], index: str) -> list[str]:
    """The shards that an index file names, each once.

    Args:
        content: of the index file.
        index: its path, for errors.

    Raises:
        FileError: it has none, or one that is not a file beside it.
    """
    weight_map = content.get("weight_map")
    if not is_object(weight_map) or not weight_map:
        raise bad_index(index, "It has no weight_map.")
    names = weight_map.values()
    for name in names:
        plain = isinstance(name, str) and PurePosixPath(name).name == name and "\\" not in name
        if not plain:
            raise bad_index(index, f"{name!r:.120} is not the name of a file in its folder.")
    return sorted(set(names))


def bad_index(index: str, why: str) -> FileError:
    return FileError(f"{index} does not describe its shards.", why, "Download the model again.")
