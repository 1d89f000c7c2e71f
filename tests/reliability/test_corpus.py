"""The corpus of bad inputs: a few of each reader. All of it: `python -m tests.reliability`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcore.errors import SdcoreError
from tests.reliability.corpus import READERS, run
from tests.reliability.corpus.case import OPENED, REFUSED, UNFORESEEN, judge
from tests.reliability.corpus.weights import model


@pytest.mark.parametrize("name", READERS)
def test_a_few_of_each_reader(tmp_path: Path, name: str) -> None:
    model()
    for number in range(3):
        outcome = judge(READERS[name], number, tmp_path / "case")
        assert not run.is_bad(outcome), outcome


def test_counts() -> None:
    assert len(run.cases(release=False)) >= 4000 and len(run.cases(release=True)) >= 61_000


def _opened(folder: Path) -> None:
    pass


def _refused(folder: Path) -> None:
    raise SdcoreError("what", "why", "hint")


def _other(folder: Path) -> None:
    raise KeyError("x")


def _code(folder: Path) -> None:
    import os

    os.system("true")


def _file(folder: Path) -> None:
    (folder.parent / "elsewhere").write_text("x")


def _slow(folder: Path) -> None:
    import time

    end = time.process_time() + 2.1
    while time.process_time() < end:
        pass


def _large(folder: Path) -> None:
    assert len(bytes(400 << 20)) and len(b"x" * (400 << 20))


def test_what_a_case_comes_to(tmp_path: Path) -> None:
    """The judge sees each of what there may be none of."""
    how = {_opened: OPENED, _refused: REFUSED, _other: UNFORESEEN}
    reader = replace(READERS["prompts"], accepts={"*": "all"})
    for open, answer in how.items():
        outcome = judge(replace(reader, open=open), 0, tmp_path / "case")
        assert outcome.answer == answer and run.is_bad(outcome) == (answer == UNFORESEEN)
    for open in (_code, _file, _slow, _large):
        assert run.is_bad(judge(replace(reader, open=open), 0, tmp_path / "case")), open.__name__
    silent = judge(replace(READERS["weights"], open=_opened), 5, tmp_path / "case")
    assert silent.answer == OPENED and run.silent(silent), silent.damage


def test_a_process_that_dies_is_an_outcome_and_the_next_case_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def die(folder: Path) -> None:
        if counter.stat().st_size == 3:  # the first is one to warm up, of which nothing counts
            os._exit(9)

    def damage(folder: Path, rng: object) -> str:
        with counter.open("ab") as file:
            file.write(b".")
        return "x"

    counter = tmp_path / "counter"
    monkeypatch.setitem(READERS, "prompts", replace(READERS["prompts"], open=die, damage=damage))
    work, log = [("prompts", number) for number in range(4)], tmp_path / "log"
    outcomes = run.run(work, log, 1, 100)
    assert {one.number for one in outcomes} == {0, 1, 2, 3}
    assert sum("process ended" in one.answer for one in outcomes) == 1
    assert run.run(work, log, 1, 100) == outcomes, "what the log has is not done again"


@pytest.mark.slow
def test_runs_that_paint_are_killed() -> None:
    """More of them: python -m tests.reliability --kills 500"""
    from tests.reliability.kills import kill

    assert kill(20) == 0


@pytest.mark.slow
def test_requests_in_threads_are_as_alone() -> None:
    """More of them: python -m tests.reliability --requests 20000"""
    from tests.reliability.soak import soak

    assert soak(200, 16) == 0
