"""From sources and measurements to pages: nothing is written unless every claim holds."""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from html import escape
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch

from docs.book import alive
from docs.book.book import HERE, IN_CODE, SOURCES, Measured, model, ran, term
from docs.book.drawing import alike, alike_pages
from docs.book.source import CLAIM, HOLE, LANGUAGES, Code, Source, read_source
from docs.book.training import trained
from sdcore import TextToImage

PICTURES = HERE / "pictures"
# Pages that look at the same paintings, a process for each language; all others share another.
PAINTED = {1, 2, 3, 7, 10, 11, 12, 14}


def sources() -> list[Source]:
    return [read_source(path) for path in sorted(SOURCES.glob("[0-9]*.md"))]


def build(only: int | None = None) -> list[str]:
    """Write the pages; returns what is wrong, and then nothing is written."""
    files, broken = made(only)
    if broken:
        return broken
    for folder in (PICTURES, alive.FOLDER):
        folder.mkdir(exist_ok=True)
    for path, text in files.items():
        if differs(path, text):
            path.write_text(text, "utf-8")
    if only is None:
        for path in set(written()) - set(files):  # what nothing makes any more
            path.unlink()
    return []


def made(only: int | None = None) -> tuple[dict[Path, str], list[str]]:
    """Every file of the pages, or of one, and what is wrong."""
    every = sources()
    numbers = [source.number for source in every if only in (None, source.number)]
    alone = [(n, each) for n in numbers if n not in PAINTED for each in LANGUAGES]
    tasks = [alone, *([(n, each) for n in numbers if n in PAINTED] for each in LANGUAGES)]
    tasks = [task for task in tasks if task]
    if len(tasks) == 1:
        found = [_made_pages(tasks[0])]
    else:  # each with one thread
        with ProcessPoolExecutor(len(tasks), multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_made_pages, tasks))
    files = {path: text for pages, _ in found for path, text in pages.items()}
    return files | _index(every) | _shared(), [sentence for _, wrong in found for sentence in wrong]


def _made_pages(task: list[tuple[int, str]]) -> tuple[dict[Path, str], list[str]]:
    """The files of some pages, each in a language, and what is wrong."""
    torch.set_num_threads(1)
    every, files, broken = {source.number: source for source in sources()}, {}, []
    opened = model()  # once: code on the pages gets the same one
    with torch.no_grad(), mock.patch.object(TextToImage, "embedded", lambda: opened):
        for number, language in task:
            more, wrong = _page(every[number], [*every.values()], language)
            files |= more
            broken += wrong
            print(f"  {every[number].name} ({language})", flush=True)
    return files, broken


def differs(path: Path, text: str) -> bool:
    """Whether a file is not there as it should be; pictures may differ a little."""
    old = path.read_text("utf-8") if path.is_file() else ""
    same = {".svg": alike, ".html": alike_pages}.get(path.suffix, str.__eq__)
    return not old or not same(old, text)


def written() -> list[Path]:
    """The pages, pictures and pages that move that are there."""
    return [*HERE.glob("*.md"), *PICTURES.glob("*"), *alive.FOLDER.glob("*")]


def measure(source: Source, language: str) -> Measured:
    """What a page's module measures and draws for one language."""
    return import_module(f"docs.book.figures.f{source.number:02}").measure(language)


def page_name(source: Source, language: str) -> str:
    return f"{source.name}.md" if language == "en" else f"{source.name}.{language}.md"


def _page(source: Source, every: list[Source], language: str) -> tuple[dict[Path, str], list[str]]:
    measured = measure(source, language)
    used = {claim for pair in source.pairs for claim in CLAIM.findall(pair[language])}
    holes = {hole for pair in source.pairs for hole in HOLE.findall(pair[language])}
    name = f"{source.name} ({language})"
    wrong = [f"{name}: does not hold: {i}" for i in used if not measured.claims.get(i)]
    wrong += [f"{name}: claimed and not said: {i}" for i in set(measured.claims) - used]
    wrong += [f"{name}: has no figure {hole}" for hole in holes - set(measured.figures)]
    wrong += [f"{name}: measured and not shown: {i}" for i in set(measured.figures) - holes]
    if wrong:
        return {}, wrong
    picture = f"{source.number:02}.{language}.svg"
    measured.figure.title = _filled(source.named["figure"][language], measured)
    text = _text(source, every, language, measured, picture)
    files = {HERE / page_name(source, language): text, PICTURES / picture: str(measured.figure)}
    for component in _components(source):
        links = _html_links(source, component, language)
        page = alive.page_of(component, language, links)
        files[alive.FOLDER / f"{component}.{language}.html"] = page
    return files, []


def _components(source: Source) -> list[str]:
    return [name for name, number in alive.PAGE.items() if number == source.number]


def _html_links(source: Source, component: str, language: str) -> str:
    """Back to the page, and to the other language."""
    page = term("live.page", language, title=source.named["title"][language])
    other = "zh" if language == "en" else "en"
    links = {page: f"../{page_name(source, language)}"}
    links[term("page.name", other)] = f"{component}.{other}.html"
    return " · ".join(f'<a href="{to}">{escape(name)}</a>' for name, to in links.items())


def _text(
    source: Source, every: list[Source], language: str, measured: Measured, picture: str
) -> str:
    def named(part: str) -> str:
        return _filled(source.named[part][language], measured)

    parts = [f"# {source.number}. {named('title')}", f"*{named('question')}*"]
    lines = [f"- **{term(f'page.{part}', language)}** {named(part)}" for part in _THREE]
    parts += ["\n".join(lines), f"![{named('figure')}](pictures/{picture})"]
    for block in source.body:
        if isinstance(block, Code):
            code = localized(block.text, language)
            parts += [f"```python\n{code}```", f"```text\n{printed(code)}```"]
        else:
            parts.append(_filled(block[language], measured))
    command = f"    python -m docs.book check {source.number}"
    parts += [f"## {term('page.exercise', language)}", named("exercise"), command]
    parts.append(_links(source, every, language))
    return "\n\n".join(parts) + "\n"


_THREE = ("what", "why", "how")


def _links(source: Source, every: list[Source], language: str) -> str:
    index = "README.md" if language == "en" else f"README.{language}.md"
    links = [f"[{term('page.contents', language)}]({index})"]
    for key, number in (("before", source.number - 1), ("next", source.number + 1)):
        for other in every:
            if other.number == number:
                label = term(f"page.{key}", language, title=other.named["title"][language])
                links.append(f"[{label}]({page_name(other, language)})")
    for component in _components(source):
        title = term(f"live.title_{component}", language)
        links.append(f"[{title}](live/{component}.{language}.html)")
    other = "zh" if language == "en" else "en"
    links.append(f"[{term('page.name', other)}]({page_name(source, other)})")
    return " · ".join(links)


def _filled(text: str, measured: Measured) -> str:
    """With its figures, and its claims as marks that a reader does not see."""
    text = HOLE.sub(lambda hole: measured.figures[hole[1]], text)
    return CLAIM.sub(lambda claim: f"<!-- c:{claim[1]} -->", text)


def localized(code: str, language: str) -> str:
    if language != "en":
        for english, other in IN_CODE.items():
            code = code.replace(english, other)
    return code


def printed(code: str) -> str:
    """What code prints; milliseconds are the reader's own, and are left out."""
    return re.sub(r" *[\d.]+ ms", " … ms", ran(code)[0])


def _shared() -> dict[Path, str]:
    """The document that tells of recall beside other tasks, with what trained.json holds."""
    path, found = HERE.parent / "recurrent_and_transformer.md", trained()
    rows = ["| network (weights) | " + " | ".join(f"{n:,} steps" for n in found["budgets"]) + " |"]
    rows.append("|---|" + "---|" * len(found["budgets"]))
    for name in ("lstm", "transformer"):
        right = [[f"{100 * at['right']:.0f}" for at in each] for each in found[name]]
        cells = [", ".join(seeds) for seeds in zip(*right, strict=True)]
        rows.append(f"| {name} ({found[f'{name} weights']}) | " + " | ".join(cells) + " |")
    head, _, rest = path.read_text("utf-8").partition("<!-- recall -->\n")
    _, mark, tail = rest.partition("<!-- /recall -->")
    table = "\n".join(rows)
    return {path: f"{head}<!-- recall -->\n\n{table}\n\n{mark}{tail}"}


def _index(every: list[Source]) -> dict[Path, str]:
    files: dict[Path, str] = {}
    for language in LANGUAGES:
        head = (SOURCES / f"index.{language}.md").read_text("utf-8")
        rows = [
            f"{s.number}. [{s.named['title'][language]}]({page_name(s, language)}): "
            f"{s.named['question'][language]}"
            for s in every
        ]
        name = "README.md" if language == "en" else f"README.{language}.md"
        files[HERE / name] = head.replace("<pages>", "\n".join(rows))
    return files
