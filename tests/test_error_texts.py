"""Errors speak in sentences: what happened, why, and what to try, each with a capital and a stop.

Parts are read where they are written: in the call of the error, in a variable that it is called
with, or in the call of a function of the package that hands its argument on to an error. An
identifier may begin a sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ERRORS = {"SdcoreError", "UsageError", "FileError", "MemoryLimitError", "NonFiniteError"}
ERRORS |= {"NotHereError"}
PARTS = ("what", "why", "hint")
Function = ast.FunctionDef | ast.AsyncFunctionDef
IDENTIFIER = re.compile(r"[a-z]\w*(_\w+|=|\()|sdcore\b|torch\b|diffusers\b|pip\b")


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in (ROOT / "sdcore").rglob("*.py")}


def called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def given(call: ast.Call, names: tuple[str, ...]) -> dict[str, ast.expr]:
    """The arguments of a call by the names of the parameters; none after a starred one."""
    found: dict[str, ast.expr] = {}
    for name, value in zip(names, call.args, strict=False):
        if isinstance(value, ast.Starred):
            break
        found[name] = value
    return found | {k.arg: k.value for k in call.keywords if k.arg in names}


def handed_on(functions: dict[str, Function]) -> dict[str, tuple[str, ...]]:
    """Functions that hand arguments on to an error: name -> parameters, others as ''."""
    parts = dict.fromkeys(ERRORS, PARTS)
    while True:
        before = len(parts)
        for name, function in functions.items():
            parameters = [argument.arg for argument in function.args.args]
            passed = set()
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                for part, value in given(call, parts.get(called(call), ())).items():
                    passed |= {value.id} if part and isinstance(value, ast.Name) else set()
            kept = tuple(p if p in passed else "" for p in parameters if p not in ("self", "cls"))
            if any(kept) and name not in parts:
                parts[name] = kept
        if len(parts) == before:
            return parts


def texts(
    part: ast.expr, scopes: tuple[ast.AST, ...] = (), seen: frozenset[str] = frozenset()
) -> Iterator[tuple[int, str]]:
    """What a part may be: line and text, with {} for what is filled in.

    Args:
        scopes: where variables are looked up, the innermost first.
        seen: variables that are being looked up.
    """
    if isinstance(part, ast.Constant) and isinstance(part.value, str):
        yield part.lineno, part.value
    elif isinstance(part, ast.JoinedStr):
        pieces = [
            str(piece.value) if isinstance(piece, ast.Constant) else filled(piece, scopes)
            for piece in part.values
        ]
        yield part.lineno, "".join(pieces)
    elif isinstance(part, ast.IfExp):
        yield from texts(part.body, scopes, seen)
        yield from texts(part.orelse, scopes, seen)
    elif isinstance(part, ast.BoolOp):
        for value in part.values:
            yield from texts(value, scopes, seen)
    elif isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add):
        begins = list(texts(part.left, scopes, seen))
        ends = list(texts(part.right, scopes, seen))
        yield from ((line, f"{text}{end}") for line, text in begins for _, end in ends or [(0, "")])
    elif isinstance(part, ast.Call) and called(part) in ("str", "join"):
        yield part.lineno, ""  # it ends as it ends: say f"{...}." instead
    elif isinstance(part, ast.Name) and part.id not in seen:
        values = (list(assigned(part.id, scope)) for scope in scopes)
        for value in next((found for found in values if found), ()):
            yield from texts(value, scopes, seen | {part.id})


def assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """What a variable is set to in a function, or at the top of a module."""
    for node in scope.body if isinstance(scope, ast.Module) else ast.walk(scope):
        for target in node.targets if isinstance(node, ast.Assign) else []:
            if isinstance(target, ast.Name) and target.id == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
                yield from (v for one, v in pairs if isinstance(one, ast.Name) and one.id == name)


def filled(piece: ast.expr, scopes: tuple[ast.AST, ...]) -> str:
    """{} for a value; {.} for a part of another error, or a variable that holds sentences."""
    assert isinstance(piece, ast.FormattedValue)
    if isinstance(piece.value, ast.Attribute) and piece.value.attr in PARTS:
        return "{.}"
    found = [text for _, text in texts(piece.value, scopes)]
    return "{.}" if any(found) and all(text[-1:] in ("", ".") for text in found) else "{}"


def is_sentence(text: str) -> bool:
    good_start = not text[:1].islower() or IDENTIFIER.match(text) is not None
    return good_start and text.endswith((".", "!", "?", "{.}"))


def sentences() -> Iterator[tuple[str, str]]:
    """Place and text of every part of every error."""
    modules = trees()
    functions = {
        node.name: node
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    parts = handed_on(functions)
    for path, tree in modules.items():
        inside = {
            id(node): function
            for function in ast.walk(tree)
            if isinstance(function, Function)
            for node in ast.walk(function)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for name, part in given(call, parts.get(called(call), ())).items():
                if name:
                    scopes = (inside[id(call)], tree) if id(call) in inside else (tree,)
                    for line, text in texts(part, scopes):
                        yield f"{path.relative_to(ROOT)}:{line}", text


def test_every_part_of_an_error_is_a_sentence() -> None:
    wrong = sorted({f"{place}: {text}" for place, text in sentences() if not is_sentence(text)})
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_flags_are_named_by_commands_alone() -> None:
    """What the package says is read in Python too, where nobody has a flag."""
    named = [f"{place}: {text}" for place, text in sentences() if re.search(r"(^|\s)--\w", text)]
    assert not [text for text in named if not text.startswith("sdcore/app/")]


def test_the_texts_are_found() -> None:
    assert len(list(sentences())) > 600


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("The seed is 3.", True),
        ("{} is missing.", True),
        ("clip_skip is 3.", True),
        ("{.} {.}", True),
        ("no model is named", False),
        ("the seed is 3.", False),
        ("The seed is {}", False),
        ("", False),
    ],
)
def test_what_a_sentence_is(text: str, good: bool) -> None:
    assert is_sentence(text) == good
