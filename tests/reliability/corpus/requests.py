"""Bad requests: prompts, jobs and command lines."""

from __future__ import annotations

import contextlib
import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from sdcore import Job, TextToImage
from sdcore.app import batch, convert, edit, explain, image, inspect, paint
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
    (folder / "seed").write_text(seed := str(rng.random()))
    return f"value of {', '.join(odd_values(random.Random(seed)))}"


def odd_values(rng: random.Random) -> dict[str, Any]:
    names = rng.sample(
        sorted(Job.__dataclass_fields__.keys() - {"source"}), rng.choice([1, 1, 2, 3])
    )
    odd = [*ODD, *HUGE, None, Size(8192, 8192), Size(0, 64), "a " * 30_000]
    return {name: rng.choice(odd) for name in names}


def open_job(folder: Path) -> None:
    """Make a job of any values, from its record too, and paint it where it can be."""
    rng = random.Random((folder / "seed").read_text())
    values: dict[str, Any] = {"prompt": "a cat", "seed": 1, "steps": 1, "size": Size(64, 64)}
    job = Job(**{**values, **odd_values(rng)})
    if rng.random() < 0.5:
        record = job_to_dict(job)
        record[rng.choice([*record, "x"])] = rng.choice([*ODD, *HUGE])
        job = job_from_dict(record)
    if (job.steps or 99) < 5:
        model().paint([job], progress=False)


# --- command lines -------------------------------------------------------------------------------

VALUES = ("0", "-1", "nan", "inf", "1e300", "1e-300", "9" * 30, "9" * 400, "9" * 5000, "2.5", "x")
VALUES += ("", " ", "a:b", "1000000000", "/dev/null", "/dev/zero", "/nowhere/x", "../x", "x" * 300)
VALUES += (
    "\x1b[2J",
    "\udc80",
    "一只",
    "\uff11\uff12",  # digits of another script
    "64x64",
    "0x0",
    "=",
    "letters=-1",
    "0-1",
    "1/0",
    "a=1",
)
COMMANDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "paint": (paint, ("a cat",)),
    "explain-prompt": (paint, ("a cat", "--explain-prompt")),
    "edit": (edit, ("a cat", "--to", "a fox")),
    "image": (image, ("PICTURE", "a cat")),
    "inspect": (inspect, ("MODEL",)),
    "explain": (explain, ("a cat", "--no-open")),
    "batch": (batch, ("JOBS",)),
    "convert": (convert, ("MISSING", "TARGET")),
}
_NOT_TRIED = ("--help", "--debug", "--output", "--grid")  # they write where they are told to


def flags_of(name: str) -> list[tuple[str, bool]]:
    """Every flag of a command, and whether a value stands behind it."""
    parser = COMMANDS[name][0].make_parser()
    flags = [action for action in parser._actions if action.option_strings]
    found = [(action.option_strings[-1], action.nargs != 0) for action in flags]
    return [(flag, valued) for flag, valued in found if flag not in _NOT_TRIED]


def damaged_line(folder: Path, rng: random.Random) -> str:
    name = rng.choice(list(COMMANDS))
    flags: list[str] = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        flag, valued = rng.choice(flags_of(name))
        flags += [flag, rng.choice(VALUES)] if valued else [flag]
    (folder / "line").write_text(json.dumps([name, *flags]))
    (folder / "jobs.txt").write_text("a fox\n")
    Image.new("RGB", (64, 64)).save(folder / "picture.png")
    return f"{name} {' '.join(flags)[:90]!r}"


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
    name, *odd = json.loads((folder / "line").read_text())
    module, given = COMMANDS[name]
    places = {
        "PICTURE": folder / "picture.png",
        "MISSING": folder / "nowhere.ckpt",
        "TARGET": folder / "nowhere.safetensors",
        "MODEL": model_folder(),
        "JOBS": folder / "jobs.txt",
    }
    flags = [str(places.get(each, each)) for each in given]
    if name not in ("inspect", "convert"):
        flags += ["--model", str(model_folder()), "--output", str(folder / "o")]
        flags += ["--steps", "1"] if name != "batch" else []
    flags += odd
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            code = module.main(flags)
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
        {
            "pieces": "marks that do not close or cannot be are letters, as in the tool itself",
            "marks": "marks that do not close or cannot be are letters, as in the tool itself",
            "*": "a prompt is any text within the limit of letters and tokens",
        },
    ),
    Reader(
        "jobs",
        300,
        4000,
        damaged_job,
        open_job,
        {"value of *": "a value of the field's type and range, after which it painted"},
    ),
    Reader(
        "command lines",
        200,
        2500,
        damaged_line,
        open_line,
        {"*": "a value of the flag's type and range, after which it painted or explained"},
    ),
)
