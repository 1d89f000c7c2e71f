"""Places in pages: what is filled, what stays, which pages are refused unchanged."""

from pathlib import Path

import pytest

from bench.pages import around, fill
from sdcore.errors import FileError

BEGIN, END = "<!-- table:", "<!-- end -->"


def test_only_what_stands_between_the_lines_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a\n{BEGIN} how -->\nold \\1\nolder\n{END}\nb {BEGIN}\n", "utf-8")
    for _ in range(2):
        fill(page, BEGIN, END, "| new |")
        assert page.read_text("utf-8") == f"a\n{BEGIN} how -->\n| new |\n{END}\nb {BEGIN}\n"


@pytest.mark.parametrize(
    "text", ["", "a\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"]
)
def test_a_page_without_one_place_is_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(FileError, match="no such file"):
        around(page, BEGIN, END)
    page.write_text(text, "utf-8")
    with pytest.raises(FileError, match="one line that starts with <!-- table:"):
        fill(page, BEGIN, END, "| new |")
    assert page.read_text("utf-8") == text
