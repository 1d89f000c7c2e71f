"""A page's source: paired paragraphs, English and Chinese side by side, code, and one figure.

A block ends at a blank line, code at its closing fence:

    [title]                a part with a name: title, question, what, why, how, figure, exercise
    en: One run
    zh: 一次运行

    en: A paragraph. {share} of all attention is given to the name.[c:10.names]
    zh: 一段话。……

    ```python              runs; what it prints is put below it, in both languages
        y = W x            four spaces: a formula, the same in both

    [formula]              one with words in it
    en:
        y = W x            what is seen
    zh:
        y = W x            看到的

Sentences that new weights could make untrue are followed by the id of their claim; {share} is
filled in.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

LANGUAGES = ("en", "zh")
NAMED = ("title", "question", "what", "why", "how", "figure", "exercise")
WORDS, STATEMENTS = 300, 15
CLAIM = re.compile(r"\[c:([\w.]+)\]")
HOLE = re.compile(r"\{(\w+)\}")
HAN = re.compile(r"[\u4e00-\u9fff]")
_WORDS = re.compile(r"\b[a-z]{2,} [a-z]{2,}\b|\b[a-z]{2,}: [a-z]{2,}")  # more than names
_AMOUNT = re.compile(
    r"%|\{\w+\}|\b(?:most(?:ly)?|usually|often|hardly|rarely|seldom|almost|nearly)\b", re.IGNORECASE
)


class SourceError(ValueError):
    """A page's source that cannot become two pages, and why."""


@dataclass(frozen=True)
class Pair:
    en: str
    zh: str

    def __getitem__(self, language: str) -> str:
        return self.en if language == "en" else self.zh


@dataclass(frozen=True)
class Source:
    """number: the page's; body: paragraphs (Pair), formulas and code (Code), in order."""

    number: int
    name: str
    named: dict[str, Pair]
    body: list[Pair | Formula | Code] = field(default_factory=list)

    @property
    def pairs(self) -> list[Pair]:
        return [*self.named.values(), *(block for block in self.body if isinstance(block, Pair))]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Formula:
    """Lines of one (four spaces before each), in either language."""

    en: str
    zh: str

    def __getitem__(self, language: str) -> str:
        return self.en if language == "en" else self.zh


def read_source(path: Path) -> Source:
    """Read a page's source, `01_one_run.md`.

    Raises:
        SourceError: a half is missing, a part is missing, or a rule of the book is broken.
    """
    named: dict[str, Pair] = {}
    body: list[Pair | Formula | Code] = []
    for block in _blocks(path.read_text("utf-8")):
        head = re.match(r"\[(\w+)\]\n", block)
        if block.startswith("```python\n"):
            body.append(Code(block.removeprefix("```python\n").removesuffix("```\n")))
        elif block.startswith("    "):
            body.append(_formula(f"en:\n{block}zh:\n{block}", path.name))
        elif block.startswith("[formula]\n"):
            body.append(_formula(block.removeprefix("[formula]\n"), path.name))
        elif head:
            if head[1] not in NAMED or head[1] in named:
                raise SourceError(f"{path.name}: [{head[1]}] is unknown, or there twice")
            named[head[1]] = _pair(block[head.end() :], path.name)
        else:
            body.append(_pair(block, path.name))
    source = Source(int(path.name[:2]), path.stem, named, body)
    check_source(source, path.name)
    return source


def check_source(source: Source, name: str) -> None:
    """Hold a page to the rules of the book; raises SourceError."""
    missing = [part for part in NAMED if part not in source.named]
    if missing:
        raise SourceError(f"{name}: no [{'], ['.join(missing)}]")
    codes = [block.text for block in source.body if isinstance(block, Code)]
    if not codes or any(_length(code) > STATEMENTS for code in codes):
        raise SourceError(f"{name}: needs code, of at most {STATEMENTS} statements")
    words = sum(len(HOLE.sub("0", CLAIM.sub("", pair.en)).split()) for pair in source.pairs)
    if words > WORDS:
        raise SourceError(f"{name}: {words} words, and a page has at most {WORDS}")
    for pair in source.pairs:
        if sorted(CLAIM.findall(pair.en)) != sorted(CLAIM.findall(pair.zh)):
            raise SourceError(f"{name}: the languages claim different things: {pair.en[:60]}")
        if set(HOLE.findall(pair.en)) != set(HOLE.findall(pair.zh)):
            raise SourceError(f"{name}: the languages have different figures: {pair.en[:60]}")
    asked = [source.named[part] for part in ("question", "figure", "exercise")]
    for pair in source.pairs:
        uncovered = "" if pair in asked else CLAIM.split(pair.en)[-1]
        if _AMOUNT.search(uncovered):
            raise SourceError(f"{name}: says how much without a claim: {uncovered}")


def _length(code: str) -> int:
    """How many statements, imports not counted; the formatter decides on lines."""
    nodes = ast.walk(ast.parse(code))
    return sum(isinstance(n, ast.stmt) and not isinstance(n, _IMPORTS) for n in nodes)


_IMPORTS = (ast.Import, ast.ImportFrom)


def _blocks(text: str) -> list[str]:
    found = re.findall(r"```python\n.*?^```\n|(?:^[^\n]+\n)+", text, re.DOTALL | re.MULTILINE)
    return [block for block in found if block.strip()]


def _formula(text: str, name: str) -> Formula:
    match = re.fullmatch(r"en:\n((?: {4}.*\n)+)zh:\n((?: {4}.*\n?)+)", text)
    if match is None:
        raise SourceError(f"{name}: a half is missing: {text.strip()[:80]}")
    english = _WORDS.search(match[2])
    if english:
        raise SourceError(f"{name}: the Chinese half has English: {english[0]}")
    return Formula(match[1].rstrip("\n"), match[2].rstrip("\n"))


def _pair(text: str, name: str) -> Pair:
    match = re.fullmatch(r"en: (.*?)\nzh: (.*?)\n?", text, re.DOTALL)
    if match is None:
        raise SourceError(f"{name}: a half is missing: {text.strip()[:80]}")
    pair = Pair(match[1].strip(), match[2].strip())
    if not HAN.search(pair.zh):
        raise SourceError(f"{name}: the Chinese half has no Chinese: {pair.zh[:60]}")
    return pair
