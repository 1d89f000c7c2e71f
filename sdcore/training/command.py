"""The command line of a recipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from sdcore.errors import exit_on_error
from sdcore.machine import keep_freed_memory
from sdcore.training.settings import AnySettings, load_settings

INTERRUPTED = 130  # the exit code of a shell's command that Ctrl-C ended


def main(
    recipe: Callable[[AnySettings], None], model: type[AnySettings], config: str, doc: str | None
) -> None:
    """Run a recipe with the settings that `--config file.yaml key.path=value ...` say.

    Args:
        recipe: called with the settings.
        model: their class.
        config: the settings file where none is named.
        doc: what `--help` says.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=config, help="settings file (default: %(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that differ"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        with exit_on_error():
            recipe(load_settings(model, arguments.config, arguments.overrides))
    except KeyboardInterrupt:
        print(
            "error: The run was stopped.\n"
            "  why: Ctrl-C was pressed, or the process was interrupted.\n"
            "  try: The same command goes on from the newest checkpoint.",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
