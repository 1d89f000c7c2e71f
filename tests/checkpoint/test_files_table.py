"""The tables about files in the documents are those of the code, and say what happens."""

from __future__ import annotations

from sdcore.checkpoint import families
from tests.files_table import OPENED_BY, PAGE, page_with_tables


def test_the_page_has_the_tables_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert page_with_tables(text) == text, "run: python -m tests.files_table"


def test_every_kind_is_in_the_table() -> None:
    assert set(OPENED_BY) <= set(families._KINDS)
