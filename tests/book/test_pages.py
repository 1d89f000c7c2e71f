"""The pages of docs/book are those that their sources and figures make."""

from __future__ import annotations

import re

import pytest

from docs.book import building
from docs.book.alive import PAGE
from docs.book.drawing import alike
from docs.book.source import CLAIM, HAN, HOLE, LANGUAGES, Code, Source

SOURCES, DOCS = building.sources(), building.HERE.parent


def page(source: Source, language: str) -> str:
    return (building.HERE / building.page_name(source, language)).read_text("utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_page_says_what_its_source_says(source: Source, language: str) -> None:
    text = page(source, language)
    for pair in source.pairs:
        for part in re.split(f"{CLAIM.pattern}|{HOLE.pattern}", pair[language])[::3]:
            assert part in text
    for block in source.body:
        if isinstance(block, Code):
            assert f"```python\n{building.localized(block.text, language)}```\n\n```text\n" in text


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_chinese_page_is_chinese(source: Source) -> None:
    text = page(source, "zh")
    (alt,) = re.findall(r"!\[([^\]]*)\]", text)
    assert HAN.search(alt)
    prose = re.sub(
        r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)|^ {4}.*$", "", text, flags=re.S | re.M
    )
    english = re.findall(r"[A-Za-z]{3,}(?: [A-Za-z]{2,}){3,}", prose)  # four words in a row
    assert not english


def test_other_documents_claim_what_the_book_claims() -> None:
    known = {
        claim for source in SOURCES for pair in source.pairs for claim in CLAIM.findall(pair.en)
    }
    shared = {
        name: re.findall(r"<!-- c:([\w.]+) -->", (DOCS / f"{name}.md").read_text("utf-8"))
        for name in ("ablations", "heatmaps", "recurrent_and_transformer")
    }
    assert all(shared.values())
    assert {claim for claims in shared.values() for claim in claims} <= known


def test_nothing_is_left_over() -> None:
    pages = {building.page_name(source, each) for source in SOURCES for each in LANGUAGES}
    pictures = {f"{source.number:02}.{each}.svg" for source in SOURCES for each in LANGUAGES}
    moving = {f"{name}.{each}.html" for name in PAGE for each in LANGUAGES}
    there = {path.name for path in building.written()}
    assert there == pages | pictures | moving | {"README.md", "README.zh.md"}
    assert all(path.stat().st_size < 200_000 for path in building.written())


def test_no_page_is_written_while_a_claim_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: building.Path
) -> None:
    real = building.measure

    def untrue(source: Source, language: str):
        measured = real(source, language)
        measured.claims = dict.fromkeys(measured.claims, False)
        return measured

    before = {path: path.read_text("utf-8") for path in building.written()}
    monkeypatch.setattr(building, "measure", untrue)
    broken = building.build(only=5)
    assert broken and all("does not hold: 5.by_hand" in sentence for sentence in broken)
    assert {path: path.read_text("utf-8") for path in building.written()} == before


@pytest.mark.slow
def test_the_command_leaves_the_pages_as_they_are() -> None:
    files, broken = building.made()
    assert not broken
    assert not [path.name for path, text in files.items() if building.differs(path, text)]


def test_a_picture_is_alike_to_itself() -> None:
    picture = (building.PICTURES / "01.en.svg").read_text("utf-8")
    assert alike(picture, picture)
    assert not alike(picture, picture.replace("UNet", "UNET"))
