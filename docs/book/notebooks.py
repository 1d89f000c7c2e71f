"""Notebooks: a page each, from the page as it was written; without outputs, which its cells give.

    python -m docs.book notebooks --to FOLDER

They run in a clone: pictures and checks are the book's own.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from docs.book import checking
from docs.book.book import HERE

_CODE = re.compile(r"```python\n(.*?)```\n\n```text\n.*?```\n", re.DOTALL)
_JUDGE = """import torch
from docs.book import checking
from docs.book.book import term


{todo}

hint = checking.judged({page}, {function})
print(term(hint or "check.right", "{language}"))"""


def write(to: Path) -> None:
    """Every page, in either language, as FOLDER/NAME.ipynb."""
    to.mkdir(parents=True, exist_ok=True)
    for page in sorted(HERE.glob("[0-9]*.md")):
        text = json.dumps(notebook(page, to), ensure_ascii=False, indent=1) + "\n"
        (to / f"{page.stem}.ipynb").write_text(text, "utf-8")


def notebook(page: Path, to: Path) -> dict[str, Any]:
    """A page, such as 05_looking_back.zh.md, as a notebook in a folder (nbformat 4.5)."""
    language, number = ("zh" if page.name.endswith(".zh.md") else "en"), int(page.name[:2])
    text = re.sub(r"<!--.*?-->", "", page.read_text("utf-8"))
    # What comes after the command are links to other pages, which have notebooks of their own.
    text = text.partition(f"    python -m docs.book check {number}")[0]
    root = _way(HERE.parents[1], to)
    cells = [_cell("code", f'import sys\n\nsys.path.insert(0, "{root}")')]
    for part, piece in enumerate(_CODE.split(text)):
        if part % 2:
            cells.append(_cell("code", piece.strip("\n")))
        elif piece.strip():
            linked = re.sub(r"\]\((?!\w+:)", f"]({_way(page.parent, to)}/", piece.strip("\n"))
            cells.append(_cell("markdown", linked))
    function = checking.exercise(number).function
    asked = {"todo": checking.todo(number), "page": number, "function": function}
    cells.append(_cell("code", _JUDGE.format(**asked, language=language)))
    for count, cell in enumerate(cells):
        cell["id"] = f"cell-{count}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": made, "nbformat": 4, "nbformat_minor": 5}


def _way(there: Path, to: Path) -> str:
    return Path(os.path.relpath(there, to)).as_posix()


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.splitlines(True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})
