"""A reader of files or texts, and how one case of it is judged."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sdcore.errors import SdcoreError
from tests.reliability.watch import forget_highest, memory

CPU_SECONDS, MEMORY = 2.0, 300 << 20
HANGING = 30  # seconds of processor time, after which a case is ended
REFUSED, OPENED, UNFORESEEN = "refused", "opened", "should not have"
_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Reader:
    """What reads something foreign.

    Attributes:
        commit, release: how many cases there are for every commit, and for a release.
        damage: writes a bad input into an empty folder; the name of what it did.
        open: reads it.
        accepts: patterns of damage that may be opened nevertheless, with the reason why it does no
            harm; the first that fits counts, and one without a reason may not be opened.
        may: audit events that it may cause, such as starting the converter's process.
    """

    name: str
    commit: int
    release: int
    damage: Callable[[Path, random.Random], str]
    open: Callable[[Path], object]
    accepts: Mapping[str, str] = field(default_factory=dict[str, str])
    may: tuple[str, ...] = ()

    def reason(self, damage: str) -> str:
        """Why a damage may be opened; "" where it may not."""
        fitting = (why for of, why in self.accepts.items() if fnmatchcase(damage, of))
        return next(fitting, "")


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        answer: REFUSED, OPENED, UNFORESEEN, or how the process ended.
        seconds, mib: of processor time, and how much the process grew.
        said: the error, or what was wrong.
        forbidden: code that ran, a connection, a file written elsewhere.
    """

    reader: str
    number: int
    damage: str
    answer: str
    seconds: float = 0.0
    mib: int = 0
    said: str = ""
    forbidden: tuple[str, ...] = ()

    @property
    def slow(self) -> bool:
        return self.seconds > CPU_SECONDS

    @property
    def large(self) -> bool:
        return self.mib << 20 > MEMORY


class Hanging(BaseException):
    """A case takes without end."""


class Traceback(Exception):
    """A command printed a traceback, or what it says in its place."""


def judge(reader: Reader, number: int, folder: Path) -> Outcome:
    """Make case `number` of a reader in a folder of its own, and see what comes of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    damage = reader.damage(folder, random.Random(f"{reader.name} {number}"))
    used, start = forget_highest(), time.process_time()
    answer, said = REFUSED, ""
    with _quiet(), _ended(), _audited(folder, reader.may) as forbidden:
        try:
            reader.open(folder)
            answer = OPENED
        except SdcoreError as error:
            said = str(error)
            if not (error.what and error.why and error.hint) or len(said) > 4000:
                answer, said = UNFORESEEN, f"no proper message: {said:.200}"
        except Hanging:
            answer, said = "hangs", f"over {HANGING} s"
        except BaseException as error:
            answer, said = UNFORESEEN, f"{type(error).__name__}: {error!s:.300}"
    seconds = time.process_time() - start
    grown = max(0, memory("VmHWM") - used) >> 20 if used else 0
    return Outcome(
        reader.name, number, damage, answer, round(seconds, 3), grown, said, tuple(forbidden)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    def end(*_: Any) -> None:
        raise Hanging

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, HANGING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


_watching: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextlib.contextmanager
def _audited(folder: Path, may: tuple[str, ...]) -> Iterator[list[str]]:
    """What happens in the block that no input may cause. Python keeps hooks for ever: one is."""
    found: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith((*_CODE, *_NETWORK)) and event not in may:
            found.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], str) and not may:
            path, flags = arguments[0], arguments[2] if isinstance(arguments[2], int) else 0
            elsewhere = not os.path.abspath(path).startswith((str(folder), "/dev/", "/proc/"))
            if flags & _WRITING and elsewhere:
                found.append(f"writes {path!r:.100}")

    if not _watching:
        sys.addaudithook(lambda event, arguments: _watching[-1](event, arguments))
    _watching.append(watch)
    try:
        yield found
    finally:
        _watching.pop()
        _watching or _watching.append(lambda event, arguments: None)
