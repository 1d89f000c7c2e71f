"""The one writer: each path holds what its writer wrote, whoever else writes and is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from sdcore.errors import FileError
from sdcore.files import atomic
from sdcore.files.atomic import (
    append_line,
    replace_file,
    replace_files,
    replace_folder,
    sweep,
    text_writer,
    write_new,
)
from sdcore.files.locks import FolderLock
from sdcore.metadata.png import save_png

ROOT = Path(__file__).parents[2]
needs_locks = pytest.mark.skipif(os.name == "nt", reason="folders have no locks there")


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code`, which prints a line when it is where it should be."""
    before = "import sys, time\nfrom pathlib import Path\nfrom sdcore.files.atomic import *\n"
    command = [sys.executable, "-c", before + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill_when_it_says_so(code: str, *arguments: object) -> None:
    process = start(code, *arguments)
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    process.kill()
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- many writers ------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_threads_with_one_name_each_get_their_own_picture(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no")))
    colours = [(thread, number, 99) for thread in range(8) for number in range(20)]

    def save(colour: tuple[int, int, int]) -> Path:
        return save_png(Image.new("RGB", (40, 40), colour), tmp_path / "a-red-apple.png")

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(save, colours))
    assert len(set(paths)) == 160 and names(tmp_path) == sorted(path.name for path in paths)
    for colour, path in zip(colours, paths, strict=True):
        with Image.open(path) as picture:
            assert picture.getcolors() == [(1600, colour)]


def test_processes_with_one_folder_each_get_their_own_file(tmp_path):
    code = """
for number in range(20):
    text = f"{sys.argv[2]} {number} " * 5000
    print(write_new(Path(sys.argv[1]) / "a.txt", text_writer(text)), number, flush=True)
"""
    processes = [start(code, tmp_path, number) for number in range(4)]
    said = [process.communicate()[0].splitlines() for process in processes]
    paths = [line.split()[0] for lines in said for line in lines]
    assert len(set(paths)) == 80 and len(names(tmp_path)) == 80
    for process, lines in enumerate(said):
        for line in lines:
            path, number = line.split()
            assert Path(path).read_text() == f"{process} {number} " * 5000


def test_processes_that_replace_one_file_leave_it_whole(tmp_path):
    code = """
for number in range(20):
    replace_file(Path(sys.argv[1]) / "a.txt", text_writer(sys.argv[2] * 100_000))
"""
    processes = [start(code, tmp_path, number) for number in range(4)]
    while any(process.poll() is None for process in processes):
        if (tmp_path / "a.txt").exists():
            text = (tmp_path / "a.txt").read_text()
            assert len(text) == 100_000 and len(set(text)) == 1
    assert not any(process.returncode for process in processes) and names(tmp_path) == ["a.txt"]


# --- kills -------------------------------------------------------------------------------------

HALF = """
def half(path):
    with path.open("w") as file:
        file.write("half")
        file.flush()
        print("now", flush=True)
        time.sleep(60)
"""
KILLED = {
    "a new file": 'write_new(Path(sys.argv[1]) / "a.txt", half)',
    "a file that is replaced": 'replace_file(Path(sys.argv[1]) / "a.txt", half)',
    "the second of two files": """
replace_files(Path(sys.argv[1]), {"a.txt": text_writer("new"), "b.txt": half})""",
    "a folder": """
replace_folder(Path(sys.argv[1]) / "a.txt", lambda folder: half(folder / "one"))""",
}


@needs_locks
@pytest.mark.parametrize("what", KILLED)
def test_a_kill_leaves_no_half_file_and_the_next_write_sweeps(tmp_path, what):
    (tmp_path / "a.txt").write_text("old")
    kill_when_it_says_so(HALF + KILLED[what], tmp_path)
    kept = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert [path.name for path in kept] == ["a.txt"] and kept[0].read_text() == "old"
    assert len(names(tmp_path)) == 2  # the draft
    assert write_new(tmp_path / "a.txt", text_writer("mine")).name == "a-1.txt"
    assert names(tmp_path) == ["a-1.txt", "a.txt"]


@needs_locks
def test_a_kill_between_the_name_and_the_end_leaves_the_whole_file(tmp_path):
    code = """
import os
link = os.link
os.link = lambda *names: (link(*names), print("now", flush=True), time.sleep(60))
write_new(Path(sys.argv[1]) / "a.txt", text_writer("all of it"))
"""
    kill_when_it_says_so(code, tmp_path)
    replace_file(tmp_path / "b.txt", text_writer("mine"))
    assert names(tmp_path) == ["a.txt", "b.txt"]
    assert (tmp_path / "a.txt").read_text() == "all of it"


@needs_locks
def test_the_draft_of_a_writer_that_lives_is_left_alone(tmp_path):
    process = start(HALF + KILLED["a new file"], tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    replace_file(tmp_path / "b.txt", text_writer("mine"))
    draft = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert (draft / "a.txt").read_text() == "half"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def draft_of(folder: Path, machine: str, hours: float = 0.0) -> Path:
    draft = folder / f".sdcore-{machine}-0123456789abcdef.draft"
    draft.mkdir()
    (draft / "a.txt").write_text("half")
    for path in (draft / "a.txt", draft):
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    return draft


def test_what_is_swept(tmp_path):
    ours, elsewhere = atomic._machine(), "00000000"
    old, young = draft_of(tmp_path, elsewhere, hours=25), draft_of(tmp_path / "..", elsewhere)
    (tmp_path / "1").mkdir()
    young = young.rename(tmp_path / "1" / young.name)
    for name in (".sdcore-1-2.draft", ".sdcore.draft", "a.draft", ".a.txt.tmp"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    sweep(tmp_path / "1")
    assert not old.exists() and young.exists()
    assert names(tmp_path) == [".a.txt.tmp", ".sdcore-1-2.draft", ".sdcore.draft", "1", "a.draft"]
    (tmp_path / "2").mkdir()
    draft = draft_of(tmp_path / "2", ours, hours=25)
    lock = FolderLock(draft)
    sweep(draft.parent)
    assert draft.exists() or not lock.certain
    lock.release()
    sweep(draft.parent)
    assert not draft.exists()


def test_no_link_leads_a_sweep_elsewhere(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    link = tmp_path / f".sdcore-{atomic._machine()}-0123456789abcdef.draft"
    link.symlink_to(tmp_path / "mine", target_is_directory=True)
    sweep(tmp_path)
    assert (tmp_path / "mine" / "a.txt").read_text() == "mine"


# --- errors ------------------------------------------------------------------------------------


def fail(path: Path) -> None:
    path.write_text("half")
    raise OSError(28, "No space left on device")


def test_a_failed_write_changes_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one").write_text("old")
    writes = [
        lambda: replace_files(tmp_path, {"a.txt": text_writer("new"), "b.txt": fail}),
        lambda: write_new(tmp_path / "a.txt", fail),
        lambda: replace_folder(tmp_path / "folder", lambda new: fail(new / "one")),
    ]
    for write in writes:
        with pytest.raises(FileError, match="No space left") as error:
            write()
        assert all(text.endswith(".") for text in (error.value.what, error.value.why))
    assert names(tmp_path) == ["a.txt", "folder"] and names(tmp_path / "folder") == ["one"]
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "folder" / "one").read_text() == "old"


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileError, match="could not be written"):
        write_new(tmp_path / "a" / "b.txt", text_writer("new"))


def test_a_folder_takes_the_place_of_one(tmp_path):
    for text in ("old", "new"):
        replace_folder(tmp_path / "step", lambda new, t=text: (new / t).write_text(t))
    assert names(tmp_path) == ["step"] and names(tmp_path / "step") == ["new"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_rights_are_those_that_the_umask_gives(tmp_path):
    def private(path: Path) -> None:
        path.touch(mode=0o600)  # as safetensors does

    old = os.umask(0o027)
    try:
        replace_file(tmp_path / "a", private)
        write_new(tmp_path / "b", private)
        replace_folder(tmp_path / "c", lambda folder: private(folder / "d"))
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"a": 0o640, "b": 0o640, "c": 0o750, "d": 0o640}


# --- files of lines ----------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["", "half", "half" * 5000])
def test_a_line_is_added_in_place_of_one_that_a_kill_cut(tmp_path, half):
    path = tmp_path / "new" / "log.jsonl"
    append_line(path, "one")
    append_line(path, "zwei 苹果")
    with path.open("a") as file:
        file.write(half)
    append_line(path, "three")
    assert path.read_text("utf-8") == "one\nzwei 苹果\nthree\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits of POSIX")
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (25, 25))
path = Path(sys.argv[1])
append_line(path, "first")
try:
    append_line(path, "x" * 100)
except ValueError as error:
    print(type(error).__name__, error)
append_line(path, "second")
"""
    said, _ = start(code, tmp_path / "log").communicate()
    assert said.startswith("FileError") and "could not be written" in said
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


def test_a_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    events: list[str] = []
    for name in ("fsync", "link", "replace", "rename"):
        real = getattr(os, name)
        say = lambda *args, n=name, r=real: (events.append(n), r(*args))[1]  # noqa: E731
        monkeypatch.setattr(os, name, say)
    write_new(tmp_path / "a", text_writer("a"))
    assert events == ["fsync", "link", "fsync"]
    events.clear()
    replace_files(tmp_path, {"a": text_writer("a"), "b": text_writer("b")})
    assert events == ["fsync", "fsync", "replace", "replace", "fsync"]
    events.clear()
    replace_folder(tmp_path / "c", lambda folder: (folder / "d").write_text("d"))
    assert events == ["fsync", "fsync", "rename", "fsync"]


def test_names_as_long_as_they_may_be(tmp_path):
    name = hashlib.sha256(b"").hexdigest() * 3 + "x" * 59 + ".txt"
    assert write_new(tmp_path / name, text_writer("a")).name == name
