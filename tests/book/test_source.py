"""The rules of a page's source: pairs, claims, length of code and text."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.book.book import terms
from docs.book.building import sources
from docs.book.drawing import Svg, alike
from docs.book.source import HAN, SourceError, read_source

PARTS = ("title", "question", "what", "why", "how", "figure", "exercise")
WHOLE = "".join(f"[{part}]\nen: One {part}\nzh: 一个 {part}\n\n" for part in PARTS)
CODE = "```python\nprint(1)\n```\n"


def written(folder: Path, text: str) -> Path:
    page = folder / "01_page.md"
    page.write_text(text, "utf-8")
    return page


def test_a_whole_page_is_read(tmp_path: Path) -> None:
    more = "en: Half of it is {x} %.[c:1.x]\nzh: 一半是 {x} %。[c:1.x]\n\n    y = W x\n\n"
    source = read_source(written(tmp_path, WHOLE + more + CODE))
    assert source.number == 1 and len(source.body) == 3
    assert source.named["title"].zh == "一个 title"


@pytest.mark.parametrize(
    "text,why",
    [
        ("en: Only English.\n\n", "a half is missing"),
        ("zh: 只有中文\nen: The wrong order.\n\n", "a half is missing"),
        ("en: Two.\nzh: Still English.\n\n", "has no Chinese"),
        ("en: It is 12 %.\nzh: 是 12 %。\n\n", "without a claim"),
        ("en: It is often so.\nzh: 常常如此。\n\n", "without a claim"),
        ("en: True.[c:1.a]\nzh: 真的。\n\n", "claim different things"),
        ("en: It is {a}.[c:1.a]\nzh: 是 {b}。[c:1.a]\n\n", "different figures"),
        ("en: " + "word " * 300 + "\nzh: 太长\n\n", "at most 300"),
        ("```python\n" + "print(1)\n" * 16 + "```\n", "at most 15 statements"),
        ("[title]\nen: Again\nzh: 又一次\n\n", "there twice"),
        ("[formula]\nen:\n    x = 1\n\n", "a half is missing"),
        (
            "[formula]\nen:\n    x = 1   what is seen\nzh:\n    x = 1   what is seen\n\n",
            "has English",
        ),
        ("    x = 1    what is seen\n\n", "has English"),
        ("[nonsense]\nen: Again\nzh: 又一次\n\n", "unknown"),
    ],
)
def test_a_broken_rule_is_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        read_source(written(tmp_path, WHOLE + text + CODE))


def test_code_and_parts_are_needed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="needs code"):
        read_source(written(tmp_path, WHOLE))
    with pytest.raises(SourceError, match=r"no \[title\]"):
        read_source(written(tmp_path, WHOLE.partition("\n\n")[2] + CODE))


def test_every_term_is_there_in_both_languages() -> None:
    def halves(table: dict, name: str) -> None:
        if "en" in table:
            assert set(table) == {"en", "zh"}, name
            assert name in SAME or HAN.search(table["zh"]), name
        else:
            for key, value in table.items():
                halves(value, f"{name}.{key}".lstrip("."))

    halves(terms(), "")


# What is one word, or a formula, in both languages.
SAME = {
    f"figure.{name}" for name in ("unet", "tokens", "scores", "transformer", "lstm", "exchanged")
} | {"live.score"}


def test_figures_are_alike_within_a_tolerance() -> None:
    def figure(value: float, word: str = "fox") -> str:
        import torch

        sheet = Svg(40, 40, "title")
        sheet.text(1, 1, word)
        sheet.cells(torch.full((4, 4, 3), value), 0, 0, 40)
        return str(sheet)

    assert alike(figure(100), figure(102))
    assert not alike(figure(100), figure(120))
    assert not alike(figure(100), figure(100, "cat"))


def test_pages_are_numbered_without_gaps() -> None:
    assert [source.number for source in sources()] == list(range(1, len(sources()) + 1))
