"""WebDataset: tars in which files of one name up to the first dot belong together.

Where each file begins is kept in an index, so that any picture is read at once and the order of a
run does not depend on that of a stream.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdcore.errors import FileError, UsageError, name_some
from sdcore.files.jsonfile import is_object
from sdcore.files.opening import require_file
from sdcore.training.data.checked_json import read_checked, write_checked
from sdcore.training.data.columns import TEXT, as_caption, choose_column
from sdcore.training.data.folder import caption_of_name, entries_of
from sdcore.training.data.items import Fault, FileBlob, Found, Item, Note, file_stamp
from sdcore.training.data.settings import ENDINGS, DataSettings
from sdcore.training.data.subset import Subset
from sdcore.training.data.texts import LIMIT, decode, tidy

_VERSION = 1
_PACKED = (".gz", ".tgz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    start: int
    length: int

    @property
    def key(self) -> str:
        """What its picture and its caption have in common."""
        path = PurePosixPath(self.name)
        return str(path.parent / path.name.split(".", 1)[0])

    @property
    def ending(self) -> str:
        return PurePosixPath(self.name).name.partition(".")[2].lower()


def read_tars(source: Path, settings: DataSettings, subset: Subset, cache: Path | None) -> Found:
    """The items of a tar, or of all tars in a folder.

    Args:
        cache: where indices are kept; None keeps none.

    Raises:
        FileError: there is no tar, or one is packed.
    """
    tars = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    packed = [path for path in (entries_of(source) if source.is_dir() else tars) if is_packed(path)]
    if packed:
        raise FileError(
            f"{packed[0]} is packed.",
            "A file in the middle of a packed archive cannot be read by itself.",
            "Unpack it to a plain .tar.",
        )
    if not tars:
        raise FileError(f"{source} holds no tar.", "None ends in .tar.", "Name a folder of tars.")
    found = Found()
    for path in tars:
        members, fault = index_of(path, cache)
        one = _read_tar(path, members, settings, subset)
        found = found + one
        if fault:
            found = found + Found(faults=(Fault(path.name, "archive damaged", fault),))
    return found


def is_packed(path: Path) -> bool:
    """Whether a file is named as an archive that is packed."""
    return path.suffix in _PACKED and (".tar" in path.name or path.suffix == ".tgz")


def index_of(path: Path, cache: Path | None) -> tuple[list[Member], str]:
    """(files in a tar, what is wrong with it), out of the index where the tar is as it was."""
    stamp = list(file_stamp(path))
    kept = None
    index = None
    if cache is not None:
        name = hashlib.blake2b(str(path.absolute()).encode("utf-8", "replace"), digest_size=8)
        index = cache / f"tar-{name.hexdigest()}.json"
        kept = read_checked(index)
    if kept is not None and kept["version"] == _VERSION and kept["stamp"] == stamp:
        return [Member(*row) for row in kept["members"]], kept["fault"]
    members, fault = _list(path, stamp[0])
    if index is not None:
        rows = [[m.name, m.start, m.length] for m in members]
        value = {"version": _VERSION, "stamp": stamp, "members": rows, "fault": fault}
        write_checked(index, value)
    return members, fault


def _list(path: Path, size: int) -> tuple[list[Member], str]:
    members: list[Member] = []
    try:
        require_file(path)
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                if not entry.isreg():
                    continue
                if entry.offset_data + entry.size > size:
                    return members, f"It is cut short in {entry.name}."
                members.append(Member(entry.name, entry.offset_data, entry.size))
    except FileError as error:
        return members, error.why
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        last = f" behind {members[-1].name}" if members else ""
        return members, f"It cannot be read{last}: {error}."
    return members, ""


def _read_tar(path: Path, members: list[Member], settings: DataSettings, subset: Subset) -> Found:
    groups: dict[str, dict[str, Member]] = {}
    items: list[Item] = []
    faults: list[Fault] = []
    notes: list[Note] = []
    for member in members:
        if PurePosixPath(member.name).name.startswith("."):
            continue
        group = groups.setdefault(member.key, {})
        if member.ending in group:
            text = "It is in the archive more than once; the last is read."
            notes.append(Note(f"{path.name}/{member.name}", "same name", text))
        group[member.ending] = member
    lone: list[str] = []
    for group in groups.values():
        pictures = sorted(ending for ending in group if ending in ENDINGS)
        if not pictures:
            lone += [member.name for member in group.values()]
            continue
        picture = group[pictures[0]]
        label = f"{subset.prefix}{path.name}/{picture.name}"
        if pictures[1:]:
            text = f"Beside it lies {name_some([group[p].name for p in pictures[1:]])}, not read."
            notes.append(Note(label, "same name", text))
        caption = _Caption(path, group, settings, subset, picture)
        faults += [Fault(label, "caption undecodable", text) for text in caption.faults]
        notes += [Note(label, "caption encoding", text) for text in caption.notes]
        blob = FileBlob(path, picture.start, picture.length)
        items.append(subset.item(label, blob, caption.text))
    notes += [
        Note(f"{path.name}/{n}", "text without picture", "It has no picture of its name.")
        for n in lone
    ]
    return Found(tuple(items), tuple(faults), tuple(notes))


class _Caption:
    """The caption of a group of files, out of a text or a JSON file."""

    def __init__(
        self,
        path: Path,
        group: dict[str, Member],
        settings: DataSettings,
        subset: Subset,
        picture: Member,
    ) -> None:
        self.text = subset.fallback
        self.faults: list[str] = []
        self.notes: list[str] = []
        if subset.captions == "none":
            self.text = subset.fallback or ""
        elif subset.captions == "name":
            self.text = caption_of_name(picture.name)
        else:
            endings = [e for e in (*subset.extensions, "json") if e in group]
            if settings.text_column and "json" in group:
                endings = ["json"]
            for ending in endings[:1]:
                self._read(path, group[ending], settings)

    def _read(self, path: Path, member: Member, settings: DataSettings) -> None:
        try:
            data = FileBlob(path, member.start, member.length).read(LIMIT)
            text, encoding = decode(data)
            if member.ending == "json":
                text = _from_json(text, member, settings)
            elif encoding != "utf-8":
                self.notes.append(f"Its caption is in {encoding}; save it as UTF-8.")
            self.text = tidy(text) if text is not None else self.text
        except (UsageError, FileError) as error:
            if isinstance(error, UsageError):
                raise
            self.faults.append(f"Its caption {member.name}: {error.why}")
        except ValueError as error:
            self.faults.append(f"Its caption {member.name}: {error}")


def _from_json(text: str, member: Member, settings: DataSettings) -> str | None:
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"It is not JSON: {error!s:.200}.") from None
    if not is_object(values):
        raise ValueError("It is no JSON object.")
    texts = [key for key, value in values.items() if isinstance(value, str) or value is None]
    column = choose_column(settings.text_column, texts, TEXT, "data.text_column", member.name)
    return as_caption(values[column])[0]
