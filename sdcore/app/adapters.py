"""LoRAs and embeddings: which files, and how much of each, for which prompt.

Names, from a prompt or a picture, are looked for among the files of --lora and of --lora-folder; a
name is never opened as a path.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.errors import FileError, UsageError

if TYPE_CHECKING:
    from sdcore import TextToImage
    from sdcore.adapters.lora_file import Lora
    from sdcore.adapters.textual_inversion import Embedding
    from sdcore.metadata.image_settings import EmbeddingSettings, LoraSettings
    from sdcore.metadata.recipe import Recipe
    from sdcore.prompt.text import LoraTag


@dataclass(frozen=True)
class ChosenLora:
    """A LoRA file, and how much of it in the UNet and in the text encoders; None is not said."""

    path: Path
    unet: float | None = None
    text: float | None = None

    @property
    def name(self) -> str:
        return self.path.stem


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "use a LoRA; may be given several times (default: none, weight 1)"
    add("--lora", action="append", default=[], type=read_flag, metavar="FILE[:WEIGHT]", help=text)
    text = "where the LoRAs that prompts and pictures name lie (default: nowhere)"
    add("--lora-folder", type=Path, metavar="FOLDER", help=text)
    text = "learned words for prompts; may be given several times (default: none)"
    add("--embedding", action="append", default=[], type=Path, metavar="FILE", help=text)


def read_flag(text: str) -> ChosenLora:
    """FILE or FILE:WEIGHT. A colon that no number follows belongs to the file's name."""
    path, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        return ChosenLora(Path(text))
    if not path or not math.isfinite(weight):
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE or FILE:WEIGHT")
    return ChosenLora(Path(path), weight, weight)


def check_files(options: argparse.Namespace) -> None:
    """Refuse files that are not there or cannot be read. Raises FileError."""
    named = [("lora", lora.path) for lora in options.lora]
    for flag, path in (*named, *(("embedding", path) for path in options.embedding)):
        if not path.expanduser().exists():
            raise FileError(
                f"--{flag} {path} is missing.", "There is no such file.", "Check its name."
            )
    if options.lora_folder is not None and not options.lora_folder.expanduser().is_dir():
        raise FileError(
            f"--lora-folder {options.lora_folder} is no folder.",
            "LoRAs that prompts name are looked for in it.",
            "Name the folder that holds your LoRA files.",
        )
    for lora in options.lora:
        _read(lora.path)
    _read_embeddings(options)


def known_loras(options: argparse.Namespace) -> Mapping[str, Path]:
    """Every LoRA that a name may stand for. FileError where two files have one name."""
    known = {lora.name: lora.path for lora in options.lora}
    if options.lora_folder is None:
        return known
    in_folder: dict[str, Path] = {}
    for path in sorted(options.lora_folder.expanduser().rglob("*.safetensors")):
        other = in_folder.setdefault(path.stem, path)
        if other != path and path.stem not in known:
            raise FileError(
                f"Two LoRAs are called {path.stem!r}.",
                f"They are {other} and {path}.",
                "Rename one of them, or give the one that is meant with --lora.",
            )
    return in_folder | known


def choose(options: argparse.Namespace, prompt: str) -> tuple[ChosenLora, ...]:
    """The LoRAs for one prompt: those of the flags, and those that it names, which come first."""
    chosen = {lora.name: lora for lora in options.lora}
    for tag in tags_in(prompt, options.dialect):
        chosen[tag.name] = ChosenLora(find_named(options, tag.name), tag.unet, tag.text_encoder)
    weights = {lora: 1.0 if lora.unet is None else lora.unet for lora in chosen.values()}
    return tuple(
        replace(lora, unet=unet, text=unet if lora.text is None else lora.text)
        for lora, unet in weights.items()
    )


def tags_in(prompt: str, dialect: str | None) -> tuple[LoraTag, ...]:
    """The LoRAs that a prompt names. UsageError where a weight is no number."""
    from sdcore.prompt.dialects import parse_prompt

    return parse_prompt(prompt, dialect or "plain").loras


def find_named(options: argparse.Namespace, name: str) -> Path:
    """The file for a name in a prompt. UsageError, with the nearest name, where there is none."""
    known = known_loras(options)
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        where = (
            f"{options.lora_folder} holds no such file"
            if options.lora_folder
            else ("LoRAs in prompts are looked for in --lora-folder, which is not given")
        )
        raise UsageError(
            f"There is no LoRA {name!r:.80}.",
            f"The prompt names it; {where}.",
            f"Did you mean {near[0]!r}?" if near else "Give it with --lora, or its --lora-folder.",
        )
    return known[name]


def without_missing(options: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe without what is not here of its LoRAs and embeddings; its differences name it.

    A run of ours is repeated with all of them or not at all: there a missing one is a UsageError.
    """
    from sdcore.files.hashes import tensor_hash
    from sdcore.metadata.recipe import SDCORE

    known = known_loras(options)
    kept, differences, prompt = [], [], recipe.prompt
    for lora in recipe.loras:
        path = known.get(lora.name)
        if path is None and recipe.origin == SDCORE:
            find_named(options, lora.name)
        if path is None:
            differences.append(f"LoRA {lora.name!r:.80} is not here; see --lora-folder")
            prompt = re.sub(rf"<lora:{re.escape(lora.name)}(:[^<>]*)?>", "", prompt)
            continue
        kept.append(lora)
        if lora.hash and path.is_file() and not tensor_hash(path).startswith(lora.hash):
            differences.append(f"LoRA {lora.name!r:.80}: {path} is another file by its hash")
    differences += _other_embeddings(options, recipe)
    return replace(
        recipe,
        prompt=prompt,
        loras=tuple(kept),
        differences=(*recipe.differences, *differences),
    )


def _other_embeddings(options: argparse.Namespace, recipe: Recipe) -> list[str]:
    """In words, which of the picture's embeddings are not here."""
    from sdcore.files.hashes import file_hash
    from sdcore.metadata.recipe import SDCORE

    given = {path.stem: path.expanduser() for path in options.embedding}
    found = []
    for embedding in recipe.embeddings:
        path = given.get(embedding.name)
        if path is None and recipe.origin == SDCORE:
            raise UsageError(
                f"The embedding {embedding.name!r:.80} is not given.",
                "The picture was painted with it.",
                f"Add --embedding with the file {embedding.name:.80}.safetensors.",
            )
        if path is None:
            found.append(f"embedding {embedding.name!r:.80} is not here; see --embedding")
        elif path.is_file() and not file_hash(path).startswith(embedding.hash):
            found.append(f"embedding {embedding.name!r:.80}: {path} is another file by its hash")
    return found


def with_recipe(options: argparse.Namespace, recipe: Recipe) -> list[ChosenLora]:
    """The LoRAs of the flags, and the picture's; a weight that a flag gives comes first."""
    known = known_loras(options)
    chosen = {
        lora.name: ChosenLora(known[lora.name], lora.unet, lora.text) for lora in recipe.loras
    }
    for lora in options.lora:
        if lora.unet is not None or lora.name not in chosen:
            chosen[lora.name] = lora
    return list(chosen.values())


def embedded(pipe: TextToImage, options: argparse.Namespace) -> TextToImage:
    """The model with the learned words. Warns of those that no prompt says."""
    if not options.embedding:
        return pipe
    from sdcore.adapters.textual_inversion import apply_embeddings, unused_words

    read = _read_embeddings(options)
    taught = apply_embeddings(pipe, read, dialect=options.dialect or "plain")
    for word in unused_words(taught, *options.prompts, options.negative_prompt or ""):
        warnings.warn(f"no prompt says {word!r}, so its embedding has no effect", stacklevel=2)
    return taught


def applied(pipe: TextToImage, chosen: Sequence[ChosenLora]) -> TextToImage:
    """The model with the LoRAs."""
    if not chosen:
        return pipe
    from sdcore.adapters.lora import LoraWeight, apply_loras

    weights = [LoraWeight(lora.unet or 0.0, lora.text or 0.0) for lora in chosen]
    read = [_read(lora.path) for lora in chosen]
    return apply_loras(pipe, list(zip(read, weights, strict=True)))


def recorded(
    pipe: TextToImage,
) -> tuple[tuple[LoraSettings, ...], tuple[EmbeddingSettings, ...]]:
    """What is on a model, as pictures record it."""
    from sdcore.metadata.image_settings import EmbeddingSettings, LoraSettings

    loras = tuple(LoraSettings(on.name, on.unet, on.text, on.hash) for on in pipe.loras)
    return loras, tuple(EmbeddingSettings(on.name, on.hash) for on in pipe.embeddings)


def _read_embeddings(options: argparse.Namespace) -> list[Embedding]:
    from sdcore.adapters.textual_inversion import read_embedding

    return [read_embedding(path) for path in options.embedding]


@lru_cache(maxsize=32)
def _read(path: Path) -> Lora:
    """A LoRA, read once for all batches."""
    from sdcore.adapters.lora_file import read_lora

    return read_lora(path)
