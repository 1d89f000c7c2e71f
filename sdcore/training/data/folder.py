"""Folders of pictures with a text file each, of the same name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdcore.errors import FileError, name_some
from sdcore.files.opening import open_file
from sdcore.training.data.content import picture_format
from sdcore.training.data.items import Blob, Fault, FileBlob, Found, Item, Note
from sdcore.training.data.settings import ENDINGS
from sdcore.training.data.subset import Subset
from sdcore.training.data.texts import read_caption, tidy

# Also pictures, but none that is read: named one by one, as somebody meant them to be used.
_FOREIGN = {
    "gif",
    "tif",
    "tiff",
    "heic",
    "heif",
    "psd",
    "jxl",
    "jp2",
    "tga",
    "svg",
    "exr",
    "raw",
} | {
    *("cr2", "cr3", "nef", "arw", "dng"),
}
_CLASS = re.compile(r"(\d{1,6})_(.*)", re.DOTALL)  # NN_name class
_NUMBER = re.compile(r"(?<=[^\W\d_])[\s_-]*\(?\d+\)?$")


@dataclass(frozen=True)
class Listing:
    """The names in a folder, sorted; hidden ones are left out."""

    folder: Path
    pictures: tuple[str, ...]
    texts: tuple[str, ...]
    others: tuple[str, ...]
    folders: tuple[str, ...]


def entries_of(folder: Path) -> list[Path]:
    """All that lies in a folder itself, sorted by name.

    Raises:
        FileError: it is no folder, or cannot be read.
    """
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise FileError(
            f"The folder {folder} cannot be read.",
            f"{error.strerror or error}.",
            "Check its name and its rights.",
        ) from error


def list_folder(folder: Path, extensions: Iterable[str]) -> Listing:
    """What lies in a folder itself.

    Raises:
        FileError: it is no folder, or cannot be read.
    """
    pictures: list[str] = []
    texts: list[str] = []
    others: list[str] = []
    folders: list[str] = []
    extensions = set(extensions)
    for path in entries_of(folder):
        name, ending = path.name, suffix(path.name)
        if name.startswith((".", "@", "__MACOSX")):  # of macOS and network drives
            continue
        if path.is_dir():
            folders.append(name)
        elif ending in extensions:
            texts.append(name)
        elif ending in ENDINGS or ending in _FOREIGN or _holds_picture(path):
            pictures.append(name)
        else:
            others.append(name)
    return Listing(folder, tuple(pictures), tuple(texts), tuple(others), tuple(folders))


def suffix(name: str) -> str:
    """The ending of a name, in small letters, without its dot."""
    return os.path.splitext(name)[1].lower().lstrip(".")


def stem(name: str) -> str:
    """A name without its ending; as macOS and others write accents alike."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def shown(name: str) -> str:
    """A name that can be printed; one that is no text has signs in place of its bytes."""
    return name.encode("utf-8", "replace").decode()


def caption_of_name(name: str) -> str:
    """The caption that a file's name is: `red_fox-02.png` is "red fox"."""
    words = tidy(Path(name).stem.replace("_", " "))
    return tidy(_NUMBER.sub("", words)) or words


def read_folder(folder: Path, subset: Subset) -> Found:
    """The items of a folder, sorted by name, and what is wrong in it.

    Raises:
        FileError: no picture in it, with the folders below it that have some.
    """
    listing = list_folder(folder, subset.extensions)
    if not listing.pictures:
        raise _no_pictures(listing, subset)
    texts = _by_stem(listing.texts)
    nearly = _nearly_named(listing)
    masks = Masks(subset.masks)
    items: list[Item] = []
    faults: list[Fault] = []
    notes: list[Note] = []
    for name in listing.pictures:
        label = subset.prefix + shown(name)
        caption = _Caption(subset, folder, name, texts)
        if stem(name) not in texts and name in nearly and subset.captions in ("auto", "file"):
            text = f"{shown(nearly[name])} is not its caption; name it {shown(stem(name))}.txt."
            notes.append(Note(label, "caption nearly named", text))
        faults += [Fault(label, *fault) for fault in caption.faults]
        notes += [Note(label, *note) for note in caption.notes]
        items.append(
            subset.item(label, FileBlob(folder / name), caption.text, masks.of(folder.name, name))
        )
    notes += _leftovers(listing, subset)
    return Found(tuple(items), tuple(faults), tuple(notes))


class _Caption:
    """The caption of one picture of a folder, and what is to be said of it."""

    def __init__(
        self, subset: Subset, folder: Path, name: str, texts: dict[str, list[str]]
    ) -> None:
        self.text: str | None = subset.fallback
        self.faults: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []
        if subset.captions == "none":
            self.text = subset.fallback or ""
        elif subset.captions == "name":
            self.text = caption_of_name(name)
        else:
            self._read(subset, folder, texts.get(stem(name), []))

    def _read(self, subset: Subset, folder: Path, names: list[str]) -> None:
        order = {extension: place for place, extension in enumerate(subset.extensions)}
        names = sorted(names, key=lambda name: order[suffix(name)])
        if not names:
            return
        if names[1:]:
            text = f"{names[0]} is its caption; {name_some(names[1:])} is not read."
            self.notes.append(("two captions", text))
        try:
            self.text, encoding = read_caption(folder / names[0])
        except ValueError as error:
            self.faults.append(("caption undecodable", f"Its caption {names[0]}: {error}"))
            return
        if encoding != "utf-8":
            text = f"Its caption {shown(names[0])} is in {encoding}; save it as UTF-8."
            self.notes.append(("caption encoding", text))


class Masks:
    """The masks of a source, by the names of its pictures.

    Args:
        folder: where they lie; a folder in it belongs to the one of its name in the source.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._found: dict[str, dict[str, Blob]] = {}

    def of(self, below: str, name: str) -> Blob | None:
        """The mask of a picture in the folder `below` the source; None where it has none."""
        if self._folder is None:
            return None
        if below not in self._found:
            place = self._folder / below
            self._found[below] = _masks_in(place if place.is_dir() else self._folder)
        return self._found[below].get(stem(name))


def _masks_in(folder: Path) -> dict[str, Blob]:
    paths = [path for path in entries_of(folder) if not path.name.startswith(".")]
    named = (path for path in reversed(paths) if suffix(path.name) in ENDINGS)
    return {stem(path.name): FileBlob(path) for path in named}


def _leftovers(listing: Listing, subset: Subset) -> list[Note]:
    """Text files without a picture, one by one; all others in one note."""
    known = {stem(name) for name in listing.pictures}
    notes = [
        Note(subset.prefix + shown(name), "text without picture", "It has no picture of its name.")
        for name in listing.texts
        if stem(name) not in known
    ]
    twice = _by_stem(listing.pictures)
    for names in (names for names in twice.values() if len(names) > 1):
        text = f"It shares its caption with {name_some([shown(n) for n in names[1:]])}."
        notes.append(Note(subset.prefix + shown(names[0]), "same name", text))
    if listing.others:
        text = f"Files that are no pictures: {name_some([shown(n) for n in listing.others])}."
        notes.append(Note(subset.prefix or "The folder", "unrelated", text))
    below = _with_pictures(listing, subset)
    if below:
        text = f"Folders in it are not read: {name_some(below)}."
        notes.append(Note(subset.prefix or "The folder", "folders", text))
    return notes


def _no_pictures(listing: Listing, subset: Subset) -> FileError:
    below = _with_pictures(listing, subset)
    held = [*listing.texts, *listing.others, *(f"{name}/" for name in listing.folders)]
    why = f"It holds: {name_some([shown(n) for n in held], 10)}." if held else "It is empty."
    deeper = [n for n in listing.folders if class_folders(listing.folder / n)]
    if below or deeper:
        first = listing.folder / (below[0].split(" (")[0] if below else deeper[0])
        hint = f"Did you mean the folder below it? {first} has some."
    else:
        hint = "Name a folder with PNG, JPEG, WebP, BMP or AVIF files."
    return FileError(f"The folder {listing.folder} holds no picture.", why, hint)


def _with_pictures(listing: Listing, subset: Subset) -> list[str]:
    """`name (12 pictures)` of each folder below that has some; not that of the masks."""
    found: list[str] = []
    for name in listing.folders:
        place = listing.folder / name
        if subset.masks is not None and place.resolve() == subset.masks.resolve():
            continue
        try:
            count = sum(suffix(path.name) in ENDINGS for path in place.iterdir())
        except OSError:
            continue
        if count:
            found.append(f"{shown(name)} ({count} pictures)")
    return found


def _nearly_named(listing: Listing) -> dict[str, str]:
    """Picture -> a text of nearly its name: in other letters, or with the picture's ending, too."""
    lower = {name: name.lower() for name in listing.pictures}
    pictures = {*lower.values(), *map(stem, lower.values())}
    texts = {stem(t).lower(): t for t in listing.texts if stem(t).lower() in pictures}
    pairs = ((name, texts.get(low) or texts.get(stem(low))) for name, low in lower.items())
    return {name: text for name, text in pairs if text is not None}


def class_folders(folder: Path) -> list[tuple[Path, int, str]]:
    """(folder, repeats, name and class) of each folder below that is named as kohya's are."""
    found: list[tuple[Path, int, str]] = []
    for path in entries_of(folder):
        match = _CLASS.fullmatch(path.name)
        if match and path.is_dir() and int(match[1]):
            found.append((path, int(match[1]), match[2].strip()))
    return found


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(stem(name), []).append(name)
    return found


def _holds_picture(path: Path) -> bool:
    """Whether a file without a telling name is a picture."""
    if suffix(path.name) and not path.is_symlink() and len(suffix(path.name)) <= 5:
        return False  # json, zip, safetensors and whatever else has a name of its own
    try:
        with open_file(path) as file:
            return picture_format(file.read(16)) is not None
    except FileError:
        return False
