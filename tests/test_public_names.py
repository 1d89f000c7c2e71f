"""The public names: `from sdcore import X`, loaded when first used, and known to type checkers."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sdcore

SOURCE = Path(sdcore.__file__).read_text("utf-8")
HOMES: dict[str, str] = sdcore._HOMES


def names_for_type_checkers() -> set[tuple[str, str]]:
    """(module, name) of each import that only a type checker sees."""
    tree = ast.parse(SOURCE)
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {(str(node.module), alias.name) for node in imports for alias in node.names}


def test_type_checkers_see_the_names_that_python_gives() -> None:
    given = {(f"sdcore.{home}", name) for home, names in HOMES.items() for name in names.split()}
    assert names_for_type_checkers() == given


def test_the_table_is_in_order() -> None:
    assert list(HOMES) == sorted(HOMES)
    assert all(names.split() == sorted(names.split()) for names in HOMES.values())


@pytest.mark.parametrize("home", HOMES)
def test_a_public_name_is_at_home_where_the_table_says(home: str) -> None:
    module = importlib.import_module(f"sdcore.{home}")
    for name in HOMES[home].split():
        thing = getattr(module, name)
        assert getattr(sdcore, name) is thing
        assert getattr(thing, "__module__", module.__name__) == module.__name__
        assert not callable(thing) or thing.__doc__, f"{name} says nothing of itself"


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = "import sys, sdcore; print([m for m in sys.modules if m.startswith('sdcore.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
