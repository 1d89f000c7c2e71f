"""Bad inputs, kills and many requests at once, counted: python -m tests.reliability

With no flag about 4,700 bad inputs, made by number (tests/reliability/corpus); the exit code is 1
where one of them came to what none may come to. A case is repeated by --only READER --first NUMBER
--count 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    add = parser.add_argument
    cores = os.cpu_count() or 1
    add("--release", action="store_true", help="the 73,500 inputs of a release")
    add("--only", action="append", metavar="READER", help="of these readers alone")
    text = "from this case of each reader, or kill, on"
    add("--first", type=int, default=0, metavar="N", help=text)
    add("--count", type=int, metavar="N", help="so many of each reader")
    text = "a file with what was found; a run that was stopped goes on with it (default: a new one)"
    add("--log", type=Path, metavar="FILE", help=text)
    add("--seconds", type=float, default=float("inf"), help="begin no case after so many")
    add("--processes", type=int, default=cores, help="(default: one a core)")
    add("--kills", type=int, metavar="N", help="kill so many runs that paint, at random times")
    add("--kills-training", type=int, metavar="N", help="kill so many fine-tunings")
    add("--requests", type=int, metavar="N", help="paint so many pictures in threads")
    add("--threads", type=int, default=16, help="of --requests (default: %(default)s)")
    add("--fuzz", type=float, metavar="MINUTES", help="search bad inputs of each reader")
    options = parser.parse_args()
    if options.kills is not None:
        from tests.reliability.kills import kill

        return kill(options.kills)
    if options.kills_training is not None:
        from tests.reliability.training_kills import kill_training

        return kill_training(options.kills_training, options.first, options.seconds)
    if options.requests is not None:
        from tests.reliability.soak import soak

        return soak(options.requests, options.threads)
    if options.fuzz is not None:
        from tests.reliability.fuzz import fuzz

        return fuzz(options.fuzz, options.only)
    return corpus(options)


def corpus(options: argparse.Namespace) -> int:
    from tests.reliability.corpus import READERS
    from tests.reliability.corpus import run as running

    if unknown := set(options.only or ()) - set(READERS):
        print(f"no reader {', '.join(unknown)}; there are {', '.join(READERS)}", file=sys.stderr)
        return 2
    work = [
        (name, number)
        for name, number in running.cases(options.release)
        if name in (options.only or READERS)
        and number >= options.first
        and (options.count is None or number < options.first + options.count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "log.jsonl"
        outcomes = running.run(work, log, options.processes, options.seconds)
    print(f"{running.table(outcomes)}\n\nopened, and why that does no harm:")
    print(running.opened(outcomes))
    bad = [outcome for outcome in outcomes if running.is_bad(outcome)]
    for one in bad:
        print(f"\n{one.reader} {one.number} ({one.damage}): {one.answer}, {one.seconds:g} s")
        print(f"  {one.mib} MiB {one.forbidden or ''} {one.said:.300}")
    if len(outcomes) < len(work):
        print(f"\n{len(work) - len(outcomes):,} of {len(work):,} inputs were not tried")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
