"""The one writer of files: whole or not at all, whoever else writes and whatever is killed.

What is written goes into a draft first, a folder of its own in the folder of the target. It is
synced to disk, and only then gets its name. No two writers share a draft, and nobody writes to a
file that already has its name.

A kill leaves a draft behind. Later writes into the folder remove it, by this rule: its name is one
that only drafts have; nobody holds its lock, which its writer does for as long as it lives; and it
was made on this machine since it was started, where locks can be trusted, or else is older than a
day.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdcore.errors import FileError
from sdcore.files.locks import FolderLock

Write = Callable[[Path], object]  # writes the file, or fills the folder, of that path

_DRAFT = re.compile(r"\.sdcore-([0-9a-f]{8})-[0-9a-f]{16}\.draft")
_DAY = 24 * 3600.0
_PAUSE = 60.0  # seconds between two sweeps of a folder of pictures: it may be long to list
_swept: dict[Path, float] = {}  # when this process last swept a folder, by the monotonic clock


def replace_files(folder: Path, writers: Mapping[str, Write]) -> None:
    """Write several files of one folder; none of them is touched before all are written and synced.

    Args:
        folder: created when missing.
        writers: name -> what writes the file. Files of these names are replaced.

    Raises:
        FileError: the disk is full or the folder cannot be written; the old files are still there.
    """
    with _explained(folder):
        _replace(folder, writers)


def replace_file(path: Path, write: Write) -> None:
    """Write one file, in place of one of its name; as `replace_files`."""
    with _explained(path):
        _replace(path.parent, {path.name: write})


def _replace(folder: Path, writers: Mapping[str, Write]) -> None:
    with _draft(folder) as draft:
        for name, write in writers.items():
            write(draft / name)
        _finish(draft, writers)
        for name in writers:
            os.replace(draft / name, folder / name)
        _sync(folder)


def write_new(path: Path, write: Write) -> Path:
    """Write a file that replaces none: a number is added to its name where there is one.

    Args:
        path: its folder is created when missing.

    Returns:
        the path that was written.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    with _explained(path), _draft(path.parent, _PAUSE) as draft:
        finished = draft / path.name
        write(finished)
        _finish(draft, [path.name])
        target = next(target for target in _numbered(path) if _give_name(finished, target))
        _sync(path.parent)
        return target


def replace_folder(target: Path, write: Write) -> None:
    """Write a folder of files; it appears with all of them, in place of one of its name.

    Args:
        write: fills the empty folder that it is called with.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    with _explained(target), _draft(target.parent) as draft:
        new = draft / target.name
        new.mkdir()
        write(new)
        _finish(new, os.listdir(new))
        _sync(new)
        if target.exists():
            os.rename(target, draft / "old")
        os.rename(new, target)
        _sync(target.parent)


def make_folder(folder: Path) -> None:
    """Have a folder, with those above it. FileError where that cannot be."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path, target: str) -> None:
    """Find out whether files can be written into a folder that is there or will be made.

    A file without a name is made in the nearest folder that is there: rights alone do not say it.

    Args:
        target: what is to be written, for the error.

    Raises:
        FileError: they cannot.
    """
    there = folder
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:  # a name with a NUL
        why = error.strerror if isinstance(error, OSError) else f"{error}"
        raise FileError(
            f"{target} cannot be written.", f"{there}: {why}.", "Choose another folder."
        ) from error


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of lines; what a kill left of an earlier line is cut off.

    Raises:
        FileError: the disk is full, or the file cannot be written; it has then no part of the line.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = _cut_to_lines(file)
            data = line.encode("utf-8") + b"\n"
            try:
                if file.write(data) != len(data):
                    raise OSError("there was room for a part of the line only")
            except OSError:
                file.truncate(end)
                raise


def text_writer(text: str, errors: str = "strict") -> Write:
    """What writes a text in UTF-8, its line ends as they are; `errors` as in str.encode."""
    return lambda path: path.write_bytes(text.encode("utf-8", errors))


def json_writer(value: Any, indent: int | None = 2) -> Write:
    """What writes a settings file; a value that JSON does not have is a TypeError at once."""
    return text_writer(json.dumps(value, indent=indent) + "\n")


def sweep(folder: Path) -> None:
    """Remove the drafts in a folder that writers left behind when they were killed."""
    with suppress(OSError):  # where a folder cannot be listed, nothing is swept
        with os.scandir(folder) as entries:
            drafts = [entry.path for entry in entries if _DRAFT.fullmatch(entry.name)]
        for draft in drafts:
            with suppress(OSError):  # somebody else removed it just now
                _sweep_draft(Path(draft))


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(
            f"{path} could not be written.",
            f"{error.strerror or error}.",
            "Check the rights and the free space; what was there before is unchanged.",
        ) from error


# --- drafts --------------------------------------------------------------------------------------


@contextmanager
def _draft(folder: Path, pause: float = 0.0) -> Generator[Path]:
    """An empty folder inside `folder` that is this call's alone, and is gone afterwards.

    Args:
        pause: seconds that must lie between two sweeps of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.monotonic()
    if not pause or now - _swept.get(folder, -pause) >= pause:
        sweep(folder)
        _swept[folder] = now
    draft, lock = _claim(folder)
    try:
        yield draft
    finally:
        try:
            shutil.rmtree(draft, ignore_errors=True)
        finally:
            lock.release()


def _claim(folder: Path) -> tuple[Path, FolderLock]:
    """A new draft and its lock.

    Before it is locked, it looks as if its writer was gone, and another one's sweep may take it.
    """
    while True:
        draft = folder / f".sdcore-{_machine()}-{secrets.token_hex(8)}.draft"
        draft.mkdir()
        with suppress(BlockingIOError, FileNotFoundError):
            lock = FolderLock(draft)
            if draft.is_dir():
                return draft, lock


def _sweep_draft(draft: Path) -> None:
    """Remove a draft if its writer is gone; see the rule at the top."""
    name = _DRAFT.fullmatch(draft.name)
    if name is None or draft.is_symlink():
        return
    try:
        lock = FolderLock(draft)
    except OSError:  # its writer lives, or it has just removed it
        return
    try:
        if (lock.certain and name[1] == _machine()) or _age(draft) > _DAY:
            shutil.rmtree(draft, ignore_errors=True)
    finally:
        lock.release()


def _age(folder: Path) -> float:
    """Seconds since anything in a folder changed."""
    return time.time() - max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


@functools.cache
def _machine() -> str:
    """Eight digits for this machine since it was started, the same in all of its containers."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]


# --- names and disk ------------------------------------------------------------------------------


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 1
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def _give_name(finished: Path, target: Path) -> bool:
    """Give a finished file a name, unless that is taken; then False."""
    try:
        # A link, unlike a rename, refuses to replace a file that another process just wrote.
        os.link(finished, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        pass
    # The name is taken first, by an empty file that nobody else can have made, then filled.
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    try:
        os.replace(finished, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return True


def _finish(folder: Path, names: Iterable[str]) -> None:
    """Flush files of a folder to the disk, with the rights that the umask gives new ones."""
    rights = folder.stat().st_mode & 0o666  # of a folder that is new too; safetensors gives 0600
    for name in names:
        (folder / name).chmod(rights)
        _sync(folder / name)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and needs no sync of them
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cut_to_lines(file: Any) -> int:
    """Cut a file behind its last line end; its length then."""
    end = file.seek(0, os.SEEK_END)
    start = end
    while start:
        start = max(0, start - 4096)
        file.seek(start)
        found = file.read(min(4096, end - start)).rfind(b"\n")
        if found >= 0:
            start += found + 1
            break
    if start != end:
        file.truncate(start)
    return start
