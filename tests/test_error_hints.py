"""Every hint can be followed: the flags, arguments and names that messages speak of exist.

What the package says is read in Python and, through the commands, in a terminal. There, arguments
are shown as the flags of their names; one without such a flag may stand only in messages that no
command can bring about.
"""

from __future__ import annotations

import ast
import re
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import sdcore
from sdcore.app.command import guarded, in_flags
from sdcore.app.other_flags import ANSWERS as FLAG_ANSWERS
from sdcore.errors import FileError
from sdcore.job.other_names import ANSWERS, METHODS
from tests.app.test_other_flags import EVERY, parsers
from tests.test_error_texts import Function, sentences, trees

# Arguments that have no flag, in what is said to callers of Python alone.
PYTHON_ALONE = {
    "control": "controls are objects",
    "source": "noise of the caller's",
    "shard_bytes": "of save_folder",
    "merge": "of apply_loras, where a model is saved",
    "spelling": "of save_lora and save_embedding",
    "denoising_end": "of a job that is handed over",
    "size": "of plan_prompts",
}
DOTTED = re.compile(r"\b[a-z_]+(?:\.[a-z_]+)+=\S")  # settings of a training run


def texts() -> Iterator[tuple[str, str]]:
    yield from sentences()
    yield from (("FLAG_ANSWERS", text) for text in FLAG_ANSWERS.values())


def test_every_flag_that_is_named_exists() -> None:
    outside = {"--help"}
    missing = {
        f"{place}: {text}"
        for place, text in texts()
        for flag in re.findall(r"(?<![\w{-])--[a-z][a-z-]+", text)
        if flag not in EVERY | outside and "pip install" not in text
    }
    assert not missing


def parameters() -> set[str]:
    """The names of all parameters and fields of the package."""
    found: set[str] = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                found |= {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def named_arguments() -> Iterator[tuple[str, str, str]]:
    for place, text in sentences():
        for name in re.findall(r"(?<![\w{\"'.-])([a-z][a-z_]+)=", DOTTED.sub("", text)):
            yield place, text, name


def test_every_argument_that_is_named_exists_and_has_a_flag_where_it_can_be_read() -> None:
    known = parameters()
    flags = {action.dest for parser in parsers().values() for action in parser._actions}
    for place, text, name in named_arguments():
        if place.startswith("sdcore/training/") and name == "path":
            continue  # "key.path=value", the form itself
        assert name in known, f"{place}: {text}"
        assert name in flags | set(PYTHON_ALONE) or "training" in place, f"{place}: {text}"


def test_public_names_in_hints_exist() -> None:
    said = [text for _, text in sentences()] + [*ANSWERS.values(), *METHODS.values()]
    names = {name for text in said for name in re.findall(r"\bsdcore\.([A-Za-z_]+)", text)}
    names = {name for name in names if find_spec(f"sdcore.{name}") is None}  # or a module
    assert "trace" in names and not {name for name in names if not hasattr(sdcore, name)}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Leave it out: allow_extra=True.", "Leave it out: --allow-extra."),
        ("clip_skip=3 cannot be used.", "--clip-skip 3 cannot be used."),
        ("seed is -1.", "--seed is -1."),
        ("Paint only the part (only_masked).", "Paint only the part (--only-masked)."),
        ("Use a smaller clip_skip.", "Use a smaller --clip-skip."),
        ("/my/clip_skip/seed=4/x.png is missing.", None),
        ("clip_skip.safetensors is missing.", None),
        ("Unknown scheduler 'clip_skip'.", None),
        ("The prompt's word \"seed=4\" is the model's.", None),
    ],
)
def test_arguments_are_shown_as_flags(said: str, shown: str | None) -> None:
    options = Namespace(allow_extra=False, clip_skip=None, seed=None, only_masked=None)
    assert in_flags(said, options) == (said if shown is None else shown)
    assert in_flags(said, Namespace()) == said


def test_names_in_a_file_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        why = "Its sdcore text cannot be used: clip_skip is -1."
        raise FileError("x.png does not say how it was made.", why, "Leave out clip_skip=3.")

    assert guarded(fail, Namespace(clip_skip=None)) == FileError.exit_code
    said = capsys.readouterr().err
    assert ": clip_skip is -1." in said and "--clip-skip 3." in said
