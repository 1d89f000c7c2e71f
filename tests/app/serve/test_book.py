"""The book that the page links to: every page that is linked, and no file beside it."""

from __future__ import annotations

import re

import httpx
import pytest

from sdcore.app.serve import book
from sdcore.app.serve.painter import Painter
from tests.app.serve.conftest import listening


def test_every_link_of_the_page_leads_to_a_page_in_both_languages(ask) -> None:
    pages = set(re.findall(r'data-page="([^"]+)"', ask.get("/").text))
    assert len(pages) >= 6 and ask.get("/api/choices").json()["book"] is True
    for page in pages:
        for ending in (".md", ".zh.md"):
            answer = ask.get(f"/book/{page}{ending}")
            assert answer.status_code == 200 and "<h1>" in answer.text
            assert "<!--" not in answer.text and "{{" not in answer.text
            for picture in re.findall(r'<img src="([^"]+)"', answer.text):
                assert ask.get(f"/book/{picture}").headers["content-type"] == "image/svg+xml"
            for link in re.findall(r'href="([^"#:]+)"', answer.text):
                assert ask.get(f"/book/{link}").status_code == 200, link
            for moving in re.findall(r'href="(live/[^"]+)"', answer.text):
                opened = ask.get(f"/book/{moving}")
                assert opened.headers["content-type"].startswith("text/html")
                assert "script-src 'sha256-" in opened.text


@pytest.mark.parametrize("name", ["book.py", "../jobs.md", "%2e%2e/jobs.md", "/etc/passwd", "x.md"])
def test_nothing_else_is_given_away(ask, name) -> None:
    assert ask.get(f"/book/{name}").status_code in (400, 404)


def test_it_is_found_where_a_wheel_has_it_and_told_where_it_is_not(
    ask, tmp_path, monkeypatch
) -> None:
    pages, missing = tmp_path / "book_pages", tmp_path / "missing"
    pages.mkdir()
    (pages / "01_one_run.md").write_text("# A run", "utf-8")
    for folders, here in (((pages, missing), True), ((missing, missing), False)):
        monkeypatch.setattr(book, "FOLDERS", folders)
        book._files.cache_clear()
        assert ask.get("/api/choices").json()["book"] is here
        assert ask.get("/book/01_one_run.md").status_code == (200 if here else 400)
    monkeypatch.undo()
    book._files.cache_clear()
    assert "docs/book" in ask.get("/").text


def test_a_link_out_of_the_book_says_where_it_leads() -> None:
    found = book.as_html(
        "# a\n\n[x](../controls.md#y), [z](#a), [w](https://example.org/q)", "a.md"
    )
    assert "<p>x (<code>docs/controls.md</code>), " in found
    assert '<a href="#a">z</a>, <a href="https://example.org/q">w</a>' in found


def test_marks_in_a_page_are_text() -> None:
    found = book.as_html("# a <b>\n\n<script>x</script> {{body}} [x](javascript:x)", "a.md")
    assert "<script>" not in found and "<b>" not in found and 'href="javascript' not in found
    assert "{{body}}" in found


def test_it_is_read_without_a_token(live) -> None:
    with listening(live.door, Painter(live.door.models), token="secret") as server:
        assert httpx.get(f"{server.url}/book/02_noise.md", trust_env=False).status_code == 200
        assert httpx.get(f"{server.url}/api/choices", trust_env=False).status_code == 401
