"""The site of `make site`: two languages, all public names, no dead link, no other host."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sdcore

ROOT = Path(__file__).parents[2]
NEEDS = ("mkdocs", "material", "mkdocs_static_i18n", "mkdocstrings_handlers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in NEEDS), reason="needs the extra `docs`"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a warning of mkdocs, such as a dead link, fails it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


class Parsed(HTMLParser):
    """A page's ids, where it leads to, and what a browser loads with it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.language = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "html":
            self.language = given.get("lang", "")
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "alternate", "prev", "next"):
            self.loaded.append(given["href"])
        self.loaded += [
            given[name] for name in ("src", "srcset", "poster", "data") if given.get(name)
        ]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Parsed]:
    return {page.resolve(): Parsed(page) for page in sorted(site.rglob("*.html"))}


def test_every_document_is_a_page_in_both_languages(site: Path, pages: dict[Path, Parsed]) -> None:
    for source in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "book").glob("*.md")]:
        name = source.relative_to(ROOT / "docs").as_posix().replace(".zh.md", ".md")
        name = name.replace("README.md", "index.md").replace(".md", ".html")
        for folder, language in ((site, "en"), (site / "zh", "zh")):
            assert pages[(folder / name).resolve()].language == language, name
    for page, words in (("", "Learn how it works"), ("zh/", "弄懂原理")):
        assert words in (site / f"{page}index.html").read_text("utf-8")
    for page, words in (("", "A grid is a sequence"), ("zh/", "网格就是序列")):
        assert words in (site / f"{page}book/index.html").read_text("utf-8")


@pytest.mark.parametrize("language", ["", "zh"])
def test_the_reference_holds_every_public_name(
    language: str, site: Path, pages: dict[Path, Parsed]
) -> None:
    folder = (site / language / "reference").resolve()
    held = {name for page, parsed in pages.items() if page.parent == folder for name in parsed.ids}
    given = {f"sdcore.{home}.{name}" for name, home in sdcore._HOME.items()}
    assert given and not given - held


def test_no_link_is_dead(site: Path, pages: dict[Path, Parsed]) -> None:
    dead = set()
    for page, parsed in pages.items():
        if page.name == "404.html":  # shown at any address: its links begin at the host's root
            continue
        for link in [*parsed.links, *parsed.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            ids = pages[target].ids if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in ids):
                dead.add((page.name, link))
    assert not dead


def test_nothing_is_loaded_from_other_hosts(site: Path, pages: dict[Path, Parsed]) -> None:
    foreign = {
        (page.name, address)
        for page, parsed in pages.items()
        for address in parsed.loaded
        if urlsplit(address).netloc
    }
    assert not foreign
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8").replace(" ", "")
        assert not [at for at in ("url(http", "url(//", '@import"http') if at in text], style
