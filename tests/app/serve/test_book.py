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
            for moving in re.findall(r'href="(live/[^"]+)"', answer.text):
                opened = ask.get(f"/book/{moving}")
                assert opened.headers["content-type"].startswith("text/html")
                assert "script-src 'sha256-" in opened.text


@pytest.mark.parametrize("name", ["book.py", "../jobs.md", "%2e%2e/jobs.md", "/etc/passwd", "x.md"])
def test_nothing_else_is_given_away(ask, name) -> None:
    assert ask.get(f"/book/{name}").status_code in (400, 404)


def test_marks_in_a_page_are_text() -> None:
    found = book.as_html("# a <b>\n\n<script>x</script> {{body}} [x](javascript:x)", "a.md")
    assert "<script>" not in found and "<b>" not in found and 'href="javascript' not in found
    assert "{{body}}" in found


def test_it_is_read_without_a_token(live) -> None:
    with listening(live.door, Painter(live.door.models), token="secret") as server:
        assert httpx.get(f"{server.url}/book/02_noise.md", trust_env=False).status_code == 200
        assert httpx.get(f"{server.url}/api/choices", trust_env=False).status_code == 401
