"""Files are ordinary ones: what would be waited for is refused by its kind, whoever reads it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcore.app.batch_report import Report
from sdcore.app.job_lines import read_lines
from sdcore.errors import FileError
from sdcore.files.hashes import file_hash
from sdcore.files.header import open_header
from sdcore.files.jsonfile import read_json
from sdcore.files.opening import open_file, read_bytes, require_file
from sdcore.files.tomlfile import read_toml
from sdcore.image.pictures import open_mask, open_picture
from sdcore.metadata.png import read_recipe
from sdcore.training.data.folder import list_folder
from sdcore.training.data.tars import index_of
from sdcore.training.folder import forget_rows

READERS: dict[str, Callable[[Path], object]] = {
    "size": require_file,
    "bytes": lambda path: read_bytes(path, 100),
    "JSON": read_json,
    "TOML": read_toml,
    "header": open_header,
    "hash": file_hash,
    "picture": open_picture,
    "mask": open_mask,
    "recipe": read_recipe,
}


def pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def link_to(target: str) -> Callable[[Path, str], Path]:
    def make(folder: Path, name: str) -> Path:
        (folder / name).symlink_to(target)
        return folder / name

    return make


SPECIAL: dict[str, Callable[[Path, str], Path]] = {
    "pipe": pipe,
    "kernel's log": link_to("/proc/kmsg"),  # an ordinary file of 0 bytes, by its own account
    "setting of the system": link_to("/sys/kernel/uevent_seqnum"),
    "endless": link_to("/dev/zero"),
    "waits for keys": link_to("/dev/tty"),
    "folder": link_to("/"),
}


def soon(work: Callable[[], object]) -> BaseException | None:
    """What it raises. Fails where it waits."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"
    return raised[0] if raised else None


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_by_its_kind(tmp_path: Path, kind: str, reader: str) -> None:
    path = SPECIAL[kind](tmp_path, "x.png")
    error = soon(lambda: READERS[reader](path))
    assert isinstance(error, FileError)
    missing = not path.exists()  # of a computer without it
    assert "is missing" in error.what if missing else "is not a file" in error.what


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_in_folders_are_waited_for_by_nobody(tmp_path: Path) -> None:
    for name in (
        "jobs.txt",
        "x.tar",
        "picture",
        "metrics.jsonl",
        "evaluation.jsonl",
        "batch.jsonl",
    ):
        pipe(tmp_path, name)
    assert isinstance(soon(lambda: list(read_lines(tmp_path / "jobs.txt"))), FileError)
    assert isinstance(soon(lambda: Report(tmp_path, (1, 1), 1)), FileError)
    listing = []
    assert soon(lambda: listing.append(list_folder(tmp_path, [".png"]))) is None
    assert soon(lambda: listing.append(index_of(tmp_path / "x.tar", None))) is None
    assert listing[1] == ([], "It is a pipe or a device.")
    assert soon(lambda: forget_rows(tmp_path, 3)) is None


def test_an_ordinary_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"text"
