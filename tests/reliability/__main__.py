"""All damaged and hostile files, counted by what was damaged: python -m tests.reliability

Runs the tests of this folder, the slow ones too; further arguments go to pytest. Each case asserts
that its file is refused with an error that names it (or, where damage to a setting leaves a sound
model, opened), within two seconds of processor time, with little memory, and nothing written.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest


class Tally:
    """Counts outcomes by test file."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or "[" not in report.nodeid or "accepted" in report.nodeid:
            return
        answer = dict(report.user_properties).get("answer", "refused")
        test = report.nodeid.split("[")[0].removeprefix("tests/reliability/")
        self.counts[test][str(answer) if report.passed else report.outcome] += 1


def main() -> int:
    tally = Tally()
    arguments = ["-q", "-p", "no:cacheprovider", str(Path(__file__).parent), *sys.argv[1:]]
    code = pytest.main(arguments, [tally])
    answers = ("refused", "opened", "failed")
    print("\n| test | files | refused | harmless, opened | failed |\n|---|---|---|---|---|")
    total = sum(tally.counts.values(), Counter[str]())
    for test, counts in [*tally.counts.items(), ("all", total)]:
        cells = (counts.total(), *(counts[answer] for answer in answers))
        print(f"| {test} | {' | '.join(map(str, cells))} |")
    return code


if __name__ == "__main__":
    sys.exit(main())
