"""What is installed: all of sdcore, or a plain path to it where it is to be changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are packed; the weights are empty, which is faster."""
    tree = tmp_path_factory.mktemp("tree")
    for path in (ROOT / "sdcore").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            new = tree / path.relative_to(ROOT)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.touch() if path.suffix == ".safetensors" else shutil.copyfile(path, new)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, tree / name)
    return tree


def build(tree: Path, kind: str) -> ZipFile:
    """What the build backend makes of the tree, as pip asks it to."""
    out = tree / kind
    out.mkdir()
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    return ZipFile(out / done.stdout.splitlines()[-1])


def test_a_wheel_holds_every_file_and_the_command(tree: Path) -> None:
    files = {p.relative_to(tree).as_posix() for p in tree.rglob("sdcore/**/*") if p.is_file()}
    with build(tree, "build_wheel") as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert packed == files >= {"sdcore/py.typed", "sdcore/app/explain_page.html"}
        (entries,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
        assert "sdcore = sdcore.app.cli:main" in wheel.read(entries).decode()


def test_an_editable_install_is_a_plain_path(tree: Path) -> None:
    with build(tree, "build_editable") as wheel:
        (entry,) = (name for name in wheel.namelist() if ".dist-info/" not in name)
        assert entry.endswith(".pth") and wheel.read(entry).decode().strip() == str(tree)
