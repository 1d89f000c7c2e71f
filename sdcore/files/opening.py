"""The one way in which files are opened: ordinary ones, of bounded size; every fault a FileError.

What a file holds is judged where it is read: jsonfile.py, header.py, image/pictures.py.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sdcore.errors import FileError, name_some

# Where reading may wait for ever (/proc/kmsg), or change something (/sys).
_SYSTEM = (("/", "proc"), ("/", "sys"))


def require_file(path: Path) -> int:
    """The size in bytes of an ordinary file.

    Raises:
        FileError: nothing there, and what is there instead; or a folder, pipe or device, or what
            the system makes up while it is read.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        why = f"{error.strerror or error}" if isinstance(error, OSError) else f"{error}"
        if path.is_symlink() and isinstance(error, FileNotFoundError):
            why = f"It is a link to {path.readlink()}, which is not there"
        elif isinstance(error, FileNotFoundError):
            why = "There is no such file"
            why += f"; its folder holds: {listing(path.parent)}" if path.parent.is_dir() else ""
        hint = "Check the name, or get the file again from where it came from."
        raise FileError(f"{path} is missing.", f"{why}.", hint) from error
    if not stat.S_ISREG(found.st_mode):
        raise FileError(
            f"{path} is not a file.",
            "It is a folder." if stat.S_ISDIR(found.st_mode) else "It is a pipe or a device.",
            "Name a file.",
        )
    if path.resolve().parts[:2] in _SYSTEM:
        raise FileError(
            f"{path} is not a file.",
            "It lies on no disk: the system makes it up while it is read, and may wait in that.",
            "Name a file.",
        )
    return found.st_size


@contextmanager
def open_file(path: Path) -> Generator[io.BufferedReader]:
    """An ordinary file, open to be read. FileError as `require_file`, or where reading it fails."""
    require_file(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FileError(
            f"{path} cannot be read.",
            f"{error.strerror or error}.",
            "Check the rights of the file, and the disk.",
        ) from error


def read_bytes(path: Path, most: int) -> bytes:
    """All of a file.

    Args:
        most: bytes that it may have.

    Raises:
        FileError: as `open_file`, or it is larger.
    """
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        size = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
        why = f"It has more than {size}, which no such file has."
        raise FileError(f"{path} is too large.", why, "Check that it is the right file.")
    return data


def listing(folder: Path, limit: int = 10) -> str:
    """The names in a folder, for error messages."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return name_some(names, limit) if names else "nothing"
