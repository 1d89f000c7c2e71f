"""The command `sdcore`, with one subcommand for each thing that it does.

sdcore paint "a red apple in flat style on a light blue background"
sdcore paint --help
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from sdcore import __version__
from sdcore.app.command import guarded, say, tell
from sdcore.errors import UsageError


class Command(NamedTuple):
    """A subcommand.

    Args:
        module: the module of `sdcore.app` whose `main` does it.
        purpose: what it does, in a few words.
        extra: the extra of the package that it needs, if any.
    """

    module: str
    purpose: str
    extra: str | None = None


COMMANDS = {
    "paint": Command("paint", "paint prompts"),
    "image": Command("image", "paint from a picture, or repaint a part of one"),
    "batch": Command("batch", "paint a file of jobs, one a line, and go on after a stop"),
    "edit": Command("edit", "change words of a prompt and keep the picture"),
    "explain": Command("explain", "show where, when and in which layers each word is read"),
    "inspect": Command("inspect", "say what a model, a LoRA or an embedding is"),
    "convert": Command("convert", "turn a model into another form"),
    "serve": Command("serve.command", "paint for a page in the browser and for other programs"),
    "train": Command("train", "teach a model your own pictures", "train"),
}
_USAGE = """\
usage: sdcore COMMAND ...

Text-to-image diffusion in which you can see and steer how a prompt controls the picture.

{}

`sdcore COMMAND --help` shows what one takes, `sdcore --version` the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand, of which alone the module is imported; returns the exit code.

    Exit codes: 0 ok, 1 unforeseen, 2 usage, 3 bad file, 4 out of memory, 5 non-finite numbers,
    130 interrupted, 141 whoever read what is printed has read enough, 143 terminated.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    codes = [0]
    debug = Namespace(debug="--debug" in given)
    failed = guarded(lambda: codes.append(_main(given)), debug)
    return failed or codes[-1]


def _main(arguments: list[str]) -> int:
    if not arguments:
        tell(usage())
        return UsageError.exit_code
    if arguments[0] in ("-h", "--help", "--version"):
        say(f"sdcore {__version__}" if arguments[0] == "--version" else usage())
        return 0
    return run(arguments[0], arguments[1:])


def usage() -> str:
    """The text that `sdcore --help` prints."""
    return _USAGE.format("\n".join(f"  {name:9}{c.purpose}" for name, c in COMMANDS.items()))


def run(name: str, arguments: list[str]) -> int:
    """Run the subcommand of that name. Raises UsageError where there is none of that name."""
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"There is no command {name!r:.100}.",
            f"The commands are {', '.join(COMMANDS)}.",
            f"Use `sdcore {near[0]}`." if near else "See what `sdcore --help` says.",
        )
    command = COMMANDS[name]
    try:
        module = import_module(f"sdcore.app.{command.module}")
    except ModuleNotFoundError as error:
        package = f"sdcore[{command.extra}]" if command.extra else "sdcore"
        tell(f'error: sdcore {name} needs {error.name}: pip install "{package}"')
        return UsageError.exit_code
    return module.main(arguments, prog=f"sdcore {name}")


if __name__ == "__main__":
    sys.exit(main())
