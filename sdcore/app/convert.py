"""Turn a model into another form; old pickled files into safetensors.

sdcore convert old.ckpt new.safetensors
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from sdcore.app import command
from sdcore.checks import as_finite, shown
from sdcore.errors import (
    FileError,
    MemoryLimitError,
    UsageError,
    name_some,
    warn,
)
from sdcore.files.atomic import check_writable

WORKER = Path(__file__).with_name("convert_worker.py")
DTYPES = ("keep", "float32", "float16", "bfloat16")
OLDEST_TORCH = (2, 10)  # before, files could run code in spite of weights_only: CVE-2026-24747
SAFE = ".safetensors"
MOST_GB, MOST_SECONDS = 100_000, 10_000_000
_DESCRIPTION = """\
Turn a model into another form; old pickled files into safetensors.

%(prog)s old.ckpt new.safetensors      also .pt and .bin, in a closed process
%(prog)s embedding.pt new.safetensors  a textual inversion, under its token
%(prog)s folder new.safetensors        a diffusers folder to a single file
%(prog)s model.safetensors folder      and back
"""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    shown = " (default: %(default)s)"
    add("old", type=Path, help="file or folder to read")
    add("new", type=Path, help="file or folder to write; a file of that name is not overwritten")
    add("--dtype", choices=DTYPES, default="keep", help="of the weights" + shown)
    add("--name", help="a textual inversion's token (default: the file's)")
    add("--memory", type=float, metavar="GB", help="limit (default: 3 x the file, and 2 more)")
    add("--seconds", type=int, default=900, metavar="S", help="limit" + shown)
    add("--debug", action="store_true", help="show the traceback of an error (default: no)")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(convert, make_parser(prog).parse_args, arguments, stopped="stopped")


def convert(options: argparse.Namespace) -> None:
    for limit, most in (("memory", MOST_GB), ("seconds", MOST_SECONDS)):
        value = getattr(options, limit)
        if value is not None and as_finite(value, 0, most) is None:
            hint = f"Use a number from 0 to {most}."
            raise UsageError(f"--{limit} is {shown(value)}.", "It is a limit.", hint)
    if options.new.exists():
        raise UsageError(f"{options.new} exists.", "Nothing is overwritten.", "Name another.")
    check_writable(options.new.parent, f"{options.new}")
    if options.old.is_dir() or holds_weights(options.old):
        convert_model(options.old, options.new, options.dtype)
    else:
        convert_pickle(options)
    command.say(options.new)


def holds_weights(path: Path) -> bool:
    """Whether a file is a model's already, by its content: safetensors or GGUF, not a pickle.

    Raises:
        FileError: it is something else that is no checkpoint, such as a web page.
    """
    from sdcore.files.content import is_gguf, what_it_is
    from sdcore.files.header import begins_as_safetensors
    from sdcore.files.opening import require_file

    require_file(path)
    if is_gguf(path):
        return True
    content = what_it_is(path)
    if content is None or content.is_pickle:
        return begins_as_safetensors(path)
    raise FileError(f"{path} is no model.", f"By its content it is {content.what}.", content.hint)


def convert_model(old: Path, new: Path, dtype_name: str) -> None:
    """Between a diffusers folder and a single file."""
    import torch

    from sdcore import TextToImage
    from sdcore.checkpoint.loading import save_folder
    from sdcore.checkpoint.single_file import save_single_file

    if old.is_dir() == (new.suffix != SAFE):
        why = "A folder becomes a file that ends in .safetensors, and such a file a folder."
        hint = "Name the other kind."
        if not old.is_dir() and old.suffix != SAFE:
            why, hint = "By its content it needs no converting.", f"Copy it to {new.name}."
        raise UsageError(f"{old} cannot become {new}.", why, hint)
    stored = torch.float32 if dtype_name == "keep" else getattr(torch, dtype_name)
    pipe = TextToImage.from_pretrained(old, dtype=stored)
    save_single_file(pipe, new) if old.is_dir() else save_folder(pipe, new)


def convert_pickle(options: argparse.Namespace) -> None:
    """An old checkpoint or embedding to safetensors; this process never opens it."""
    from sdcore.files.atomic import replace_file
    from sdcore.files.header import open_header
    from sdcore.files.opening import require_file

    old, new = options.old, options.new
    if new.suffix != SAFE:
        raise UsageError(
            f"{new} cannot be written.", "Weights are safetensors.", f"End it in {SAFE}."
        )
    require_file(old)
    torch_version = tuple(int(part) for part in version("torch").split(".")[:2])
    if torch_version < OLDEST_TORCH:
        why = f"torch {version('torch')} has a hole that such a file can use."
        raise UsageError(f"{old} is not opened.", why, "Install torch 2.10 or newer.")
    answer: dict[str, Any] = {}

    def write(path: Path) -> None:
        folder = path.with_name("apart")
        folder.mkdir()
        answer.update(read_apart(options, folder))
        if "refused" in answer:
            what, why = f"{old} was not converted.", f"{answer['refused']:.600}."
            if "allocate memory" in why:
                raise MemoryLimitError(what, why, "Raise --memory.")
            hint = "Take the model from a source that has it as safetensors."
            raise FileError(what, why, hint)
        made = folder / "converted.safetensors"
        if made.is_symlink():
            raise FileError(
                f"{old} was not converted.", "A link was left behind.", "Do not trust it."
            )
        open_header(made)  # what comes out of that process is not trusted either
        made.rename(path)

    replace_file(new, write)
    say_what_it_is(new)
    if answer.get("left"):
        warn(f"left out, no weights: {', '.join(map(str, answer['left']))}")
    if not answer.get("network_shut"):
        warn("this system did not let the network be shut off meanwhile")


def say_what_it_is(new: Path) -> None:
    """Warn where the tensors are those of no model that is known."""
    from sdcore.checkpoint.families import UNKNOWN, describe
    from sdcore.files.header import open_header

    file = open_header(new)
    if describe(file) == UNKNOWN:
        names = name_some(list(file.shapes), 3)
        warn(f"its tensors were converted, but are those of no model that is known: {names}")


def read_apart(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the worker with an empty environment, a limit on memory and time; what it says."""
    size = options.old.stat().st_size
    memory = 3 * size + (2 << 30) if options.memory is None else int(options.memory * 1e9)
    arguments = [
        options.old.resolve(),
        folder.resolve(),
        options.name or "",
        options.dtype,
        memory,
        options.seconds,
    ]
    process = subprocess.Popen(
        [sys.executable, "-I", str(WORKER), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"OMP_NUM_THREADS": "1"}
        | ({"SYSTEMROOT": r} if (r := os.environ.get("SYSTEMROOT")) else {}),
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=options.seconds)
    except subprocess.TimeoutExpired as error:
        what = f"{options.old} was not converted."
        raise FileError(what, f"It took over {options.seconds} s.", "Raise --seconds.") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
    if process.returncode:
        why = f"The process that read it ended with {process.returncode}; it may have met a limit."
        raise MemoryLimitError(
            f"{options.old} was not converted.", why, "Raise --memory or --seconds."
        )
    try:
        answer = json.loads(said[: 1 << 20])
    except ValueError as error:
        why = "The process that read it gave no answer."
        raise FileError(f"{options.old} was not converted.", why, "Do not trust it.") from error
    is_answer = isinstance(answer, dict)
    return cast("dict[str, Any]", answer) if is_answer else {"refused": "it gave no answer"}
