"""Cases in processes that may die, each outcome written as it comes, and what came of all."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.reliability.corpus import READERS
from tests.reliability.corpus.case import OPENED, REFUSED, UNFORESEEN, Outcome, judge
from tests.reliability.corpus.weights import model

Case = tuple[str, int]
STUCK = 600.0  # seconds without an outcome, after which a process is killed
_SHOWN = 4  # damages of each reason
_DATA = 8 << 30  # bytes that a process may have


def cases(release: bool) -> list[Case]:
    """All of them."""
    counts = {name: r.release if release else r.commit for name, r in READERS.items()}
    return [(name, number) for name, count in counts.items() for number in range(count)]


def run(work: Sequence[Case], log: Path, processes: int, seconds: float) -> list[Outcome]:
    """Judge cases; those whose outcome the log has are not done again.

    They come in an order of chance, the same each time: what is done in a part of the time is a
    sample of all.

    Args:
        log: a line of JSON for each outcome. It may be of a run that was stopped.
        seconds: after which no case is begun.
    """
    done = {(outcome.reader, outcome.number) for outcome in read(log)}
    left = [case for case in work if case not in done]
    random.Random(0).shuffle(left)
    shares = [left[start::processes] for start in range(processes)]
    until = time.monotonic() + seconds
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="sdcore-cases-") as folder:
        running = [
            _Share(fork, share, log, Path(folder) / str(n), until) for n, share in enumerate(shares)
        ]
        while any(share.alive() for share in running):
            time.sleep(0.2)
    wanted = set(work)
    return [outcome for outcome in read(log) if (outcome.reader, outcome.number) in wanted]


class _Share:
    """A process that does a share of the cases, and the next one where it died."""

    def __init__(self, fork, work: Sequence[Case], log: Path, folder: Path, until: float) -> None:
        self.fork, self.work, self.log, self.folder, self.until = fork, work, log, folder, until
        folder.mkdir()
        self.at = folder / "at"
        self._begin(0)

    def _begin(self, first: int) -> None:
        self.at.write_text(str(first))
        arguments = (self.work, first, self.log, self.folder, self.until)
        self.process = self.fork.Process(target=_work, args=arguments)
        self.process.start()

    def alive(self) -> bool:
        """Whether it works on; where its process died, that is an outcome, and it goes on."""
        if self.process.is_alive():
            if time.time() - self.at.stat().st_mtime > STUCK:
                self.process.kill()
            return True
        self.process.join()
        place = int(self.at.read_text() or 0)
        if self.process.exitcode == 0 or place >= len(self.work):
            return False
        died = f"process ended: {self.process.exitcode}"
        _append(self.log, Outcome(*self.work[place], "", died))
        self._begin(place + 1)
        return True


def _work(work: Sequence[Case], first: int, log: Path, folder: Path, until: float) -> None:
    import resource

    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA, _DATA))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of bad pictures
    model()
    warmed: set[str] = set()
    for place in range(first, len(work)):
        if time.monotonic() > until:
            return
        (folder / "at").write_text(str(place))
        name, number = work[place]
        if name not in warmed:  # sound inputs are made, and modules read, before anything counts
            judge(READERS[name], -1, folder / "case")
            warmed.add(name)
        _append(log, judge(READERS[name], number, folder / "case"))


def _append(log: Path, outcome: Outcome) -> None:
    with log.open("a") as file:  # a line in one write: processes do not mix theirs
        file.write(json.dumps(asdict(outcome)) + "\n")


def read(log: Path) -> Iterator[Outcome]:
    for line in log.read_text().splitlines() if log.exists() else ():
        values = json.loads(line)
        yield Outcome(**{**values, "forbidden": tuple(values["forbidden"])})


# --- what came of it -----------------------------------------------------------------------------


def is_bad(outcome: Outcome) -> bool:
    """What there must be none of."""
    answered = outcome.answer in (REFUSED, OPENED)
    return (
        not answered or outcome.slow or outcome.large or bool(outcome.forbidden) or silent(outcome)
    )


def silent(outcome: Outcome) -> bool:
    """Opened, without a reason why that is right."""
    return outcome.answer == OPENED and not READERS[outcome.reader].reason(outcome.damage)


def table(outcomes: Iterable[Outcome]) -> str:
    """Counts by reader, one table."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for one in outcomes:
        names = [
            "inputs",
            *(["refused"] if one.answer == REFUSED else []),
            *(["opened"] if one.answer == OPENED else []),
            *(["without a reason"] if silent(one) else []),
            *(["should not have"] if one.answer == UNFORESEEN else []),
            *(["crashed"] if one.answer not in (REFUSED, OPENED, UNFORESEEN) else []),
            *(["over 2 s"] if one.slow else []),
            *(["over 300 MB"] if one.large else []),
            *(["code, network, files"] if one.forbidden else []),
        ]
        for reader in (one.reader, "all"):
            rows[reader].update(names)
    columns = ("inputs", "refused", "opened", "without a reason", "should not have", "crashed")
    columns += ("over 2 s", "over 300 MB", "code, network, files")
    lines = [f"| reader | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    order = [name for name in (*READERS, "all") if name in rows]
    lines += [f"| {n} | {' | '.join(f'{rows[n][c]:,}' for c in columns)} |" for n in order]
    return "\n".join(lines)


def opened(outcomes: Iterable[Outcome]) -> str:
    """What was opened, how often, and why that does no harm."""
    damages: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in outcomes:
        if one.answer == OPENED:
            why = READERS[one.reader].reason(one.damage) or "NO REASON"
            damages[one.reader, why][one.damage] += 1
    lines: list[str] = []
    for (name, why), counts in sorted(damages.items()):
        shown = [f"{damage} {count}" for damage, count in counts.most_common(_SHOWN)]
        more = f", and {len(counts) - _SHOWN} others" if len(counts) > _SHOWN else ""
        lines.append(f"{counts.total():6,} {name}: {why}\n       ({', '.join(shown)}{more})")
    return "\n".join(lines)
