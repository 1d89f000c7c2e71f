"""Networks from files of their own: a UNet alone, another autoencoder, a text encoder.

A file may be a whole checkpoint, of which the part alone is taken; or hold the part alone, under
the names of single files (with or without the prefix that they have there) or under those of
diffusers and transformers. The settings are those of the model that it becomes part of; a folder
has its own.

`as_ldm`, `_as_vae` and `_as_text` give all of these the names of single files, in which a part
under published names keeps those behind its prefix: `first_stage_model.encoder.down_blocks.…`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sdcore.checkpoint.filling import fill
from sdcore.checkpoint.ldm_names import UNET_PREFIX, VAE_PREFIX, Entry, table, text_prefix
from sdcore.checkpoint.ldm_spellings import (
    has_published_text,
    is_leftover,
    is_told_leftover,
    plain_name,
    usual_name,
)
from sdcore.checkpoint.parts import PARTS, TEXT_ENCODERS
from sdcore.errors import FileError, UsageError, name_some
from sdcore.files.component import Component, build_without_memory, component_settings
from sdcore.files.gguf_file import open_weights
from sdcore.files.header import WeightFile
from sdcore.image.autoencoder import Autoencoder
from sdcore.text.encoder import CLIPTextEncoder

OTHERS = ("unet", "vae", "text_encoder")  # what can be named; a text encoder's width says which

_FIRST_CONV = f"{UNET_PREFIX}input_blocks.0.0.weight"
# What a UNet's family is told by, under the names of single files.
_TELLING = {
    "conv_in.weight": "input_blocks.0.0.weight",
    "add_embedding.linear_1.weight": "label_emb.0.0.weight",
    "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias": (
        "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    ),
}
_WHOLE = (UNET_PREFIX, VAE_PREFIX, "cond_stage_model.", "conditioner.")
_UNET_ALONE = ("diffusion_model.", "input_blocks.", "down_blocks.", "unet.down_blocks.")
_VAE_ALONE = ("encoder.conv_in.", "decoder.conv_in.")
_TEXT_ALONE = (
    *_WHOLE,
    *("text_encoders.", "clip_l.", "clip_g.", "clip_h.", "text_model.", "embeddings."),
    *("transformer.", "model.", "token_embedding."),
)
_TEXTS = ("cond_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.")
_COMFY_TEXTS = tuple(f"{first}clip_{kind}." for first in ("text_encoders.", "") for kind in "lgh")


class Others:
    """The parts of a model that do not come from its own file or folder.

    Args:
        given: files and folders, by the names in `OTHERS`.

    Raises:
        UsageError: another name.
    """

    def __init__(
        self,
        given: Mapping[str, Sequence[str | Path]],
        dtype: torch.dtype,
        device: torch.device,
        allow_extra: bool,
    ) -> None:
        self._paths = {part: [Path(p) for p in paths] for part, paths in given.items() if paths}
        if unknown := [name for name in self._paths if name not in OTHERS]:
            why = f"Parts from elsewhere are: {', '.join(OTHERS)}."
            raise UsageError(f"There is no part {unknown[0]!r:.80}.", why, "Use one of these.")
        self._how: dict[str, Any] = {"dtype": dtype, "device": device}
        self.allow_extra = allow_extra

    @property
    def given(self) -> frozenset[str]:
        return frozenset(self._paths)

    def name_of(self, model: str) -> str:
        """The model's name with those of the parts, as pictures note it."""
        paths = [path for part in OTHERS for path in self._paths.get(part, ())]
        return " + ".join([model, *(path.expanduser().stem for path in paths)])

    def unet_file(self) -> WeightFile | None:
        """The file of the UNet under the names of single files; None where it is no file."""
        paths = self._paths.get("unet", [])
        path = paths[0].expanduser() if paths else None
        return as_ldm(open_weights(path)) if path is not None and path.is_file() else None

    def read(
        self, settings: Mapping[str, Path], changes: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Component]:
        """The networks, by their names in the model.

        Args:
            settings: config.json of every network of the model.
            changes: settings of a part that take the place of those.

        Raises:
            FileError: a file does not hold the part, or one that does not fit.
        """
        read: dict[str, Component] = {}
        for part, paths in self._paths.items():
            for path in paths:
                found = self._networks(part, path, settings, changes)
                if twice := sorted(found.keys() & read.keys()):
                    why = f"{path} is another {twice[0]}."
                    raise UsageError(f"The {twice[0]} is given twice.", why, "Leave one out.")
                read |= found
        return read

    def _networks(
        self,
        part: str,
        path: Path,
        settings: Mapping[str, Path],
        changes: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Component]:
        if not path.expanduser().is_file():
            return self._from_folder(part, path, settings)
        file = open_weights(path.expanduser()).renamed(plain_name)
        names = list(settings)
        if part == "text_encoder":
            parts = {name: config for name, config in settings.items() if name in TEXT_ENCODERS}
            widths = {name: _text_width(config) for name, config in parts.items()}
            held = {name: _as_text(file, name, width, names) for name, width in widths.items()}
            files = {name: each for name, each in held.items() if each is not None}
            if not files:
                raise _no_text(file, widths)
        else:
            files = {part: as_ldm(file) if part == "unet" else _as_vae(file)}
        prefixes = {name: prefix_of(name, names) for name in files}
        for name, each in files.items():
            if not any(key.startswith(prefixes[name]) for key in each.shapes):
                raise _no_part(file, name)
        return {
            name: self._fill(
                name, settings[name], each, names, _fitting(name, each, changes.get(name, {}))
            )
            for name, each in files.items()
        }

    def _fill(
        self,
        part: str,
        settings: Path,
        file: WeightFile,
        parts: Sequence[str],
        changes: Mapping[str, Any],
    ) -> Component:
        model: Component = build_without_memory(PARTS[part].load_class(), settings, changes)
        models, prefix = {part: model}, prefix_of(part, parts)
        entries, file = ldm_entries(models, file.only(lambda n: n.startswith(prefix)), parts)
        fill(
            models,
            entries,
            file,
            **self._how,
            quiet=lambda name: is_leftover(name, models, parts),
            told=lambda name: is_told_leftover(name, models, parts),
            allow_extra=self.allow_extra,
        )
        return model

    def _from_folder(
        self, part: str, path: Path, settings: Mapping[str, Path]
    ) -> dict[str, Component]:
        """The networks of a folder: of one component, or of a whole model."""
        texts = [name for name in settings if name in TEXT_ENCODERS]
        names = texts if part == "text_encoder" else [part]
        inside = [name for name in names if (path.expanduser() / name).is_dir()]
        how = {**self._how, "allow_extra": self.allow_extra}
        if inside:
            found = [(name, name) for name in inside]
        elif part == "text_encoder":
            width = component_settings(CLIPTextEncoder, path).get("hidden_size")
            widths = {name: _text_width(settings[name]) for name in texts}
            fitting = [name for name, own in widths.items() if own == width]
            if not fitting:
                raise _other_width(path, [width], widths)
            found = [(fitting[0], None)]
        else:
            found = [(part, None)]
        return {
            name: PARTS[name].load_class().from_pretrained(path, subfolder=subfolder, **how)
            for name, subfolder in found
        }


def ldm_entries(
    models: Mapping[str, Component], file: WeightFile, parts: Collection[str]
) -> tuple[dict[str, list[Entry]], WeightFile]:
    """What a file of these names holds of the models, and the file with the usual names.

    Args:
        parts: all networks of the model that they are of.
    """
    names = file.shapes
    texts = [part for part in models if part in TEXT_ENCODERS]
    published = [part for part in texts if has_published_text(names, part, parts)]
    entries = table(models, parts, published)
    entries |= {part: [_as_layer(entry, names) for entry in entries[part]] for part in texts}
    if any(name.startswith(f"{UNET_PREFIX}down_blocks.") for name in names) and "unet" in models:
        entries["unet"] = [
            Entry(UNET_PREFIX + _TELLING.get(name, name), (name,))
            for name in models["unet"].state_dict()
        ]
    if any(name.startswith(f"{VAE_PREFIX}encoder.down_blocks.") for name in names):
        own = models["vae"].state_dict() if "vae" in models else ()
        entries |= {"vae": [Entry(VAE_PREFIX + name, (name,)) for name in own]} if own else {}
    return entries, file.renamed(lambda name: usual_name(name, models, parts))


def _as_layer(entry: Entry, names: Collection[str]) -> Entry:
    """OpenCLIP's projection, where a file has it as a layer: with `.weight`, and not transposed."""
    other = f"{entry.name}.weight"
    if entry.form != "transposed" or entry.name in names or other not in names:
        return entry
    return Entry(other, entry.parameters)


def prefix_of(part: str, parts: Iterable[str]) -> str:
    """What the names of a part begin with in a file of a model of these networks."""
    return {"unet": UNET_PREFIX, "vae": VAE_PREFIX}.get(part) or text_prefix(part, parts)


def as_ldm(file: WeightFile) -> WeightFile:
    """A file of a whole model, or of a UNet alone, under the names of single files."""
    file = _unwrapped(file.renamed(plain_name), (*_WHOLE, *_UNET_ALONE))
    names = list(file.shapes)
    if _begin(names, *_WHOLE):
        return file
    if _begin(names, "unet.down_blocks.") and _begin(names, "vae.", "text_encoder."):
        return file.renamed(_of_folder("text_encoder_2." in " ".join(names)))
    if _begin(names, "diffusion_model."):
        return file.renamed(lambda name: f"model.{name}")
    if _begin(names, "input_blocks.", "output_blocks."):
        return file.renamed(lambda name: UNET_PREFIX + name)
    if _begin(names, "down_blocks.") and _begin(names, "up_blocks."):
        return file.renamed(lambda name: UNET_PREFIX + _TELLING.get(name, name))
    return file


def _unwrapped(file: WeightFile, known: tuple[str, ...]) -> WeightFile:
    """A file without the word that all of its names begin with, where known names stand behind."""
    for first in _wrappings(file.shapes):
        if all(name.startswith(first) for name in file.shapes) and not _begin(file.shapes, *known):
            inside = file.renamed(lambda name, first=first: name.removeprefix(first))
            return inside if _begin(inside.shapes, *known) else file
    return file


def _wrappings(names: Iterable[str]) -> list[str]:
    """What a name begins with, word by word, the longest first."""
    words = next(iter(names), "").split(".")[:4]
    return [".".join(words[:count]) + "." for count in range(len(words) - 1, 0, -1)]


def _of_folder(second: bool) -> Callable[[str], str]:
    """The names of single files for those of a folder's parts in one file.

    Args:
        second: there is a second text encoder.
    """
    parts = ("text_encoder", "text_encoder_2") if second else ("text_encoder",)
    texts = {f"{part}.": f"{text_prefix(part, parts)}transformer." for part in parts}

    def rename(name: str) -> str:
        first, _, rest = name.partition(".")
        if first == "unet":
            return UNET_PREFIX + _TELLING.get(rest, rest)
        if first == "vae":
            return VAE_PREFIX + Autoencoder.published_name(rest)
        prefix = texts.get(f"{first}.")
        return name if prefix is None else prefix + rest

    return rename


def _as_vae(file: WeightFile) -> WeightFile:
    file = _unwrapped(file, (*_WHOLE, *_VAE_ALONE))
    names = list(file.shapes)
    if _begin(names, *_WHOLE):
        return file
    if _begin(names, "encoder.down_blocks.", "decoder.up_blocks."):
        return file.renamed(lambda name: VAE_PREFIX + Autoencoder.published_name(name))
    if _begin(names, "encoder.down.", "decoder.up."):
        return file.renamed(lambda name: VAE_PREFIX + name)
    return file


def _as_text(
    file: WeightFile, part: str, width: int | None, parts: Collection[str]
) -> WeightFile | None:
    """The text encoder of this width in a file, under the names that this part has."""
    ours = text_prefix(part, parts)
    file = _unwrapped(file, _TEXT_ALONE)
    names = list(file.shapes)
    for first in (*_TEXTS, *_COMFY_TEXTS, ""):
        own = [name for name in names if name.startswith(first)]
        tables = [name for name in own if name.endswith("token_embedding.weight")]
        if not own or not tables or file.shapes[tables[0]][-1:] != (width,):
            continue
        inside = [name.removeprefix(first) for name in own]
        between = ""
        if not _begin(inside, "transformer.text_model.", "model.", "transformer.embeddings."):
            between = "model." if _begin(inside, "transformer.resblocks.") else "transformer."
        new = {name: ours + between + name.removeprefix(first) for name in own}
        return file.only(new.__contains__).renamed(new.__getitem__)
    return None


def _begin(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _fitting(part: str, file: WeightFile, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the file of a UNet knows better: how many channels it reads."""
    shape = file.shapes.get(_FIRST_CONV, ())
    channels = {"in_channels": shape[1]} if part == "unet" and len(shape) == 4 else {}
    return {**changes, **channels}


def _text_width(settings: Path) -> int | None:
    return build_without_memory(CLIPTextEncoder, settings).config.hidden_size


def _no_part(file: WeightFile, part: str) -> FileError:
    from sdcore.checkpoint.families import describe

    why = f"It holds {describe(file)}; its tensors: {name_some(list(file.shapes), 3)}."
    return FileError(f"{file.path} holds no {part}.", why, f"Name the file of a {part}.")


def _no_text(file: WeightFile, widths: Mapping[str, int | None]) -> FileError:
    tables = [name for name in file.shapes if name.endswith("token_embedding.weight")]
    if not tables:
        return _no_part(file, "text_encoder")
    return _other_width(file.path, [file.shapes[name][-1] for name in tables], widths)


def _other_width(
    path: Path, found: Sequence[object], widths: Mapping[str, int | None]
) -> FileError:
    here = " and ".join(f"{name} {width}" for name, width in widths.items())
    return FileError(
        f"{path} holds a text encoder of another model.",
        f"It is {', '.join(map(str, found))} wide; this model has {here}.",
        "Use a text encoder of this family of models.",
    )
