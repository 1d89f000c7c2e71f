"""Files that the commands write: where to, under which names, and pictures in a grid.

--output is a folder, or a PNG file, whose name may be a pattern: out/{date}/{seed}-{prompt}.png
"""

from __future__ import annotations

import os
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app.command import say, tell
from sdcore.errors import UsageError
from sdcore.files.atomic import check_writable

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.app.model_choice import ModelChoice
    from sdcore.job.job import Job
    from sdcore.pipeline.result import TextToImageResult

_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl")
_LONGEST_NAME = 240  # bytes of a file's name, which a number may be added to; systems take 255
_LONGEST_SLUG = 60
_LONGEST_TOLD = 100  # letters of a prompt in one line with others
# What Windows takes for devices, whatever stands behind the first dot.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{n}{i}" for n in ("com", "lpt") for i in range(10))}
# What a pattern may hold -> what stands for it.
FIELDS: dict[str, Callable[[Job, int, datetime], str | int]] = {
    "prompt": lambda job, index, now: slug(job.prompt),
    "seed": lambda job, index, now: 0 if job.seed is None else job.seed,
    "steps": lambda job, index, now: 0 if job.steps is None else job.steps,
    "index": lambda job, index, now: index,
    "date": lambda job, index, now: f"{now:%Y-%m-%d}",
    "time": lambda job, index, now: f"{now:%H-%M-%S}",
}


class Names:
    """The names of the pictures of one command, in the order in which they are painted."""

    def __init__(self, output: Path, enlarged: int = 0) -> None:
        """`enlarged`: up to how many pixels small ones are written once more; 0 is not at all."""
        self.output, self.enlarged = output, enlarged
        self._index, self._now = 0, datetime.now()

    def next(self, job: Job) -> Path:
        """Where the next picture goes, which a job has painted."""
        self._index += 1
        return _named(self.output, job, self._index, self._now)


def greet(jobs: Sequence[Job], model: ModelChoice, output: Path, begin: str = "") -> None:
    """Say beside the result what is painted, with which seeds, and where it will lie."""
    prompts = list(dict.fromkeys(job.prompt for job in jobs))
    seeds = list(dict.fromkeys(job.seed for job in jobs if job.seed is not None))
    said = f"painting {len(jobs)} image{'s' * (len(jobs) > 1)}{begin} with "
    said += "the embedded model" if model.name is None else model.name
    if seeds:
        said += f", seed {seeds[0]}" if len(seeds) == 1 else f", seeds {seeds[0]} to {seeds[-1]}"
    where = output if output.suffix.lower() in (".png", ".html") else f"{output}{os.sep}"
    first = prompts[0] if len(prompts[0]) <= _LONGEST_TOLD else f"{prompts[0][:_LONGEST_TOLD]}…"
    first = first.strip() or "an empty prompt, which asks for nothing"
    more = f" and {len(prompts) - 1} more" * (len(prompts) > 1)
    tell(f"{said}, into {where}: {first}{more}")


def save(result: TextToImageResult, names: Names) -> Iterator[Image]:
    """Write each picture with its settings and print its path, and its seed beside it on standard
    error; gives the pictures.

    Small ones are written once more for eyes, a whole number of times as large. The copy says what
    the picture says, so `--from` paints the picture again from either.
    """
    from PIL.Image import Resampling

    from sdcore.metadata.png import save_png

    for image, settings in zip(result.images, result.settings, strict=True):
        tell(f"seed {settings.job.seed}")
        path = save_png(image, names.next(settings.job), settings)
        say(path)
        times = names.enlarged // max(image.size)
        if times > 1:
            larger = image.resize([side * times for side in image.size], Resampling.BICUBIC)
            folder = path.parent / "enlarged"
            tell(f"enlarged {times} times: {save_png(larger, folder / path.name, settings)}")
        yield image


def save_grid(images: Sequence[Image], rows: int, columns: int, output: Path) -> Path:
    """Write all pictures as one, on white."""
    from PIL import Image

    from sdcore.metadata.png import save_png

    if rows > 1 and columns == 1:  # one picture of each prompt: nearly a square
        columns = int(len(images) ** 0.5 + 0.999)
        rows = -(-len(images) // columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for place, image in enumerate(images):
        grid.paste(image, (place % columns * width, place // columns * height))
    plain = is_file(output) and not _fields(str(output))
    path = output.with_stem(f"{output.stem}-grid") if plain else _folder(output) / "grid.png"
    return save_png(grid, path)


def is_file(path: Path) -> bool:
    """Whether --output names a PNG file and not a folder; UsageError for other pictures."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        return not _is_dir(path)
    if suffix in _PICTURES and not _is_dir(path):
        raise UsageError(
            f"--output {path} cannot be written.",
            "Pictures are PNG files, which keep their settings.",
            "Use a name that ends in .png, or a folder.",
        )
    return False


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def check_output(path: Path, jobs: Sequence[Job] | None = None) -> None:
    """Refuse before painting what could not be written after it.

    Args:
        jobs: that name the pictures by a pattern; None where a name must be one.
    """
    if jobs is None and _fields(str(path)):
        raise UsageError(
            f"--output {path} cannot be used here.",
            "This command gives its files names of its own.",
            "Name a folder.",
        )
    names = Names(path)
    folders = {_folder(path)}
    for each in [names.next(job) for job in jobs or ()] or [path]:
        _check_length(path, each)
        folders |= {each.parent} if jobs else set()
    for folder in folders:
        check_writable(folder, f"--output {path}")


def slug(prompt: str) -> str:
    """The prompt's first words as a file name on every system, none of them cut."""
    letters = unicodedata.normalize("NFC", prompt.lower())
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in letters)
    name = ""
    for word in kept.split():
        longer = f"{name}-{word}" if name else word[:_LONGEST_SLUG]
        if len(longer) > _LONGEST_SLUG:
            break
        name = longer
    while len(name.encode("utf-8", "replace")) > _LONGEST_NAME - len(".png"):
        name = name[:-1]
    return f"{name}-image" if name in _DEVICES else name or "image"


def _named(output: Path, job: Job, index: int, now: datetime) -> Path:
    values = {name: FIELDS[name](job, index, now) for name in _fields(str(output))}
    named = Path(str(output).format(**values)) if "{" in str(output) else output
    if not is_file(output):
        return named / f"{slug(job.prompt)}.png"
    return named.with_stem(f"{named.stem}-image") if named.stem.lower() in _DEVICES else named


def _fields(pattern: str) -> list[str]:
    """The names in {} of a pattern. UsageError where there is one that is not known."""
    found: list[Any] = []
    try:
        for _, name, spec, how in string.Formatter().parse(pattern):
            if name is not None:
                found.append(name)
                if name not in FIELDS or how or (spec and name not in ("seed", "index", "steps")):
                    raise ValueError(f"there is no {{{name}}}")
                format(0, spec or "")
    except ValueError as error:
        raise UsageError(
            f"--output {pattern} cannot be used.",
            f"It is a pattern that cannot be filled: {error}.",
            f"Use {', '.join(f'{{{name}}}' for name in FIELDS)}, or {{{{ for a brace.",
        ) from error
    return found


def _folder(path: Path) -> Path:
    """The folder that must be there: above the first part of a path that is filled in."""
    folder = path.parent if is_file(path) else path
    parts = folder.parts
    filled = [place for place, part in enumerate(parts) if "{" in part]
    return Path(*parts[: filled[0]]) if filled else folder


def _check_length(output: Path, path: Path) -> None:
    for part in path.parts:
        length = len(part.encode("utf-8", "replace"))
        if length > _LONGEST_NAME:
            raise UsageError(
                f"--output {str(output)[:80]} cannot be written.",
                f"A name in it has {length} bytes, and file systems take no more than 255.",
                "Use a shorter one.",
            )
