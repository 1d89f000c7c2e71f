"""kohya's class folders: `NN_name class`, of which each picture is seen NN times in an epoch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sdcore.errors import FileError, name_some
from sdcore.training.data.folder import list_folder, read_folder, shown
from sdcore.training.data.items import Found, Note
from sdcore.training.data.subset import Subset

_NAME = re.compile(r"(\d{1,6})_(.*)", re.DOTALL)


def class_folders(folder: Path) -> list[tuple[Path, int, str]]:
    """(folder, repeats, name and class) of each folder below that is named so."""
    found: list[tuple[Path, int, str]] = []
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir() and int(match[1]):
            found.append((path, int(match[1]), match[2].strip()))
    return found


def read_class_folders(folder: Path, subset: Subset) -> Found:
    """The items of all class folders; where a picture has no text file, its class is its caption.

    Raises:
        FileError: no such folder, or none with a picture.
    """
    folders = class_folders(folder)
    found = Found()
    empty: list[Note] = []
    for path, repeats, name in folders:
        if not list_folder(path, subset.extensions).pictures:
            empty.append(Note(shown(path.name), "empty folder", "It holds no picture."))
            continue
        its = replace(
            subset,
            repeats=subset.repeats * repeats,
            fallback=shown(name) or None,
            prefix=f"{subset.prefix}{shown(path.name)}/",
        )
        found = found + read_folder(path, its)
    if not found.items:
        raise FileError(
            f"{folder} holds no class folder with pictures.",
            "Such a folder is named by a number, an underscore, and the class, as 10_sks dog.",
            "Rename the folders, or set data.layout to folder.",
        )
    listing = list_folder(folder, subset.extensions)
    if listing.pictures:
        text = f"Pictures beside the class folders are not used: {name_some(listing.pictures)}."
        empty.append(Note("The folder", "not listed", text))
    others = [name for name in listing.folders if name not in {path.name for path, *_ in folders}]
    if subset.masks is not None:
        others = [n for n in others if (folder / n).resolve() != subset.masks.resolve()]
    if others:
        text = f"Folders that are not named as a class are not read: {name_some(others)}."
        empty.append(Note("The folder", "folders", text))
    return replace(found, notes=(*found.notes, *empty))
