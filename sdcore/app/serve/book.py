"""/book: the pages that explain what the page shows.

They are Markdown of the repository's docs/book, which a wheel holds as book_pages.
"""

from __future__ import annotations

import html
import posixpath
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.responses import Response
from markdown_it import MarkdownIt

from sdcore.errors import UsageError
from sdcore.files.html_page import fill_template

FOLDERS = (
    Path(__file__).with_name("book_pages"),
    Path(__file__).parents[3] / "docs" / "book",
)
_PLACES = ("*.md", "pictures/*.svg", "live/*.html")
_LINK = re.compile(r'<a href="([^"]*)">(.*?)</a>', re.DOTALL)
_TYPES = {".svg": "image/svg+xml"}
# An SVG's own style, and nothing else, where somebody opens it alone.
_ALONE = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}


def is_here() -> bool:
    """Whether there are pages."""
    return bool(_files())


def router() -> APIRouter:
    """Its addresses."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/{name:path}")
    def _(name: str) -> Response:
        """A page as HTML, a picture of one, or a page that moves."""
        path = _files().get(name)
        if path is None:
            hint = "See docs/book in the repository of sdcore."
            raise UsageError(f"The book has no {name!r:.80}.", "There is no such page here.", hint)
        if path.suffix == ".md":
            return Response(as_html(path.read_text("utf-8"), name), media_type="text/html")
        if path.suffix == ".html":  # says itself what it may run
            return Response(path.read_bytes(), media_type="text/html")
        return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=_ALONE)

    return routes


def as_html(text: str, name: str) -> str:
    """A page of Markdown as HTML; tags in it are text, and remarks are left out.

    A link to a page of the repository that is not of the book is that page's name.
    """
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = _LINK.sub(_followed, body)
    title = re.search(r"^# (.*)$", text, re.MULTILINE)
    slots = {
        "language": "zh" if name.endswith(".zh.md") else "en",
        "title": html.escape(title[1] if title else name),
        "body": body,
    }
    return fill_template(Path(__file__).with_name("page") / "book.html", slots)


def _followed(link: re.Match[str]) -> str:
    """A link of a page, or where it leads in the repository."""
    page = link[1].partition("#")[0]
    if not page or page in _files() or urlsplit(page).scheme:
        return link[0]
    return f"{link[2]} (<code>{posixpath.normpath(f'docs/book/{page}')}</code>)"


@lru_cache(maxsize=1)
def _files() -> dict[str, Path]:
    """What may be asked for, by its name under the folder."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    found = [path for pattern in _PLACES for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path for path in found}
