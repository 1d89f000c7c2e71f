"""What ends every command in the same way: errors in three parts, warnings, exit codes."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from io import TextIOWrapper
from typing import Any, NoReturn, cast

from sdcore.app.other_flags import answer, in_our_words
from sdcore.errors import MemoryLimitError, SdcoreError, UsageError

EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are in three parts, as all others of a command, and which knows flags
    as other tools have them.
    """

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse does it, of which every other way of parsing is made."""
        given = sys.argv[1:] if args is None else args
        known = cast("dict[str, Any]", self._option_string_actions)
        return super().parse_known_args(in_our_words(given, known), namespace)

    def error(self, message: str) -> NoReturn:
        hint = f"See what `{self.prog} --help` says."
        known = [*cast("dict[str, Any]", self._option_string_actions)]
        flags: list[str] = re.findall(r"(?<!\S)--[\w-]+", message)
        for flag in flags:
            near = get_close_matches(flag, known, n=1)
            if (told := answer(flag)) is not None:
                hint = told
            elif near and near[0] != flag:
                hint = f"Did you mean {near[0]}? `{self.prog} --help` lists all."
        why = f"{message[:1].upper()}{message[1:]}."
        error = UsageError("The command line cannot be read.", why, hint)
        self.exit(error.exit_code, f"error: {error}\n")


def run(
    work: Callable[[argparse.Namespace], None],
    options: argparse.Namespace,
    *,
    stopped: str = "stopped; what was painted before is saved",
) -> int:
    """Do it; the exit code: 0 ok, 2 usage, 3 bad file, 4 out of memory, 5 non-finite numbers.

    Args:
        stopped: what is said where Ctrl-C stopped it.
    """
    warnings.showwarning = show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a path that the terminal cannot show ends no run
            stream.reconfigure(errors="backslashreplace")
    try:
        work(options)
    except BrokenPipeError:  # whoever read what is printed has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        failure = as_failure(error)
        print(f"error: {in_flags(str(failure), options)}", file=sys.stderr)
        return failure.exit_code
    return 0


def as_failure(error: Exception) -> SdcoreError:
    """Any error in three parts."""
    if isinstance(error, SdcoreError):
        return error
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "out of memory" in first_line or "allocate" in first_line:
        return MemoryLimitError(
            "There is not enough memory for this run.",
            first_line or "The system refused to give more.",
            "Use a smaller --batch-size or size, --precision fp16, or --attention chunked.",
        )
    return SdcoreError(
        "Something went wrong that should not have.",
        f"{type(error).__name__}: {first_line}.",
        "Run it again with --debug, and report what it prints.",
    )


def in_flags(text: str, options: argparse.Namespace) -> str:
    """A message that names arguments of Python, with the flags in their place."""
    text, budget, part = text.partition("raise the budget: ")  # whose parts are no flags
    names = [name for name in vars(options) if "_" in name]
    for name in names:
        text = re.sub(rf"(?<![\w-]){name}(=)?", "--" + name.replace("_", "-") + r"\1", text)
    # A name of one word is also a word of the language: only where the message begins with it, or
    # where a value follows.
    every = "|".join(vars(options))
    text = re.sub(rf"^({every})(?= is )", r"--\1", text)
    text = re.sub(rf"(?<![\w-])({every})(?==[\w.\"'])", r"--\1", text)
    text = re.sub(r"(--[a-z-]+)=True\b", r"\1", text)  # a switch
    text = re.sub(r"(--[a-z-]+)=", r"\1 ", text)
    return f"{text}raise it with --budget {part}" if budget else text


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
