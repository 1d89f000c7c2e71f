"""The documents are right: their Python runs; the names, files and commands in them exist."""

from __future__ import annotations

import ast
import os
import re
from argparse import ArgumentParser
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
from diffusers import StableDiffusionPipeline

from sdcore import Job, TextToImage
from sdcore.app.cli import COMMANDS
from sdcore.job.sources import Source
from tests import test_rooms

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
CHINESE = sorted((ROOT / "docs").glob("*.zh.md"))  # their code is that of the English pages
PAGES = [*READMES, *sorted({*(ROOT / "docs").glob("*.md")} - {*CHINESE})]
BOOK = sorted((ROOT / "docs" / "book").glob("*.md"))  # tests/book tests what is its own
CARD = ROOT / "sdcore" / "models" / "emoji" / "README.md"
NOTES = [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")]
EVERY = [*PAGES, *CHINESE, *NOTES, CARD, *BOOK, ROOT / "examples" / "README.md"]
EMBEDDED = ROOT / "sdcore" / "models" / "emoji" / "model_index.json"

# Pages that open up one room; all others show what `from sdcore import ...` gives.
INTERNALS = {
    "embedded-model.md": "training: the settings of a recipe",
    "training_data.md": "training: the scan of a folder, without a run",
}


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line where it begins, code) of each block marked as Python."""
    text = page.read_text("utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, sd_folder: Path, tmp_path: Path, read_once: None, monkeypatch: pytest.MonkeyPatch
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
    of_diffusers = StableDiffusionPipeline.from_pretrained
    monkeypatch.setattr(
        StableDiffusionPipeline, "from_pretrained", lambda folder: of_diffusers(sd_folder)
    )
    monkeypatch.chdir(tmp_path)  # what a block writes
    names: dict[str, object] = {"__name__": "page"}
    for line, code in blocks:
        # Blank lines before the code, so that a traceback points into the page.
        exec(compile("\n" * line + code, os.fspath(page), "exec"), names)


def test_the_two_readmes_say_the_same() -> None:
    """As far as it can be told: commands, code but for its words, links, figures."""
    english, chinese = (page.read_text("utf-8") for page in READMES)
    for what in (r"[\d.]+ %", r"^## ", r"\.venv/bin/\w+ \w+", r"^\|"):
        found = [sorted(re.findall(what, text, re.MULTILINE)) for text in (english, chinese)]
        assert found[0] == found[1], what
    assert links_of(READMES[0]) == links_of(READMES[1])
    calls = [re.findall(r"\w+\(", "".join(c for _, c in python_blocks(p))) for p in READMES]
    assert calls[0] == calls[1]


# --- pages in two languages ----------------------------------------------------------------------

CODE = re.compile(r"^```.*?^```$|(?<=\n\n)(?: {4}[^\n]*\n)+(?=\n|\Z)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^)]+(?=\))")
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


def prose_of(page: Path) -> str:
    return CODE.sub("", page.read_text("utf-8"))


def links_of(page: Path) -> list[tuple[str, int]]:
    """(target without its language, number of the heading there) of each link of a page.

    A heading that the page linked to does not have is an error.
    """
    found = []
    for link in LINK.findall(prose_of(page)):
        path, _, heading = link.partition("#")
        titles = re.findall(r"^#+ (.*)$", prose_of(page.parent / path), re.M) if heading else []
        names = [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles]
        found.append((path.replace(".zh.md", ".md"), names.index(heading) if heading else -1))
    return sorted(found)


def parts_of(page: Path) -> dict[str, object]:
    """What a page and its translation have in common."""
    prose = prose_of(page)
    rows = re.findall(r"^\|.*$", prose, re.MULTILINE)
    return {
        "code": CODE.findall(page.read_text("utf-8")),
        "code in the text": sorted(re.findall(r"`[^`]+`", prose)),
        "headings": re.findall(r"^#+ ", prose, re.MULTILINE),
        "figures": sorted(FIGURE.findall(LINK.sub("", prose))),
        "figures of tables": [[sorted(FIGURE.findall(c)) for c in row.split("|")] for row in rows],
        "links": links_of(page),
    }


@pytest.mark.parametrize("chinese", CHINESE, ids=lambda page: page.name)
def test_a_chinese_page_says_what_the_english_one_says(chinese: Path) -> None:
    english = chinese.with_name(chinese.name.replace(".zh.md", ".md"))
    ours, theirs = parts_of(chinese), parts_of(english)
    for what in theirs:
        assert ours[what] == theirs[what], what
    assert chinese.read_text("utf-8").splitlines()[2] == f"[English]({english.name}) | 中文"
    assert english.read_text("utf-8").splitlines()[2] == f"English | [中文]({chinese.name})"


@pytest.mark.parametrize("page", [READMES[1], *CHINESE], ids=lambda page: page.name)
def test_a_chinese_page_links_to_chinese_pages_where_there_are_some(page: Path) -> None:
    for path, after in re.findall(r"(?<!\[English)\]\(([^)#]+\.md)[^)]*\)(.*)", prose_of(page)):
        translated = page.parent / path.replace(".md", ".zh.md")
        assert path.endswith(".zh.md") or not translated.exists(), path
        if page in CHINESE:
            assert path.endswith(".zh.md") != (after[1:3] == "英文"), path


# --- names, files and commands -------------------------------------------------------------------


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_pages_import_public_names(page: Path) -> None:
    imports = re.findall(
        r"^\s*((?:from|import) sdcore\..*)$", page.read_text("utf-8"), re.MULTILINE
    )
    assert bool(imports) == (page.name in INTERNALS)


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_links_and_files_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", prose) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    folders = "sdcore|sample|train|bench|tests|configs|docs|examples"
    files = set(re.findall(rf"(?<![\w./])((?:{folders})/[\w/.-]*\w/?)", text))
    missing += [name for name in files if not (ROOT / name).exists()]
    modules = set(re.findall(r"python -m ((?:sdcore|train|bench|tests|docs)[\w.]*\w)", text))
    missing += [name for name in modules if find_spec(name) is None]
    assert not missing


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_modules_named_hold_what_is_named(page: Path) -> None:
    for name in set(re.findall(r"`(sdcore\.[\w.]+)", page.read_text("utf-8"))):
        assert resolves(name), name


def test_docstrings_name_modules_that_hold_what_they_name() -> None:
    wrong = {
        f"{name_of(path)}: {name}"
        for path in (ROOT / "sdcore").rglob("*.py")
        for name in re.findall(r"`(sdcore\.[\w.]*\w)", path.read_text("utf-8"))
        if not resolves(name)
    }
    assert not wrong


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    for split in range(name.count(".") + 1):
        module, *inside = [name, *[""] * split] if not split else name.rsplit(".", split)
        try:
            found = import_module(module)
        except ModuleNotFoundError:
            continue
        for part in inside:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_commands_named_take_the_flags_that_are_shown(page: Path) -> None:
    text = page.read_text("utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"(?:^|[`/ ;])sdcore (\w+)((?: [^\n`#]*)?)", text):
        if command in COMMANDS:
            check_flags(parser_of(COMMANDS[command].module), rest)
    for script, rest in re.findall(r"python (sample/\w+\.py)((?: [^\n`#]*)?)", text):
        source = (ROOT / script).read_text("utf-8")
        (module,) = re.findall(r"^from sdcore\.app\.(\w+) import main$", source, re.MULTILINE)
        check_flags(parser_of(module), rest)


def parser_of(module: str) -> ArgumentParser:
    return import_module(f"sdcore.app.{module}").make_parser()


def check_flags(parser: ArgumentParser, arguments: str) -> None:
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert not set(re.findall(r"(?<!\S)--[a-z][\w-]*", arguments)) - known, arguments


def test_files_hold_the_names_that_are_shown_in_them() -> None:
    shown = re.compile(r"((?:`\w[\w.]*`(?:,| and)?\s)+)in\s`(?:sdcore/)?([\w/]+\.py)`")
    for page in PAGES:
        for names, file in shown.findall(page.read_text("utf-8")):
            tree = ast.parse((ROOT / "sdcore" / file).read_text("utf-8"))
            defined = {node.name for node in tree.body if isinstance(node, DEFINITIONS)}
            first = {name.split(".")[0] for name in re.findall(r"`([\w.]+)`", names)}
            assert first <= defined, f"{page.name}: {first - defined} in {file}"


DEFINITIONS = (ast.ClassDef, ast.FunctionDef)


def test_files_of_the_reading_order_exist() -> None:
    text = (ROOT / "docs" / "from_prompt_to_picture.md").read_text("utf-8")
    headings = "\n".join(re.findall(r"^### \d+\. .*$", text, re.MULTILINE))
    named = re.findall(r"`([\w/]+\.py)`", headings)
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / "sdcore" / name).is_file()]


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in EVERY:
        used = set(re.findall(r"(?:^\s*|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
        assert not used - targets, page.name


# --- the rooms, the fields of a job --------------------------------------------------------------


def rows_of(page: Path, heading: str) -> list[list[str]]:
    """The cells of each row of the tables under a heading, without their heads."""
    (text,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", page.read_text("utf-8"), re.M | re.S)
    tables = re.findall(r"^\|[-|]+\|\n((?:\|.*\n?)+)", text, re.MULTILINE)
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for table in tables
        for line in table.splitlines()
    ]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_rooms_is_the_one_that_is_tested() -> None:
    above: list[str] = []
    for room, _, may_import in rows_of(ROOT / "CONTRIBUTING.md", "The rooms"):
        (name,) = quoted(room)
        named = set(quoted(may_import))
        if may_import.startswith("all above"):
            named = set(above) - named
        tested = set(test_rooms.BELOW[name].split()) - set(test_rooms.ALL)
        assert named - set(test_rooms.ALL) == tested, name
        assert named <= set(above), f"{name} stands above a room that it imports"
        above.append(name)
    assert set(above) == set(test_rooms.BELOW)


def test_the_reading_order_shows_every_room() -> None:
    page = ROOT / "docs" / "from_prompt_to_picture.md"
    (text,) = re.findall(r"^## The rooms$(.*?)^## ", page.read_text("utf-8"), re.M | re.S)
    shown = set(re.findall(r"`(\w+)/`", text))
    assert shown >= {path.parent.name for path in (ROOT / "sdcore").glob("*/__init__.py")}
    for room, _, files in rows_of(page, "The rooms"):
        for name in quoted(files):
            assert (ROOT / "sdcore" / quoted(room)[0] / name).is_file()


@pytest.mark.parametrize("room", sorted((ROOT / "sdcore").glob("*/__init__.py")), ids=name_of)
def test_a_room_lists_its_files(room: Path) -> None:
    text = ast.get_docstring(ast.parse(room.read_text("utf-8"))) or ""
    files = {path.name for path in room.parent.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b\w+\.py\b", text)) == files


def test_the_glossary_is_in_order_and_names_what_the_code_has() -> None:
    rows = rows_of(ROOT / "CONTRIBUTING.md", "Glossary")
    words = [word for word, _ in rows]
    assert words == sorted(words)
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "sdcore").rglob("*.py"))
    defined = set(re.findall(r"^\s*(?:class|def) (\w+)|^([A-Z_]+)\b", code, re.MULTILINE))
    names = {name for pair in defined for name in pair}
    for _, meaning in rows:
        for name in quoted(meaning):
            if not name.endswith("/"):
                assert name.split(".")[-1] in {*names, "index", "count"}, name


def test_the_page_on_jobs_shows_every_field() -> None:
    rows = rows_of(ROOT / "docs" / "jobs.md", "Fields")
    named = {name for row in rows for name in quoted(row[0])}
    assert {field.name for field in fields(Job)} <= named
    for source in get_args(Source):
        assert any(name.startswith(f"{source.__name__}(") for name in named)
