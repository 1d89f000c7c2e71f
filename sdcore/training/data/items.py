"""Items: a picture that has not been read yet, its caption, and what is to be made of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sdcore.errors import FileError, visible
from sdcore.files.opening import open_file, require_file

Stamp = tuple[int, ...]


class Blob(Protocol):
    """Where the bytes of a picture lie."""

    def read(self, limit: int) -> bytes:
        """All of them. FileError where they cannot be read, or are more than `limit`."""
        ...

    def place(self) -> str:
        """What tells it from all others, for the cache of the scan."""
        ...

    def stamp(self) -> Stamp | None:
        """What changes when its bytes do, times last; None where nothing is known to."""
        ...


@dataclass(frozen=True)
class FileBlob:
    """A file, or `length` bytes of it from `start`, as a member of a tar lies there."""

    path: Path
    start: int = 0
    length: int | None = None

    def read(self, limit: int) -> bytes:
        if self.length is not None and self.length > limit:
            raise too_large(str(self.path), limit)
        with open_file(self.path) as file:
            file.seek(self.start)
            data = file.read(limit + 1 if self.length is None else self.length)
        if len(data) > limit:
            raise too_large(str(self.path), limit)
        if self.length is not None and len(data) < self.length:
            why = f"It ends {self.length - len(data)} bytes too early."
            raise FileError(f"{self.path} is cut short.", why, "Get the file again.")
        return data

    def place(self) -> str:
        return f"{self.path.absolute()}:{self.start}"

    def stamp(self) -> Stamp | None:
        return file_stamp(self.path)


def file_stamp(path: Path) -> Stamp:
    """Size, inode, time of change of the content, and of anything about the file, in nanoseconds.

    Who writes other content can set the first of the times back, as `cp -p` does; not the second.
    Raises FileError.
    """
    try:
        found = path.stat()
    except OSError:
        require_file(path)  # which says what is there
        raise
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def too_large(name: str, limit: int) -> FileError:
    """The error for a file of more than `limit` bytes."""
    why = f"It has more than {limit >> 20} MiB."
    return FileError(f"{name} is too large.", why, "Save a smaller picture.")


@dataclass(frozen=True)
class CaptionOptions:
    """What is made of a caption; see `captions.caption_of`."""

    trigger: str = ""
    prefix: str = ""
    suffix: str = ""
    dropout: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 0
    tag_separator: str = ","


@dataclass(frozen=True)
class PictureOptions:
    """What is made of a picture.

    resolution: the side of the square whose area it gets; None is that of the settings.
    alpha_mask: only what is not transparent is learned.
    """

    background: str = "#ffffff"
    crop: str = "center"
    flip: bool = False
    resolution: int | None = None
    alpha_mask: bool = False


@dataclass(frozen=True)
class Item:
    """A picture and its caption, before the picture is read.

    Attributes:
        name: what messages call it, such as its path below the source; no two have the same.
        caption: None where there is none.
        mask: where its mask lies.
        repeats: how often it is seen in an epoch.
        prior: a picture of the class, see `settings.PriorSettings`.
    """

    name: str
    blob: Blob
    caption: str | None = None
    mask: Blob | None = None
    repeats: int = 1
    prior: bool = False
    options: CaptionOptions = field(default_factory=CaptionOptions)
    look: PictureOptions = field(default_factory=PictureOptions)


@dataclass(frozen=True)
class Fault:
    """Why a picture cannot be trained on.

    kind: a word for what is wrong, the same for all pictures of which it is.
    reason: a sentence.
    """

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return " ".join(visible(f"{self.name}: {self.reason}").split())  # names hold line ends, too


@dataclass(frozen=True)
class Note(Fault):
    """What somebody should know of a picture or file that is no reason not to train."""


@dataclass(frozen=True)
class Found(Sequence[Item]):
    """The items of a source, in the order of their names, and what was wrong in listing them."""

    items: tuple[Item, ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Item:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.items[index]

    def __add__(self, other: Found) -> Found:
        return Found(self.items + other.items, self.faults + other.faults, self.notes + other.notes)
