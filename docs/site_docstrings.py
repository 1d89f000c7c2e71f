"""Docstrings as the reference shows them: what stands line by line becomes a list.

The house writes a field as `name:  what it is`, aligned, continued by indented lines; Markdown
would run them together. Arguments that share a sentence, `width, height: pixels`, are told one by
one.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

NAMED = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): +(?=\S)")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 +.*)*)", re.MULTILINE)


def one_by_one(text: str) -> str:
    """The docstring with a line for each argument, where several share one."""
    head, args, rest = text.partition("Args:\n")
    return (
        head
        + args
        + SHARED.sub(
            lambda found: "\n".join(f"{found[1]}{name}{found[3]}" for name in found[2].split(", ")),
            rest,
        )
    )


def as_list(text: str) -> str:
    """The docstring with each run of named lines as a Markdown list."""
    lines: list[str] = []
    inside = False  # of an item, which indented lines continue
    for line in text.splitlines():
        if found := NAMED.match(line):
            if not inside:
                lines.append("")
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            lines.append(f"- {names}: {line[found.end() :]}")
            inside = True
        elif inside and line.startswith(" "):
            lines.append(f"    {line.strip()}")
        else:
            if inside and line:
                lines.append("")
            inside = False
            lines.append(line)
    return "\n".join(lines)


class NamedLines(Extension):
    """What griffe calls for each object that it has read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_list(one_by_one(obj.docstring.value))
