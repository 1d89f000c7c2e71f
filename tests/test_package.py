"""What is installed: all of sdcore, or a plain path to it where it is to be changed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PAGES = "sdcore/app/serve/book_pages/"
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are packed; the weights are empty, which is faster."""
    tree = tmp_path_factory.mktemp("tree")
    for path in (ROOT / "sdcore").rglob("*"):
        if path.is_file() and path.suffix not in (".pyc", ".so"):
            new = tree / path.relative_to(ROOT)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.touch() if path.suffix == ".safetensors" else shutil.copyfile(path, new)
    shutil.copytree(ROOT / "docs" / "book", tree / "docs" / "book")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, tree / name)
    return tree


def book() -> set[str]:
    """What the server's page may lead to."""
    folder = ROOT / "docs" / "book"
    found = (
        path for pattern in ("*.md", "pictures/*.svg", "live/*") for path in folder.glob(pattern)
    )
    return {path.relative_to(folder).as_posix() for path in found}


def build(tree: Path, kind: str, compiler: str | None = None) -> ZipFile:
    """What the build backend makes of the tree, as pip asks it to, with a compiler or without."""
    out = tree / f"{kind} {compiler}"
    out.mkdir()
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    compilers = {} if compiler else dict.fromkeys(("CC", "CXX"), "/no/compiler")
    done = subprocess.run(
        command,
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **compilers},
    )
    return ZipFile(out / done.stdout.splitlines()[-1])


def test_a_wheel_holds_every_file_and_the_command(tree: Path) -> None:
    files = {p.relative_to(tree).as_posix() for p in tree.rglob("sdcore/**/*") if p.is_file()}
    with build(tree, "build_wheel") as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        pages = {name for name in packed if name.startswith(PAGES)}
        packed -= pages
        assert pages == {f"{PAGES}{page}" for page in book()}
        assert packed == files >= {"sdcore/py.typed", "sdcore/app/explain_page.html"}
        (entries,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
        assert "sdcore = sdcore.app.cli:main" in wheel.read(entries).decode()


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="needs a compiler"
)
def test_a_wheel_holds_the_kernels_for_every_python(tree: Path) -> None:
    with build(tree, "build_wheel", "g++") as wheel:
        assert "-py3-none-" in str(wheel.filename)
        names = {Path(name).name.split(".")[0] for name in wheel.namelist() if ".so" in name}
        assert names == {"native_avx2", "native_avx512", "native_avx512bf16"}


def test_an_editable_install_is_a_plain_path(tree: Path) -> None:
    with build(tree, "build_editable") as wheel:
        (entry,) = (name for name in wheel.namelist() if ".dist-info/" not in name)
        assert entry.endswith(".pth") and wheel.read(entry).decode().strip() == str(tree)
