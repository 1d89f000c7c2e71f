"""What mkdocs does not do by itself for the site of `make site`: pages from outside docs/, links.

The documents are written to be read in the repository: README.md leads to docs/, pages to files of
the source, Chinese pages to `NAME.zh.md`. On the site each of these leads to its page; where a
file is none, its plain name stands there, or a link to it in `extra.repository`.

The reference is made from the table of public names in sdcore/__init__.py, a page for each room.
"""

from __future__ import annotations

import ast
import posixpath
import re
import textwrap
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import CombinedEvent, event_priority, get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {  # path in the repository: its page
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "examples/README.md": "examples.md",
    "sdcore/models/emoji/README.md": "model_card.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changes.md",
}
INSIDE = {page: path for path, page in OUTSIDE.items()}
LIVE = "book/live/"
OTHER = "other-language:"  # stands before an address until the links have been checked
INDENT = 4 * " "
REFERENCE = {"en": "Reference", "zh": "参考"}

LINK = re.compile(r"(?P<shown>!?\[(?P<text>(?:!\[[^]]*\]\([^)]*\)|[^][])*)\])\((?P<link>[^)\s]+)\)")
IMAGE = re.compile(r'(?<=<img src=")[^"]+(?=")')
CHINESE = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
WITHIN = re.compile(rf"(?<={CHINESE})\n(?={CHINESE})")  # a browser shows it as a space
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
HREF = re.compile(r'(?<=href=")([^":#?]+)(?=["#?])')

log = get_plugin_logger(__name__)


# --- the pages that docs/ does not hold -----------------------------------------------------------


def public_names() -> dict[str, list[str]]:
    """Rooms, each with `module.name` of what it gives: sdcore's table, without importing it."""
    tree = ast.parse((ROOT / "sdcore" / "__init__.py").read_text("utf-8"))
    (homes,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    )
    rooms: dict[str, list[str]] = {}
    for home, names in homes.items():
        rooms.setdefault(home.split(".")[0], []).extend(f"{home}.{n}" for n in names.split())
    return rooms


def reference_page(room: str, names: list[str]) -> str:
    """The Markdown of a room's page: what the room is, and a line for each name."""
    path = ROOT / "sdcore" / room
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    about = (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").split("\n\n")[0]
    imported = ", ".join(name.rsplit(".", 1)[1] for name in names)
    if len(imported) > 50:
        within = textwrap.fill(f"{imported},", 68, initial_indent=INDENT, subsequent_indent=INDENT)
        imported = f"(\n{within}\n)"
    lines = [f"# {room}", about, f"```python\nfrom sdcore import {imported}\n```"]
    return "\n\n".join([*lines, *(f"::: sdcore.{name}" for name in names)]) + "\n"


@cache
def added_pages() -> dict[str, str]:
    """Page: its Markdown."""
    pages = {page: (ROOT / path).read_text("utf-8") for path, page in OUTSIDE.items()}
    rooms = public_names()
    return pages | {f"reference/{room}.md": reference_page(room, rooms[room]) for room in rooms}


@event_priority(-200)  # after i18n, which sets the language's own `nav`
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The order of the pages, with the reference at its end."""
    title = REFERENCE[config.theme["language"]]
    if not any(title in entry for entry in config.nav or []):
        pages = [{room: f"reference/{room}.md"} for room in public_names()]
        config.nav = [*(config.nav or []), {title: pages}]
    return config


@event_priority(100)  # before i18n, which sorts the files by language
def _add_pages(files: Files, config: MkDocsConfig) -> Files:
    for page in added_pages():
        files.append(File(page, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """The Markdown of an added page; None leaves mkdocs to read the file."""
    return added_pages().get(page.file.src_uri)


# --- links ----------------------------------------------------------------------------------------


def is_chinese(path: str) -> bool:
    return ".zh." in posixpath.basename(path)


def counterpart(path: str) -> str:
    """The path of the page's other language."""
    if is_chinese(path):
        return path.replace(".zh.", ".")
    return "{}.zh{}".format(*posixpath.splitext(path))


def address(page: str) -> str:
    """Where a page or a moving page of docs/ lies on the site, in its own language."""
    folder, name = posixpath.split(re.sub(r"\.(en|zh)(?=\.\w+$)", "", page))
    name = "index.html" if name == "README.md" else re.sub(r"\.md$", ".html", name)
    return posixpath.join("zh" if is_chinese(page) else "", folder, name)


def way(start: str, end: str) -> str:
    """The relative link between two addresses of the site."""
    return posixpath.relpath(end, posixpath.dirname(start) or ".")


def in_repository(source: str, link: str) -> str:
    """The path that a link in the file `source` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(link)))


def page_of(path: str) -> str | None:
    """The path below docs/ that a path of the repository has on the site, if any."""
    return OUTSIDE.get(path) or (path[len("docs/") :] if path.startswith("docs/") else None)


def source_of(page: str) -> str:
    """The path in the repository of a page of the site."""
    return INSIDE.get(page, f"docs/{page}")


def _has_chinese(target: str) -> bool:
    return not is_chinese(target) and (ROOT / source_of(counterpart(target))).exists()


def leads_away(here: str, language: str, target: str) -> bool:
    """Whether a link on the page `here`, in the build of a language, leads to the other build."""
    if is_chinese(here):  # which names Chinese pages where there are any
        return _has_chinese(target)
    return is_chinese(target) and (language == "en" or target == counterpart(here))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page whose links and pictures lead, by their paths in the repository, to the site's."""
    here = page.file.src_uri
    source = source_of(here)

    def lead(found: re.Match[str]) -> str:
        link = urlsplit(found["link"])
        if link.scheme or not link.path:
            return found[0]
        path = in_repository(source, link.path)
        if not (ROOT / path).exists():
            log.warning(f"{source}: {found['link']} is no file")
        target = page_of(path)
        file = files.get_file_from_path(target) if target else None
        anchor = f"#{link.fragment}" if link.fragment else ""
        if target and leads_away(here, page.file.locale_alternate_of, target):
            to = OTHER + target
        elif file and not file.inclusion.is_excluded():
            language = page.file.locale_alternate_of
            if language == "zh" and not is_chinese(here) and target and _has_chinese(target):
                anchor = ""  # mkdocs leads to the Chinese page, whose headings are others
            to = posixpath.relpath(target or "", posixpath.dirname(here) or ".")
        elif config.extra["repository"]:
            to = posixpath.join(config.extra["repository"], path)
        else:
            return found["text"]
        return f"{found['shown']}({to}{anchor})"

    def show(found: re.Match[str]) -> str:
        target = page_of(in_repository(source, found[0]))
        file = files.get_file_from_path(target) if target else None
        if file is None:
            log.warning(f"{source}: {found[0]} is no picture of the site")
            return found[0]
        return file.url_relative_to(page.file)

    parts = FENCED.split(markdown)
    parts[::2] = [IMAGE.sub(show, LINK.sub(lead, WITHIN.sub("", part))) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to the other language, which mkdocs cannot follow: it builds one after the other."""
    return re.sub(
        rf'(?<=href="){OTHER}([^"#]+)',
        lambda found: way(page.file.dest_uri, address(found[1])),
        html,
    )


@event_priority(-200)  # after i18n: the language's files at their addresses
def _lead_from_moving_pages(files: Files, config: MkDocsConfig) -> Files:
    for file in files:
        if file.src_uri.startswith(LIVE) and file.src_uri.endswith(".html"):

            def lead(found: re.Match[str], file: File = file) -> str:
                path = in_repository(file.src_uri, found[0])
                return way(file.dest_uri, address(path))

            file.content_string = HREF.sub(lead, file.content_string)
    return files


on_files = CombinedEvent(_add_pages, _lead_from_moving_pages)
