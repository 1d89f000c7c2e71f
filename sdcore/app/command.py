"""What ends every command in the same way: errors in three parts, warnings, exit codes."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn, cast

from sdcore.app.other_flags import answer, in_our_words
from sdcore.errors import (
    FileError,
    MemoryLimitError,
    SdcoreError,
    UsageError,
    is_terminal,
    visible,
)

EXIT_INTERRUPTED, EXIT_PIPE, EXIT_TERMINATED = 130, 141, 143  # 128 and the signal's number
# Seconds. `timeout` and supervisors signal the process and then its group: that is one wish.
_ONE_SIGNAL = 1.0
# In a message: what is quoted.
_OWN_TEXT = r"(?<![\w=])'[^'\n]*'(?!\w)|(?<![\w=])\"[^\"\n]*\"(?!\w)"


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

    def _print_message(self, message: str, file: Any = None) -> None:
        """Without argparse's silence where a stream takes nothing more."""
        if message:
            (say if file is sys.stdout else tell)(message.removesuffix("\n"))

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
    parse: Callable[[Sequence[str] | None, argparse.Namespace], object],
    arguments: Sequence[str] | None,
    *,
    stopped: str = "stopped; what was painted before is saved",
    computes: bool = True,
) -> int:
    """Read the command line and do it; the exit code, see `sdcore.app.cli.main`.

    Args:
        parse: fills the options in from the arguments, as `ArgumentParser.parse_args`.
        stopped: what is said where Ctrl-C or SIGTERM stopped it.
        computes: whether it needs torch, and not headers of files alone.
    """
    options = argparse.Namespace()

    def do() -> None:
        parse(arguments, options)
        if computes:
            _wait_less_busily()
            _import_without_compiler()
            from sdcore.machine import keep_freed_memory  # which imports torch

            keep_freed_memory()
        work(options)

    return guarded(do, options, stopped)


def _wait_less_busily() -> None:
    """Let threads of torch's OpenMP give up their core sooner while they wait for one another.

    Where another program is busy they wait for it, too: six times the time of a picture of the
    embedded model with OpenMP's own 300,000 turns, three times with these; on a quiet machine the
    same. It reads its settings when it is loaded, so before torch; who sets them keeps them.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "50000")


def _import_without_compiler() -> None:
    """Import diffusers without torch's compiler, which takes seconds and which no command uses.

    diffusers marks a class for it where it is there. Whoever imports the compiler later gets it.
    """
    if "torch._dynamo" in sys.modules or "diffusers.utils" in sys.modules:
        return
    modules = cast("dict[str, Any]", sys.modules)
    modules["torch._dynamo"] = None  # an import of it is an ImportError
    try:
        import_module("diffusers.utils.torch_utils")
    finally:
        del modules["torch._dynamo"]


def guarded(
    work: Callable[[], object], options: argparse.Namespace, stopped: str = "stopped"
) -> int:
    """Do it, whatever becomes of it and of the streams; the exit code.

    Args:
        options: of the command line, as far as they are known when something fails.
    """
    warnings.showwarning = show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal cannot show ends no run
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            try:
                work()
            finally:
                if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has read enough
        _give_up_streams()
        return EXIT_PIPE
    except KeyboardInterrupt as stop:  # or SIGTERM
        tell("\n" * is_terminal(sys.stderr) + stopped)
        return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
    except Exception as error:
        if getattr(options, "debug", False):
            raise
        failure = as_failure(error)
        tell(f"error: {_in_flags(failure, options)}")
        if isinstance(error, OSError):
            _give_up_streams()
        return failure.exit_code
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def _terminable() -> Generator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that drafts are removed; one after `_ONE_SIGNAL`
    ends it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    first = None

    def end(number: int, _: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            raise Terminated
        if now - first > _ONE_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _give_up_streams() -> None:
    """Let Python's last flush of a stream that takes nothing more go nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except AttributeError:  # it is closed
            pass


def say(text: object) -> None:
    """Print a line of the result, at once."""
    print(visible(str(text)), flush=True)


def tell(text: object) -> None:
    """Print a line beside the result; where standard error takes none, nothing is lost."""
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        return  # print would take standard output in its place
    with suppress(OSError):
        print(visible(str(text)), file=sys.stderr, flush=True)


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
    if isinstance(error, OSError) and error.errno is not None:
        # Of files and folders that nobody foresaw; only streams have no name.
        return FileError(
            f"{error.filename or 'What is printed'} could not be read or written.",
            f"{error.strerror}.",
            "Check that it is there, its rights, and the free space.",
        )
    return SdcoreError(
        "Something went wrong that should not have.",
        f"{type(error).__name__}: {first_line:.500}.",
        "Run it again with --debug, and report what it prints.",
    )


def _in_flags(error: SdcoreError, options: argparse.Namespace) -> str:
    """An error for people at a command line; of a file it says what stands there, not in flags."""
    if not isinstance(error, FileError):
        return in_flags(str(error), options)
    said = str(error).removesuffix(error.hint)
    return said + in_flags(error.hint, options)


def in_flags(text: str, options: argparse.Namespace) -> str:
    """A message that names arguments of Python, with the flags in their place.

    What is quoted, and parts of paths, is somebody's own text and stays.
    """
    text, budget, part = text.partition("raise the budget: ")  # whose parts are no flags
    every = "|".join(vars(options)) or "(?!)"
    long = "|".join(name for name in vars(options) if "_" in name) or "(?!)"
    # A name of one word is also a word of the language: only where the message begins with it, or
    # where a value follows.
    given = rf"(?P<given>{every})=(?P<on>True\b)?(?=[\w.\"']|(?<=True))"
    name = rf"(?P<long>{long})(?!\.?[/\\\w-])|\A(?P<first>{every})(?= is )"

    def shown(found: re.Match[str]) -> str:
        name = found["given"] or found["long"] or found["first"]
        if name is None:
            return found[0]
        return f"--{name.replace('_', '-')}" + " " * bool(found["given"] and not found["on"])

    text = re.sub(rf"{_OWN_TEXT}|(?<![\w/\\.-])(?:{given}|{name})", shown, text)
    return f"{text}raise it with --budget {part}" if budget else text


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    tell(f"warning: {message}")
