"""Tell what a model is: a folder, a single file, a LoRA, an embedding, or a name on the hub.

sdcore inspect model.safetensors
"""

from __future__ import annotations

import argparse
import json

from sdcore.app import command


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog,
        description="Tell what a model is, from headers and settings: no weights are read.",
    )
    add = parser.add_argument
    add("model", metavar="PATH", help="folder, file, or hub name (then: what would be fetched)")
    add("--variant", help="weight files to look at, such as fp16 (default: the plain ones)")
    add("--hash", action="store_true", help="also hash whole files, which takes longer")
    add("--json", action="store_true", help="print JSON (default: lines for people)")
    add("--debug", action="store_true", help="show the traceback of an error (default: no)")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(say_what_it_is, make_parser(prog).parse_args, arguments, computes=False)


def say_what_it_is(options: argparse.Namespace) -> None:
    from sdcore.checkpoint.inspection import inspect, lines

    report = inspect(options.model, variant=options.variant, hashes=options.hash)
    command.say(json.dumps(report, indent=2) if options.json else "\n".join(lines(report)))
