"""A reader's answer held against an exercise: what it does is checked, not how it is written."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from docs.book.book import term
from docs.book.building import SOURCES
from docs.book.source import LANGUAGES, read_source


@dataclass(frozen=True)
class Exercise:
    """What the reader writes.

    header: the function's first line. check: takes the function, and gives None where it is right
    or the name of a hint in terms.toml, hints.NN.
    """

    header: str
    check: Callable[[Callable[..., Any]], str | None]

    @property
    def function(self) -> str:
        return self.header.removeprefix("def ").partition("(")[0]


def exercise(page: int) -> Exercise:
    return import_module(f"docs.book.exercises.e{page:02}").EXERCISE


def stub(page: int) -> str:
    """A file to fill in: the question in both languages, and a TODO."""
    (path,) = SOURCES.glob(f"{page:02}_*.md")
    question = read_source(path).named["exercise"]
    lines = [question[language] for language in LANGUAGES]
    return f'"""{lines[0]}\n\n{lines[1]}\n"""\n\nimport torch\n\n\n{todo(page)}'


def todo(page: int) -> str:
    """The function to write, without what it does."""
    return f"{exercise(page).header}\n    raise NotImplementedError  # TODO\n"


def judged(page: int, function: Callable[..., Any]) -> str | None:
    """None if the answer is right, else the full name of its hint."""
    torch.manual_seed(0)
    hint = exercise(page).check(function)
    return None if hint is None else f"hints.{page:02}.{hint}"


def main(page: int, file: Path | None, language: str) -> int:
    file = file or Path("answers") / f"{page:02}.py"
    shown = LANGUAGES if language == "both" else (language,)

    def say(name: str, **values: object) -> None:
        for each in shown:
            print(term(name, each, **values))

    try:
        asked = exercise(page)
    except ModuleNotFoundError:
        say("check.no_page", page=page)
        return 2
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(stub(page), "utf-8")
        say("check.stub", file=file)
        return 2
    names: dict[str, Any] = {"__name__": "answer"}
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        say("check.unread", file=file, error=error)
        return 1
    try:
        exec(compile(text, str(file), "exec"), names)
        if asked.function not in names:
            say("check.no_function", function=asked.function, file=file)
            return 1
        hint = judged(page, names[asked.function])
    except (Exception, SystemExit, KeyboardInterrupt):  # whatever a reader's file does
        traceback.print_exc()
        say("check.raised")
        return 1
    say("check.right" if hint is None else hint)
    return 0 if hint is None else 1
