"""The book: fourteen pages from the lesson on Transformers to the UNet, in English and Chinese.

python -m docs.book build [--only 7]   measure, draw, and write the pages
python -m docs.book train              learn again what takes minutes: trained.json
python -m docs.book check 7            check what you wrote in answers/07.py
python -m docs.book notebooks          the pages as notebooks, to run in Jupyter
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from docs.book import building, checking, notebooks
from docs.book.training import train


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.book", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="measure, draw, and write the pages")
    build.add_argument("--only", type=int, metavar="N", help="this page alone")
    check = commands.add_parser("check", help="check a reader's answer")
    check.add_argument("page", type=int, metavar="N")
    check.add_argument("--file", type=Path, help="the answer (answers/NN.py)")
    check.add_argument("--language", choices=("en", "zh", "both"), default="both")
    commands.add_parser("train", help="learn again what takes minutes")
    cells = commands.add_parser("notebooks", help="write the pages as notebooks")
    cells.add_argument("--to", type=Path, default=Path("build/notebooks"), metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    if chosen.command == "train":
        train()
        return 0
    if chosen.command == "notebooks":
        notebooks.write(chosen.to)
        print(chosen.to)
        return 0
    if chosen.command == "check":
        return checking.main(chosen.page, chosen.file, chosen.language)
    began = time.monotonic()
    broken = building.build(chosen.only)
    for sentence in broken:
        print(f"no page was written: {sentence}", file=sys.stderr)
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
