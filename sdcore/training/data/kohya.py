"""kohya's class folders: `NN_name class`, of which each picture is seen NN times in an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdcore.errors import FileError, name_some
from sdcore.training.data.folder import class_folders, list_folder, read_folder, shown
from sdcore.training.data.items import Found, Note
from sdcore.training.data.subset import Subset


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
