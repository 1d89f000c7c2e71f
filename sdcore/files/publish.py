"""Files appear whole or not at all: written beside their target, synced to disk, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from sdcore.errors import FileError


def publish(folder: Path, writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Write several files of one folder; none of them is touched before all are written and synced.

    Args:
        folder: created when missing.
        writers: file name -> function that writes the file at the path it is given.

    Raises:
        FileError: the disk is full or the folder cannot be written; the old files are still there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _publish(folder, writers)
    except OSError as error:
        raise FileError(
            f"{folder} could not be written",
            str(error),
            "check free space and rights; files that were there before are unchanged",
        ) from error


def _publish(folder: Path, writers: Mapping[str, Callable[[Path], None]]) -> None:
    mark = f"tmp-{os.getpid()}-{secrets.token_hex(4)}"
    staged = {name: folder / f".{name}.{mark}" for name in writers}
    try:
        for name, write in writers.items():
            temporary = staged[name]
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # what the umask gives; safetensors writes 0600
            write(temporary)
            temporary.chmod(mode & 0o777)
            _sync(temporary)
        for name, temporary in staged.items():
            os.replace(temporary, folder / name)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    _sync(folder)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and needs no sync of them
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Give `write` a file to fill; nothing is overwritten and no half file is ever seen.

    Returns:
        the path that was written: `path`, with a number added to its name where it exists.

    Raises:
        FileError: the folder cannot be written.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            return _give_name(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(
            f"{path} could not be written.",
            f"{error.strerror or error}",
            "Choose a folder that you may write to, with space left.",
        ) from error


def _give_name(draft: Path, path: Path) -> Path:
    for target in _numbered(path):
        try:
            # A link, unlike a rename, refuses to replace a file that another process just wrote.
            os.link(draft, target)
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if target.exists():
                continue
            os.rename(draft, target)
        return target
    raise AssertionError("unreachable")


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 1
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
