"""Places in markdown pages that commands fill with their figures."""

from __future__ import annotations

from pathlib import Path

from sdcore.errors import FileError
from sdcore.files.atomic import replace_file, text_writer


def around(page: Path, begin: str, end: str) -> tuple[str, str]:
    """A page up to its line that starts with `begin`, that line included, and from `end` on.

    Raises:
        FileError: there is no such page, or not one of each line, in this order.
    """
    lines = page.read_text("utf-8").splitlines(keepends=True) if page.is_file() else []
    starts, ends = ([i for i, s in enumerate(lines) if s.startswith(m)] for m in (begin, end))
    if len(starts) != 1 or len(ends) != 1 or starts > ends:
        raise FileError(
            f"{page} has no place for the figures",
            f"it needs one line that starts with {begin} and, below it, one that starts with {end}"
            if page.is_file()
            else "there is no such file",
            "check the path, or add both lines where the figures shall stand",
        )
    return "".join(lines[: starts[0] + 1]), "".join(lines[ends[0] :])


def fill(page: Path, begin: str, end: str, text: str) -> None:
    """Put `text` in place of what stands between the two lines; raises as `around`."""
    before, after = around(page, begin, end)
    replace_file(page, text_writer(f"{before}{text}\n{after}"))
