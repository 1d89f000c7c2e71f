"""The items of a source, whatever its layout."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

from sdcore.errors import FileError, name_some
from sdcore.training.data.folder import class_folders, list_folder, read_folder, suffix
from sdcore.training.data.hub import HUB, read_hub
from sdcore.training.data.items import Found
from sdcore.training.data.kohya import read_class_folders
from sdcore.training.data.kohya_toml import read_toml
from sdcore.training.data.metadata import metadata_file, read_metadata
from sdcore.training.data.settings import DataSettings, PriorSettings
from sdcore.training.data.subset import Subset, subset_of
from sdcore.training.data.tables import read_parquet
from sdcore.training.data.tars import is_packed, read_tars


def read_items(settings: DataSettings, cache: Path | None = None) -> Found:
    """The items of the source and of its class pictures, sorted by name.

    Nothing but captions, tables and the heads of archives is read.

    Args:
        cache: where the index of a tar is kept; None is that of the settings, or none.

    Raises:
        FileError: the source is missing, damaged, or holds no picture.
        UsageError: settings that do not fit the source.
    """
    subset = subset_of(settings)
    if cache is None and settings.cache:
        cache = Path(settings.cache)
    found = _read(settings, subset, cache)
    if not found.items and not found.faults:
        raise FileError(
            f"{settings.source} holds no picture.",
            f"{_what_else(found)}.",
            "Name a source with PNG, JPEG, WebP, BMP or AVIF pictures.",
        )
    items = tuple(sorted(found.items, key=lambda item: item.name))
    found = _with_captions(replace(found, items=items), settings)
    if settings.prior is not None:
        found = found + _prior_items(settings.prior, subset)
    return found


def _what_else(found: Found) -> str:
    names = [note.name for note in found.notes if note.kind == "text without picture"]
    return f"It holds: {name_some(names, 10)}" if names else "It is empty"


def layout_of(settings: DataSettings) -> str:
    """The layout of a source: the one that is set, or what its name and content say.

    Raises:
        FileError: the source is missing.
    """
    if settings.layout != "auto":
        return settings.layout
    if settings.source.startswith(HUB):
        return "hub"
    source = _there(settings)
    if source.is_file():
        kinds = {".toml": "toml", ".parquet": "parquet", ".tar": "webdataset"}
        if source.suffix.lower() in kinds:
            return kinds[source.suffix.lower()]
        if is_packed(source):
            return "webdataset"
        raise FileError(
            f"{source} is no set of pictures.",
            "It is a file, and none that ends in .toml, .parquet or .tar.",
            "Name the folder in which the pictures lie.",
        )
    return _layout_of_folder(source, settings)


def _layout_of_folder(source: Path, settings: DataSettings) -> str:
    listing = list_folder(source, settings.caption_extensions)
    if metadata_file(source) is not None:
        return "metadata"
    if listing.pictures:
        return "folder"
    if any(suffix(name) == "parquet" for name in listing.others):
        return "parquet"
    if any(suffix(name) in ("tar", "tgz") or ".tar." in name for name in listing.others):
        return "webdataset"
    return "kohya" if class_folders(source) else "folder"


def _there(settings: DataSettings) -> Path:
    source = Path(settings.source)
    if "://" in settings.source:
        what, why = f"The data {settings.source:.200} are not here.", "It is an address."
        raise FileError(what, why, "Download them; a data set on the hub is named hub:owner/name.")
    if not os.path.exists(source):  # which holds for every name, also one that no file can have
        raise FileError(
            f"The data {settings.source:.200} are missing.",
            "There is a link, to nothing that is there."
            if os.path.islink(source)
            else "There is no such file or folder.",
            "Check the name; a data set on the hub is named hub:owner/name.",
        )
    if not (os.path.isfile(source) or os.path.isdir(source)):
        why = "It is a pipe or a device."
        raise FileError(f"{source} is no set of pictures.", why, "Name a folder or a file.")
    return source


def prior_missing(prior: PriorSettings) -> int:
    """How many class pictures have to be made before there are as many as are used."""
    folder = Path(prior.source)
    count = len(list_folder(folder, ()).pictures) if folder.is_dir() else 0
    return max(0, prior.count - count)


def _read(settings: DataSettings, subset: Subset, cache: Path | None) -> Found:
    layout = layout_of(settings)
    if layout == "hub":
        return read_hub(settings.source, settings, subset)
    source = _there(settings)
    if layout == "toml" and source.is_dir():
        raise FileError(f"{source} is a folder.", "The layout is toml.", "Name the .toml file.")
    if layout in ("folder", "kohya", "metadata") and not source.is_dir():
        why = f"The layout {layout} is one of folders."
        raise FileError(f"{source} is a file.", why, "Name the folder, or leave data.layout out.")
    if layout == "folder":
        return read_folder(source, subset)
    if layout == "kohya":
        return read_class_folders(source, subset)
    if layout == "metadata":
        return read_metadata(source, settings, subset)
    if layout == "toml":
        return read_toml(source, subset)
    if layout == "parquet":
        return read_parquet(source, settings, subset)
    return read_tars(source, settings, subset, cache)


def _prior_items(prior: PriorSettings, subset: Subset) -> Found:
    folder = Path(prior.source)
    name = f"{folder.name}/"
    own = replace(subset.options, trigger="", prefix="", suffix="", shuffle_tags=False)
    look = replace(subset.look, alpha_mask=False)
    prior_subset = replace(
        subset,
        options=own,
        look=look,
        prior=True,
        captions="none",
        fallback=prior.prompt,
        masks=None,
        prefix=name,
        repeats=1,
        extensions=(),
    )
    found = read_folder(folder, prior_subset)
    return replace(found, items=found.items[: prior.count], notes=())


def _with_captions(found: Found, settings: DataSettings) -> Found:
    """Refuse a source in which no picture has a caption, unless that is what was asked for."""
    own = [item for item in found.items if not item.prior]
    if settings.captions in ("none", "name") or settings.trigger or settings.prefix or not own:
        return found
    if any(item.caption is not None for item in own) or found.faults:
        return found
    near = (note.reason for note in found.notes if note.kind == "caption nearly named")
    nearly = "".join(f"; {reason.rstrip('.')}" for reason in islice(near, 1))
    raise FileError(
        f"No picture of {settings.source} has a caption.",
        f"There are {len(own)} pictures, and no text file of the name of any{nearly}.",
        "Write a .txt file for each, or set data.captions to name (that of the file) or none, "
        "or data.trigger to a word that stands for what they show.",
    )
