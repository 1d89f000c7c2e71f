"""Bad requests: prompts, jobs and command lines."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sdcore import Job, TextToImage
from sdcore.app import edit, explain, image, inspect, paint
from sdcore.errors import SdcoreError
from sdcore.job.record import job_from_dict, job_to_dict
from sdcore.prompt.explain import explain_prompt
from sdcore.size import Size
from tests.reliability.corpus.case import Reader, Traceback
from tests.reliability.corpus.settings import ODD
from tests.reliability.corpus.weights import model, model_folder
from tests.reliability.test_linear import DIALECTS, MARKS, TEXTS

# --- prompts -------------------------------------------------------------------------------------

PIECES = (*MARKS, "a ", "fox", "一只", "🦊", "\\", "(", ")", "[", "]", ":", "|", ",", "\n", "\0")
PIECES += (
    ":1e30)",
    ":-1)",
    ":nan)",
    "(a:1e999)",
    "embedding:x",
    '"a", "b".blend(1, nan)',
    ".and()",
)
PIECES += (
    "<lora:x:1e30>",
    "<lora:::>",
    "a" * 2000,
    "\ud800",
    "\x1b[2J",
    "\u202e",
    "{a|b}",
    "$$",
    "__x__",
)


def damaged_prompt(folder: Path, rng: random.Random) -> str:
    if rng.random() < 0.3:
        name = rng.choice(list(TEXTS))
        text = TEXTS[name](rng.choice([77, 1000, 5000]))
    else:
        name = "pieces"
        text = "".join(rng.choices(PIECES, k=rng.choice([1, 3, 8, 30, 300])))
    (folder / "prompt").write_bytes(text.encode("utf-8", "surrogatepass"))
    return name


def open_prompt(folder: Path) -> None:
    text = (folder / "prompt").read_bytes().decode("utf-8", "surrogatepass")
    errors: list[SdcoreError] = []
    for dialect in DIALECTS:
        try:
            str(explain_prompt(text, model().tokenizer, dialect, steps=4))
        except SdcoreError as error:
            errors.append(error)
    if errors:
        raise errors[0]


# --- jobs ----------------------------------------------------------------------------------------

HUGE: tuple[Any, ...] = (819_200, 10**9, 10**18, 10**400, -1, 0, 1.5, float("nan"), 1e300, True)


def damaged_job(folder: Path, rng: random.Random) -> str:
    (folder / "seed").write_text(str(rng.random()))
    return "value"


def open_job(folder: Path) -> None:
    """Make a job of any values, from its record too, and paint it where it can be."""
    rng = random.Random((folder / "seed").read_text())
    values: dict[str, Any] = {"prompt": "a cat", "seed": 1, "steps": 1, "size": Size(64, 64)}
    names = sorted(Job.__dataclass_fields__.keys() - {"source"})
    for name in rng.sample(names, rng.choice([1, 1, 2, 3])):
        values[name] = rng.choice([*ODD, *HUGE, None, Size(8192, 8192), Size(0, 64), "a " * 30_000])
    job = Job(**values)
    if rng.random() < 0.5:
        record = job_to_dict(job)
        record[rng.choice([*record, "x"])] = rng.choice([*ODD, *HUGE])
        job = job_from_dict(record)
    if (job.steps or 99) < 5:
        model().paint([job], progress=False)


# --- command lines -------------------------------------------------------------------------------

VALUES = ("0", "-1", "nan", "1e300", "9" * 30, "", " ", "x", "a:b", "1e-300", "1000000000", "2.5")
VALUES += (
    "/dev/null",
    "/nowhere/x",
    "x" * 300,
    "\x1b[2J",
    "一只",
    "64x64",
    "0x0",
    "=",
    "letters=-1",
)
FLAGS = ("--steps", "--images", "--batch-size", "--width", "--height", "--size", "--seed")
FLAGS += ("--guidance-scale", "--guidance-rescale", "--scheduler", "--clip-skip", "--budget")
FLAGS += (
    "--lora",
    "--embedding",
    "--prompt-file",
    "--from",
    "--negative-prompt",
    "--vae",
    "--model",
)
FLAGS += (
    "--precision",
    "--device",
    "--attention",
    "--models-dir",
    "--hires",
    "--preset",
    "--dialect",
)
COMMANDS: dict[str, tuple[Callable[..., int], tuple[str, ...]]] = {
    "paint": (paint.main, ("a cat",)),
    "explain-prompt": (paint.main, ("a cat", "--explain-prompt")),
    "edit": (edit.main, ("a cat", "--to", "a fox")),
    "image": (image.main, ("/dev/null", "a cat")),
    "inspect": (inspect.main, ("/nowhere",)),
    "explain": (explain.main, ("a cat",)),
}


def damaged_line(folder: Path, rng: random.Random) -> str:
    (folder / "seed").write_text(str(rng.random()))
    return "flags"


@cache
def read_once() -> None:
    """The commands paint with one model, which is read once."""
    read = TextToImage.from_pretrained

    def from_pretrained(folder: str | Path, **how: Any) -> TextToImage:
        plain = str(folder) == str(model_folder()) and not any(
            value for name, value in how.items() if name not in ("dtype", "device")
        )
        return model() if plain else read(folder, **how)

    TextToImage.from_pretrained = from_pretrained  # pyright: ignore[reportAttributeAccessIssue]


def open_line(folder: Path) -> None:
    read_once()
    rng = random.Random((folder / "seed").read_text())
    command, given = COMMANDS[rng.choice(list(COMMANDS))]
    flags = [*given, "--model", str(model_folder()), "--steps", "1", "--output", str(folder / "o")]
    flags = list(given) if command is inspect.main else flags
    for _ in range(rng.choice([1, 1, 2, 3])):
        flags += [rng.choice(FLAGS), rng.choice(VALUES)]
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            code = command(flags)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    text = told.getvalue()
    if "Traceback" in text or "should not have" in text or code not in (0, 2, 3, 4, 5):
        raise Traceback(f"{flags}: {code}: {text[-300:]}")
    if code:
        raise SdcoreError(text[:1000], "It was refused.", "Nothing.")


READERS = (
    Reader(
        "prompts",
        250,
        3500,
        damaged_prompt,
        open_prompt,
        {"": "a prompt is any text; marks that cannot be read are text"},
    ),
    Reader(
        "jobs",
        300,
        4000,
        damaged_job,
        open_job,
        {"": "a value within the range of the field"},
    ),
    Reader(
        "command lines",
        200,
        2500,
        damaged_line,
        open_line,
        {"": "a value within the range of the flag; then it painted"},
    ),
)
