"""Every Python block of the README and of docs/ runs, in the order of the page."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from sdcore import TextToImage

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = ROOT / "docs" / "how_a_prompt_becomes_a_picture"
ENGLISH = sorted((GUIDE / "en").glob("*.md"))
CHINESE = sorted((GUIDE / "zh").glob("*.md"))
LESSONS = [page for page in ENGLISH if page.name != "README.md"]
EMBEDDED = ROOT / "sdcore" / "models" / "emoji" / "model_index.json"


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line where it begins, code) of each block marked as Python."""
    text = page.read_text("utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


@pytest.mark.parametrize("page", [*PAGES, *LESSONS], ids=lambda page: page.name)
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


@pytest.mark.parametrize(
    "page", [*PAGES, *ENGLISH, *CHINESE], ids=lambda page: f"{page.parent.name}/{page.name}"
)
def test_links_and_files_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    files = set(re.findall(r"(?:python|bash) ([\w/]+\.py)", text))
    files |= set(re.findall(r"`((?:sdcore|sample|train|bench|tests|configs)/[\w/]+\.\w+)`", text))
    missing += [name for name in files if not (ROOT / name).is_file()]
    assert not missing


def test_files_of_the_reading_order_exist() -> None:
    text = (ROOT / "docs" / "from_prompt_to_picture.md").read_text("utf-8")
    headings = "\n".join(re.findall(r"^### \d+\. .*$", text, re.MULTILINE))
    named = re.findall(r"`([\w/]+\.py)`", headings)
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / "sdcore" / name).is_file()]


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        used = set(re.findall(r"(?:^\s*|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
        assert not used - targets, page.name


# --- how a prompt becomes a picture: two languages, one set of pictures, figures and code --------


def figures(text: str) -> list[tuple[str, str]]:
    """(name, value) of each figure that a command fills in."""
    return re.findall(r"<!--=(\w+)-->(.*?)<!--/-->", text)


def test_the_guide_has_the_same_pages_in_both_languages() -> None:
    assert len(LESSONS) == 10
    assert [page.name for page in CHINESE] == [page.name for page in ENGLISH]


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.name)
def test_the_languages_share_code_headings_pictures_and_figures(page: Path) -> None:
    other = GUIDE / "zh" / page.name
    english, chinese = page.read_text("utf-8"), other.read_text("utf-8")
    assert [code for _, code in python_blocks(page)] == [code for _, code in python_blocks(other)]
    for same in (r"^(#+) ", r"!\[[^]]*\]\(([^)]+)\)", r"^ {4}(python -m .*)$"):
        found = [re.findall(same, text, re.MULTILINE) for text in (english, chinese)]
        assert found[0] == found[1], same
    assert sorted(figures(english)) == sorted(figures(chinese))  # a sentence may turn round
    if page in LESSONS:
        assert len(re.findall(r"!\[", english)) == 1
        assert len(re.findall(r"[\u4e00-\u9fff]", chinese)) > 200


@pytest.mark.parametrize(
    "page", [*ENGLISH, *CHINESE], ids=lambda page: page.parent.name + page.name
)
def test_figures_of_the_guide_are_those_that_were_measured(page: Path) -> None:
    measured = json.loads((GUIDE / "numbers.json").read_text("utf-8"))
    text = page.read_text("utf-8")
    assert text.count("<!--=") == text.count("<!--/-->") == len(figures(text))
    assert {name: measured["figures"].get(name) for name, _ in figures(text)} == dict(figures(text))


def test_what_the_guide_says_held_when_it_was_made() -> None:
    measured = json.loads((GUIDE / "numbers.json").read_text("utf-8"))
    assert measured["claims"]
    assert not [sentence for sentence, holds in measured["claims"].items() if not holds]


def test_pictures_of_the_guide_are_shown_and_small() -> None:
    pictures = sorted((GUIDE / "pictures").iterdir())
    shown = {
        link for page in ENGLISH for link in re.findall(r"/pictures/([^)]+)\)", page.read_text())
    }
    assert {picture.name for picture in pictures} == shown
    assert all(picture.stat().st_size < 150_000 for picture in pictures)
    assert sum(picture.stat().st_size for picture in pictures) < 1_500_000
