"""Every Python block of the README and of docs/ runs, in the order of the page."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sdcore import TextToImage

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EMBEDDED = ROOT / "sdcore" / "models" / "emoji" / "model_index.json"


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line where it begins, code) of each block marked as Python."""
    text = page.read_text("utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = python_blocks(page)
    assert blocks, f"{page.name} shows no Python"
    if not EMBEDDED.is_file():  # before the model is trained: a random one of the same layout
        monkeypatch.setattr(
            TextToImage, "embedded", lambda **how: TextToImage.from_pretrained(sd_folder, **how)
        )
    real = TextToImage.from_pretrained
    monkeypatch.setattr(  # pages say "a/folder" where the reader has a model of their own
        TextToImage,
        "from_pretrained",
        lambda folder, **how: real(sd_folder if str(folder) == "a/folder" else folder, **how),
    )
    monkeypatch.chdir(tmp_path)  # what a block writes
    names: dict[str, object] = {"__name__": "page"}
    for line, code in blocks:
        # Blank lines before the code, so that a traceback points into the page.
        exec(compile("\n" * line + code, os.fspath(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    files = set(re.findall(r"(?:python|bash) ([\w/]+\.py)", text))
    missing += [name for name in files if not (ROOT / name).is_file()]
    assert not missing


def test_files_of_the_reading_order_exist() -> None:
    text = (ROOT / "docs" / "from_prompt_to_picture.md").read_text("utf-8")
    named = re.findall(r"`(\w+\.py)`", " ".join(re.findall(r"^### \d+\. .*$", text, re.MULTILINE)))
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / "sdcore" / name).is_file()]


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        used = set(re.findall(r"(?:^\s*|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
        assert not used - targets, page.name
