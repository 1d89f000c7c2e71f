"""From sources and measurements to pages: nothing is written unless every claim holds."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch

from docs.book.book import HERE, IN_CODE, Measured, model, term
from docs.book.drawing import alike
from docs.book.source import CLAIM, HOLE, LANGUAGES, Code, Pair, Source, SourceError, read_source
from sdcore import TextToImage

SOURCES, PICTURES = HERE / "source", HERE / "pictures"


def sources() -> list[Source]:
    return [read_source(path) for path in sorted(SOURCES.glob("[0-9]*.md"))]


def build(only: int | None = None) -> list[str]:
    """Write the pages; returns what is wrong, and then nothing is written."""
    files, broken = made(only)
    if broken:
        return broken
    PICTURES.mkdir(exist_ok=True)
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
    # The later pages take longest. A process for each core, with one thread.
    numbers = sorted((s.number for s in every if only in (None, s.number)), reverse=True)
    processes = min(len(numbers), os.cpu_count() or 1)
    if processes > 1:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_made_page, numbers))
    else:
        found = [_made_page(number) for number in numbers]
    files = {path: text for pages, _ in found for path, text in pages.items()}
    return files | _index(every), [sentence for _, wrong in found for sentence in wrong]


def _made_page(number: int) -> tuple[dict[Path, str], list[str]]:
    """The files of a page in every language, and what is wrong."""
    torch.set_num_threads(1)
    every, files, broken = sources(), {}, []
    (source,) = (each for each in every if each.number == number)
    opened = model()  # once: code on the pages gets the same one
    with torch.no_grad(), mock.patch.object(TextToImage, "embedded", lambda: opened):
        for language in LANGUAGES:
            more, wrong = _page(source, every, language)
            files |= more
            broken += wrong
    print(f"  {source.name}", flush=True)
    return files, broken


def differs(path: Path, text: str) -> bool:
    """Whether a file is not there as it should be; pictures may differ a little."""
    old = path.read_text("utf-8") if path.is_file() else ""
    return not (alike(old, text) if path.suffix == ".svg" else old == text)


def written() -> list[Path]:
    """The pages and pictures that are there."""
    return [*HERE.glob("*.md"), *PICTURES.glob("*")]


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
    return {HERE / page_name(source, language): text, PICTURES / picture: str(measured.figure)}, []


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
        elif isinstance(block, Pair):
            parts.append(_filled(block[language], measured))
        else:
            parts.append(block.text.rstrip("\n"))
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


@cache
def printed(code: str) -> str:
    """What code prints; milliseconds are the reader's own, and are left out."""
    out, names = io.StringIO(), {"__name__": "page"}
    with contextlib.redirect_stdout(out), torch.enable_grad():
        exec(compile(code, "page", "exec"), names)
    if not out.getvalue():
        raise SourceError(f"code prints nothing: {code[:60]}")
    return re.sub(r" *[\d.]+ ms", " … ms", out.getvalue())


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
