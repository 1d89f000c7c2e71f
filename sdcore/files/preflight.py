"""Which files a model needs, and which of them are not there, before one of them is read.

The same rules for a folder on disk and a name on the hub: a model is read from `ModelFiles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sdcore.errors import FileError, name_some, warn
from sdcore.files.layout import (
    check_variant,
    choose_weights,
    shards_in_index,
    variants,
    weights_file_name,
    why_no_weights,
)

TOKENIZER, SCHEDULER = "tokenizer", "scheduler"
MODEL_INDEX = "model_index.json"
_EXTRAS = {
    "": ("sampling.json", "words.json"),
    TOKENIZER: ("special_tokens_map.json", "added_tokens.json"),
}


class ModelFiles(Protocol):
    """Where a model's files are: a folder on disk, or a name on the hub."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def listing(self, folder: str) -> dict[str, int]:
        """The files directly in a folder of the model ("" is its own): name -> bytes."""
        ...

    def settings(self, path: str) -> dict[str, Any]:
        """The content of a JSON file of the model."""
        ...

    def fetch(self, paths: Iterable[str]) -> Path:
        """The folder on disk in which all these files are, once they are there."""
        ...


@dataclass(frozen=True)
class Preflight:
    """What will be read.

    files:    path in the model -> bytes.
    variants: component -> the variant in which its weights are read.
    """

    files: dict[str, int]
    variants: dict[str, str | None]


def preflight(source: ModelFiles, parts: Mapping[str, str], variant: str | None) -> Preflight:
    """Check that everything is there that the parts of a model need.

    A part that does not come in the variant is read plain, with a warning, as in diffusers.

    Args:
        parts: folder in the model ("" is its own) -> TOKENIZER, SCHEDULER, or the name of a
            network's weights, such as `model`.

    Raises:
        FileError: names every file that is missing, or no part comes in the variant.
    """
    chosen = _choose_variants(source, parts, variant)
    files = _there(source, "", (MODEL_INDEX, *_EXTRAS[""]))
    missing: list[str] = []
    hints: list[str] = []
    for folder, kind in parts.items():
        there = source.listing(folder)
        for name, hint in _needed(source, folder, kind, chosen[folder]):
            if name in there:
                files[_join(folder, name)] = there[name]
            else:
                missing.append(_join(folder, name))
                hints.append(hint)
        files |= _there(source, folder, _EXTRAS.get(kind, ()))
    if missing:
        what = "a file" if len(missing) == 1 else f"{len(missing)} files"
        holds = ", ".join(f"{path or 'it'} holds {_contents(source, path)}" for path in parts)
        why = name_some(missing, limit=30) if len(parts) > 1 else f"{missing[0]}; {holds}"
        raise FileError(f"{source.name} lacks {what}.", f"Missing: {why}.", hints[0])
    return Preflight(files, chosen)


def _choose_variants(
    source: ModelFiles, parts: Mapping[str, str], variant: str | None
) -> dict[str, str | None]:
    """The variant for each part: the one asked for, or None for a part that has plain weights only.

    Raises:
        FileError: no part comes in the variant.
    """
    check_variant(variant)
    chosen = dict.fromkeys(parts, variant)
    if variant is None:
        return chosen
    networks = [folder for folder, kind in parts.items() if kind not in (TOKENIZER, SCHEDULER)]
    listings = {folder: source.listing(folder) for folder in networks}
    plain = [f for f in networks if not choose_weights(listings[f], parts[f], variant)]
    if plain and len(plain) == len(networks):
        others = sorted({v for f in networks for v in variants(listings[f], parts[f])})
        raise FileError(
            f"{source.name} has no weights of the variant {variant!r}.",
            f"It comes in: {', '.join(['plain', *others])}.",
            "Leave the variant out, or choose one that is there.",
        )
    for folder in plain:
        name = choose_weights(listings[folder], parts[folder], None)
        if name is not None:
            chosen[folder] = None
            warn(f"{source.name}: the {folder} does not come as {variant}; {name} is read")
    return chosen


def _needed(
    source: ModelFiles, folder: str, kind: str, variant: str | None
) -> Iterator[tuple[str, str]]:
    """Names of the files that a part needs, each with what to do where it is missing."""
    again = "Download the model again, or take it from where it is whole."
    there = source.listing(folder)
    if kind == SCHEDULER:
        yield "scheduler_config.json", again
    elif kind == TOKENIZER:
        yield "tokenizer_config.json", again
        in_one_file = "tokenizer.json" in there
        yield from ((name, again) for name in ("tokenizer.json",) * in_one_file or _VOCABULARY)
    else:
        yield "config.json", again
        chosen = choose_weights(there, kind, variant)
        if chosen is None:
            yield why_no_weights(there, kind, variant)
        else:
            yield chosen, again
            if chosen != weights_file_name(kind, variant):
                path = _join(folder, chosen)
                shards = shards_in_index(source.settings(path), f"{source.name}/{path}")
                yield from ((name, again) for name in shards)


_VOCABULARY = ("vocab.json", "merges.txt")


def _there(source: ModelFiles, folder: str, names: Iterable[str]) -> dict[str, int]:
    listing = source.listing(folder)
    return {_join(folder, name): listing[name] for name in names if name in listing}


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _contents(source: ModelFiles, folder: str) -> str:
    return name_some(sorted(source.listing(folder)), limit=10) or "nothing"
