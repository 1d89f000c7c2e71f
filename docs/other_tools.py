"""The tables of docs/other_tools.md, from the code.

python -m docs.other_tools            write them
"""

from __future__ import annotations

import re
from pathlib import Path

from sdcore.app.other_flags import ALIASES
from sdcore.app.other_flags import ANSWERS as FLAG_ANSWERS
from sdcore.job.other_names import ANSWERS, AT_EASE, CALL, LOADING, METHODS

PAGE = Path(__file__).with_suffix(".md")


def tables() -> dict[str, str]:
    """Each table of the page by its name."""
    flags = [(_code(aliases.split()), f"`{ours}`") for ours, aliases in ALIASES.items()]
    flags += [(f"`{flag}`", answer) for flag, answer in FLAG_ANSWERS.items()]
    taken = [(f"`{name}`", f"`{ours}`") for name, ours in {**CALL, **LOADING}.items()]
    taken.append(
        ("`generator`", "`seed`, of a fresh one of the CPU; a list has one for each image")
    )
    for name, (usual, hint) in AT_EASE.items():
        values = ", ".join(f"`{value!r}`" for value in usual if value is not None) or "`None`"
        taken.append((f"`{name}`", f"{values} alone. {hint}"))
    taken += [(f"`{name}`", answer) for name, answer in ANSWERS.items()]
    return {
        "flags": _table("flag of another tool", flags),
        "arguments": _table("argument in diffusers", taken),
        "methods": _table("in diffusers", [(f"`{n}`", hint) for n, hint in METHODS.items()]),
    }


def page() -> str:
    """The page with its tables as the code has them."""
    text = PAGE.read_text("utf-8")
    for name, table in tables().items():
        block = f"<!-- {name} -->\n{table}\n<!-- end -->"
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
    return text


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([f"| {title} | here |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _code(names: list[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
