"""The items of a source, whatever its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdcore.errors import FileError, UsageError
from sdcore.training.data.folder import list_folder, read_folder
from sdcore.training.data.items import Found
from sdcore.training.data.settings import DataSettings, PriorSettings
from sdcore.training.data.subset import Subset, subset_of

HUB = "hub:"


def read_items(settings: DataSettings, cache: Path | None = None) -> Found:
    """The items of the source and of its class pictures, sorted by name.

    Nothing but captions, tables and the heads of archives is read.

    Args:
        cache: where the index of a tar is kept; None keeps none.

    Raises:
        FileError: the source is missing, damaged, or holds no picture.
        UsageError: settings that do not fit the source.
    """
    subset = subset_of(settings)
    found = _read(settings, subset, cache)
    items = tuple(sorted(found.items, key=lambda item: item.name))
    found = replace(_with_captions(replace(found, items=items), settings))
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
    return "folder"


def prior_missing(prior: PriorSettings) -> int:
    """How many class pictures have to be made before there are as many as are used."""
    folder = Path(prior.source)
    count = len(list_folder(folder, ()).pictures) if folder.is_dir() else 0
    return max(0, prior.count - count)


def _read(settings: DataSettings, subset: Subset, cache: Path | None) -> Found:
    layout = layout_of(settings)
    source = Path(settings.source)
    if layout != "hub" and not source.exists():
        raise FileError(
            f"The data {settings.source} are missing.",
            "There is no such file or folder.",
            "Check the name; a data set on the hub is named hub:owner/name.",
        )
    if layout == "folder":
        return read_folder(source, subset)
    raise UsageError(f"The layout {layout} cannot be read.", "It is not known.", "Use folder.")


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
