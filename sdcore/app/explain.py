"""Show where, when and in which layers a picture reads each word of its prompt: one HTML page.

sdcore explain "a fox to the left of a cat in flat style, light blue background" --seed 3
sdcore explain "a fox on grass" --image photo.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.app import command, flags, output
from sdcore.app.browser import show_page
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.app.adapters import Adapters
    from sdcore.app.explain_record import Explained, Recording
    from sdcore.app.model_choice import ModelChoice
    from sdcore.job.job import Job
    from sdcore.pipeline.result import TextToImageResult
    from sdcore.pipeline.text_to_image import TextToImage

WINDOWS = 10
_PAGE = ".html"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog,
        description="Paint prompts, or look at a picture that is there, and write a page that "
        "shows where, when and in which layers each word is read.",
    )
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to paint; several give a page each")
    text = "more prompts, one a line (default: none)"
    add("--prompt-file", "--prompts-file", type=Path, metavar="FILE", help=text)
    text = "explain this picture instead of painting one (default: paint)"
    add("--image", type=Path, metavar="PICTURE", help=text)
    text = f"parts of the run that are kept apart (default: {WINDOWS}, or as many as steps)"
    add("--windows", type=int, default=WINDOWS, metavar="N", help=text)
    text = "also write the picture and each word's map as one PNG (default: no)"
    add("--grid", type=Path, metavar="FILE", help=text)
    text = "a row of the grid for each of the run's parts (default: one for the whole run)"
    add("--grid-steps", action="store_true", help=text)
    flags.add_painting_flags(parser)
    add("--size", metavar="WxH", help="768x512, or 512 (default: the model's)")
    flags.add_model_flags(parser)
    text = "folder, or page.html for a single page (default: %(default)s)"
    add("--output", type=Path, default=Path("outputs"), help=text)
    text = "do not open the page in the browser (default: opened where there is a display)"
    add("--no-open", action="store_true", help=text)
    add("--debug", action="store_true", help="show the traceback of an error (default: no)")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(explain, make_parser(prog).parse_args, arguments)


def explain(options: argparse.Namespace) -> None:
    prompts = list(options.prompts)
    prompts += flags.read_prompts(options)
    check(options, prompts)
    adapters, model = flags.adapters(options), flags.model_choice(options)
    sides, jobs = flags.sides(options), flags.with_loras(make_jobs(options, prompts), adapters)
    if options.image is not None:
        from sdcore.image.pictures import open_picture

        check_looking(options, jobs)
        picture = open_picture(options.image)
        looking = options.image.name, options.seed or 0
        all_explained = look_at(picture, model, jobs, sides, *looking)
    else:
        output.greet(jobs, model, options.output)
        all_explained = paint(model, adapters, jobs, sides, options.windows)
    pages: list[tuple[Path, Explained]] = []
    for explained in all_explained:
        pages.append((save_page(explained, options), explained))
        command.say(pages[-1][0])
        if options.grid is not None:
            command.say(save_grid(explained, options))
    shown = pages[0][0]
    if len(pages) > 1:
        from sdcore.app.explain_page import fill_index

        text = fill_index([(path.name, explained) for path, explained in pages])
        shown = write_page(options.output / f"index{_PAGE}", text)
        command.say(shown)
    show_page(shown, wanted=not options.no_open)


def check(options: argparse.Namespace, prompts: list[str]) -> None:
    """Refuse what can be refused before a model is loaded."""
    if not prompts:
        raise UsageError(
            "There is no prompt.",
            "Its words are what is explained.",
            'Use for example "a red apple", or --prompt-file.',
        )
    if options.windows < 1:
        why = "It counts the parts of the run that are kept apart."
        raise UsageError(f"--windows is {options.windows}.", why, "Use a whole number from 1 up.")
    if options.batch_size is not None:
        why = "Each picture is painted and explained alone."
        raise UsageError("--batch-size has no effect here.", why, "Leave it out.")
    if options.grid is not None and options.grid.suffix.lower() != ".png":
        raise UsageError(
            f"--grid {options.grid} cannot be used.", "It is a PNG.", "End it in .png."
        )
    if options.grid is None and options.grid_steps:
        raise UsageError(
            "--grid-steps is given alone.", "There is no grid.", "Add --grid grid.png."
        )
    several = len(prompts) * flags.count(options, "images", 1) > 1
    one_page = options.output.suffix.lower() == _PAGE
    if (one_page and several) or options.output.suffix.lower() == ".png":
        raise UsageError(
            f"--output {options.output} cannot be used.",
            "There are several pages." if several else "An explanation is a page.",
            f"Name a folder, or a file that ends in {_PAGE} for a single page.",
        )
    output.check_output(options.output.parent if one_page else options.output)
    if options.grid is not None:
        output.check_output(options.grid)


def make_jobs(options: argparse.Namespace, prompts: list[str]) -> list[Job]:
    """A job for each picture."""
    from sdcore.job.job import make_jobs

    images = flags.count(options, "images", 1)
    return make_jobs(prompts, images_per_prompt=images, **flags.job_settings(options))


def check_looking(options: argparse.Namespace, jobs: list[Job]) -> None:
    """A picture that is there is not painted: what only painting uses is refused."""
    painting = ("negative_prompt", "steps", "guidance_scale", "guidance_rescale", "scheduler")
    for name in (*painting, "images", "regions"):
        if getattr(options, name) is not None:
            flag = "region" if name == "regions" else name.replace("_", "-")
            raise UsageError(
                f"--{flag} has no effect beside --image.",
                "The picture is not painted; the model looks at it, noised to some times.",
                "Leave one of them out.",
            )
    if any(job.loras or job.embeddings for job in jobs):
        raise UsageError(
            "LoRAs and embeddings cannot be used beside --image.",
            "The picture is looked at with the model as it is.",
            "Leave them out.",
        )


def paint(
    model: ModelChoice,
    adapters: Adapters,
    jobs: list[Job],
    sides: tuple[int | None, int | None],
    windows: int,
) -> Iterator[Explained]:
    """Every picture of every prompt, painted alone."""
    from dataclasses import replace

    from sdcore.app.explain_record import explain_job
    from sdcore.app.session import Session, results
    from sdcore.pipeline.start import complete_size

    session = Session(model, adapters)
    pipe = session.pipe
    size = complete_size(*sides, jobs[0].source, pipe.native_size, pipe.autoencoder.factor)

    def paint(job: Job, recording: Recording) -> TextToImageResult:
        return next(results(session.paint([job], control=recording)))

    for job in jobs:
        yield explain_job(session.prepared([job]), replace(job, size=size), windows, paint)


def look_at(
    picture: Image,
    model: ModelChoice,
    jobs: list[Job],
    sides: tuple[int | None, int | None],
    name: str,
    seed: int,
) -> Iterator[Explained]:
    """A picture that was not painted, with each prompt."""
    from sdcore.app.explain_record import explain_picture
    from sdcore.app.unknown_words import warn_of_unknown_words

    named = model.name or "the embedded model"
    command.tell(f"looking at {name} with {named}, seed {seed}")
    pipe = model.load()
    warn_of_unknown_words(pipe, jobs)
    fitting = fit(picture, pipe, sides)
    if fitting.size != picture.size:
        command.tell(f"the picture is read at {fitting.width} x {fitting.height}")
    for job in jobs:
        known = {
            "prompt": job.prompt,
            "picture": name,
            "seed": seed,
            "size": f"{fitting.width} x {fitting.height}",
            "model": pipe.defaults.name,
            "dialect": job.dialect,
        }
        yield explain_picture(pipe, fitting, job.prompt, known, job.clip_skip)


def fit(picture: Image, pipe: TextToImage, sides: tuple[int | None, int | None]) -> Image:
    """The picture at the size that is asked for, or with about as many pixels as the model paints:
    at other sizes it recognizes less."""
    from PIL.Image import Resampling

    width, height = sides
    if width is None or height is None:
        scale = (pipe.native_size.area / (picture.width * picture.height)) ** 0.5
        width, height = (max(8, round(s * scale / 8) * 8) for s in picture.size)
    return picture.resize((width, height), Resampling.LANCZOS)


def save_page(explained: Explained, options: argparse.Namespace) -> Path:
    from sdcore.app.explain_page import fill_page

    path = options.output
    if path.suffix.lower() != _PAGE:
        path = path / f"{output.slug(explained.prompt)}{_PAGE}"
    return write_page(path, fill_page(explained))


def save_grid(explained: Explained, options: argparse.Namespace) -> Path:
    """The picture and a map of each word; with --grid-steps a row for each part of the run."""
    from sdcore.image.grid import labelled_grid
    from sdcore.image.overlay import lay_over
    from sdcore.metadata.png import save_png

    words = [explained.words[column].name for column in explained.shown]
    rows: list[tuple[str, list[int], Image]] = [
        ("", list(range(len(explained.windows))), explained.picture)
    ]
    if options.grid_steps:
        rows = [
            (window.name, [number], window.picture or explained.picture)
            for number, window in enumerate(explained.windows)
        ]
    pictures = [
        [
            picture,
            *(
                lay_over(explained.picture, explained.map_of(column, windows))
                for column in explained.shown
            ),
        ]
        for _, windows, picture in rows
    ]
    sheet = labelled_grid(pictures, ["picture", *words], [name for name, *_ in rows])
    return save_png(sheet, options.grid)


def write_page(path: Path, text: str) -> Path:
    """Write a page; a number is added to its name where there is one. Raises FileError."""
    from sdcore.files.atomic import text_writer, write_new

    return write_new(path, text_writer(text, errors="replace"))
