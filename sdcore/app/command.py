"""What ends every command in the same way: errors in three parts, warnings, exit codes."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from sdcore.errors import MemoryLimitError, SdcoreError

EXIT_INTERRUPTED = 130


def run(work: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Do it; the exit code: 0 ok, 2 usage, 3 bad file, 4 out of memory, 5 non-finite numbers."""
    warnings.showwarning = show_warning
    try:
        work(options)
    except KeyboardInterrupt:
        print("\nstopped; what was painted before is saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        failure = as_failure(error)
        print(f"error: {in_flags(str(failure), options)}", file=sys.stderr)
        return failure.exit_code
    return 0


def as_failure(error: Exception) -> SdcoreError:
    """Any error in three parts."""
    if isinstance(error, SdcoreError):
        return error
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "out of memory" in first_line or "allocate" in first_line:
        return MemoryLimitError(
            "There is not enough memory for this run.",
            first_line or "The system refused to give more.",
            "Use a smaller --batch-size or size, --precision fp16, or --attention chunked.",
        )
    return SdcoreError(
        "Something went wrong that should not have.",
        f"{type(error).__name__}: {first_line}.",
        "Run it again with --debug, and report what it prints.",
    )


def in_flags(text: str, options: argparse.Namespace) -> str:
    """A message that names arguments of Python, with the flags in their place."""
    names = [name for name in vars(options) if "_" in name]
    for name in names:
        text = re.sub(rf"(?<![\w-]){name}(=)?", "--" + name.replace("_", "-") + r"\1", text)
    return re.sub(r"(--[a-z-]+)=", r"\1 ", text)


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
