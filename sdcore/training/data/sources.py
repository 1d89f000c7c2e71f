"""The items of a source, whatever its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdcore.errors import FileError
from sdcore.training.data.folder import list_folder, read_folder, suffix
from sdcore.training.data.hub import HUB, read_hub
from sdcore.training.data.items import Found
from sdcore.training.data.kohya import class_folders, read_class_folders
from sdcore.training.data.kohya_toml import read_toml
from sdcore.training.data.metadata import metadata_file, read_metadata
from sdcore.training.data.settings import DataSettings, PriorSettings
from sdcore.training.data.subset import Subset, subset_of
from sdcore.training.data.tables import read_parquet
from sdcore.training.data.tars import read_tars


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
    items = tuple(sorted(found.items, key=lambda item: item.name))
    found = _with_captions(replace(found, items=items), settings)
    if settings.prior is not None:
        found = found + _prior_items(settings.prior, subset)
    return found


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
        raise FileError(
            f"{source} is no set of pictures.",
            "It is a file, and none that ends in .toml, .parquet or .tar.",
            "Name the folder in which the pictures lie.",
        )
    return _layout_of_folder(source, settings)


def _layout_of_folder(source: Path, settings: DataSettings) -> str:
    if metadata_file(source) is not None:
        return "metadata"
    listing = list_folder(source, settings.caption_extensions)
    if listing.pictures:
        return "folder"
    if any(suffix(name) == "parquet" for name in listing.others):
        return "parquet"
    if any(suffix(name) in ("tar", "tgz") or ".tar." in name for name in listing.others):
        return "webdataset"
    return "kohya" if class_folders(source) else "folder"


def _there(settings: DataSettings) -> Path:
    source = Path(settings.source)
    if not source.exists():
        raise FileError(
            f"The data {settings.source} are missing.",
            "There is no such file or folder.",
            "Check the name; a data set on the hub is named hub:owner/name.",
        )
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
    raise FileError(
        f"No picture of {settings.source} has a caption.",
        f"There are {len(own)} pictures, and no text file of the name of any.",
        "Write a .txt file for each, or set data.captions to name (that of the file) or none, "
        "or data.trigger to a word that stands for what they show.",
    )
