"""Tell what a model is: a folder, a single file, a LoRA, an embedding, or a name on the hub.

sdcore inspect model.safetensors
"""

from __future__ import annotations

import argparse
import json

from sdcore.app.command import Parser
from sdcore.errors import exit_on_error


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Tell what a model is, from headers and settings: no weights are read.",
    )
    add = parser.add_argument
    add("model", metavar="PATH", help="folder, file, or hub name (then: what would be fetched)")
    add("--variant", help="weight files to look at, such as fp16 (default: the plain ones)")
    add("--hash", action="store_true", help="also hash whole files, which takes longer")
    add("--json", action="store_true", help="print JSON (default: lines for people)")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = make_parser(prog).parse_args(arguments)
    from sdcore.checkpoint.inspection import inspect, lines

    with exit_on_error():
        report = inspect(options.model, variant=options.variant, hashes=options.hash)
        print(json.dumps(report, indent=2) if options.json else "\n".join(lines(report)))
    return 0
