"""Change words of a prompt and keep the picture: before and after, side by side.

sdcore edit "a fox in flat style" --to "a cat in flat style" --seed 3
sdcore edit "a red apple" --reweight "red:0" --images 4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.app import command, flags, output
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.app.session import BatchBegins, Session
    from sdcore.control.prompt_edit import EditSettings, PromptEdit
    from sdcore.control.run_control import Run
    from sdcore.job.job import Job
    from sdcore.pipeline.result import Moment, TextToImageResult

CROSS = (0.0, 0.5)
LAYOUT = 0.4
_RANGE = "two numbers from 0 to 1 joined by -, such as 0-0.8"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog,
        description="Paint a prompt and changed versions of it from one noise, so that only what "
        "the changed words say becomes different.",
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what the first picture shows")
    text = "the changed prompt; several give several pictures (default: PROMPT itself)"
    add("--to", action="append", default=[], metavar="PROMPT", help=text)
    text = "how much a word of the changed prompts counts: 2 more, 0 not, -1 against (default: 1)"
    add("--reweight", action="append", default=[], metavar="WORD:X", help=text)
    text = "part of the run in which the words that stayed are read where they were (default: "
    text += f"{CROSS[0]:g}-{CROSS[1]:g}); with WORD: for one word"
    add("--steps-window", action="append", default=[], metavar="[WORD:]A-B", help=text)
    text = "part of the run in which the picture's layout is kept, 0 to 1 (default: %(default)s)"
    add("--keep-layout", type=float, default=LAYOUT, metavar="X", help=text)
    text = "change the picture only where this word is read (default: everywhere)"
    add("--only", action="append", default=[], metavar="WORD", help=text)
    flags.add_painting_flags(parser)
    add("--size", metavar="WxH", help="768x512, or 512 (default: the model's)")
    flags.add_model_flags(parser)
    flags.add_output_flags(parser)
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(edit, make_parser(prog).parse_args, arguments)


def edit(options: argparse.Namespace) -> None:
    if not options.to and not options.reweight:
        raise UsageError(
            "Nothing is changed.",
            "There is no changed prompt and no word that counts more or less.",
            'Add --to "a cat on grass", or --reweight fox:2.',
        )
    if options.batch_size is not None:
        why = "A picture and its changed versions are painted together."
        raise UsageError("--batch-size has no effect here.", why, "Leave it out.")
    settings, adapters = read_settings(options), flags.adapters(options)
    model, sides = flags.model_choice(options), flags.sides(options)
    groups = [flags.with_loras(group, adapters) for group in make_jobs(options)]
    if len({job.loras for job in groups[0]}) > 1:
        why = "They are painted together, with one model."
        raise UsageError("The prompts name different LoRAs.", why, "Name the same ones in all.")
    output.check_output(options.output)

    from dataclasses import replace

    from sdcore.app.session import Session, results
    from sdcore.pipeline.start import complete_size

    output.greet([job for group in groups for job in group], model, options.output)
    session = Session(model, adapters)
    pipe, source = session.pipe, groups[0][0].source
    size = complete_size(*sides, source, pipe.native_size, pipe.autoencoder.factor)
    groups = [[replace(job, size=size) for job in group] for group in groups]
    several = len(groups) > 1
    rows = [
        save_row(result, options, several=several)
        for result in results(paint(session, groups, settings))
    ]
    command.say(save_pairs(rows, options, [job.prompt for job in groups[0]]))


def make_jobs(options: argparse.Namespace) -> list[list[Job]]:
    """For each of `--images` seeds the prompt and its edits, from one noise."""
    from sdcore.job.job import check_seed, draw_seed, make_jobs

    # Without a changed prompt it is the same one, re-weighted.
    prompts = [options.prompt, *(options.to or [options.prompt])]
    settings, images = flags.job_settings(options), flags.count(options, "images", 1)
    seed = settings.pop("seed", None)
    seed = draw_seed() if seed is None else check_seed(seed, images)
    return [
        make_jobs(prompts, seed=[seed + number] * len(prompts), **settings)
        for number in range(images)
    ]


def read_settings(options: argparse.Namespace) -> EditSettings:
    """What the flags say about the edit. UsageError where they cannot be used."""
    from sdcore.control.prompt_edit import EditSettings

    windows: dict[str, tuple[float, float]] = {}
    for text in options.steps_window:
        word, _, numbers = text.rpartition(":")
        windows[word] = _read_window(text, numbers)
    cross = windows.pop("", CROSS)
    if not 0 <= options.keep_layout <= 1:
        why = "It is a part of the run, counted from its first step."
        raise UsageError(f"--keep-layout is {options.keep_layout:g}.", why, "Use 0 to 1.")
    return EditSettings(
        cross=cross,
        words=windows,
        layout=(0.0, options.keep_layout) if options.keep_layout else None,
        scales=dict(_read_scale(text) for text in options.reweight),
        blend=tuple(options.only),
    )


def _read_window(flag: str, text: str) -> tuple[float, float]:
    try:
        start, end = (float(number) for number in text.split("-"))
    except ValueError as error:
        raise UsageError(
            f"--steps-window {flag} cannot be used.", "No such part of a run.", f"Use {_RANGE}."
        ) from error
    return start, end


def _read_scale(text: str) -> tuple[str, float]:
    word, _, number = text.rpartition(":")
    try:
        return word, float(number)
    except ValueError as error:
        raise UsageError(
            f"--reweight {text} cannot be used.", "It is WORD:NUMBER.", "Use for example fox:2."
        ) from error


def paint(
    session: Session, groups: Sequence[Sequence[Job]], settings: EditSettings
) -> Iterator[BatchBegins | Moment | TextToImageResult]:
    """What happens while each prompt is painted together with its edits."""
    from sdcore.control.made_at_begin import MadeAtBegin, tokens_in_run
    from sdcore.control.prompt_edit import PromptEdit

    # The prompts are the same in each group.
    pipe, first = session.prepared(groups[0]), groups[0]
    prompts, dialect = [job.text for job in first], first[0].dialect
    tokenizers = [tokenizer for tokenizer, _ in pipe.readers]

    def make(run: Run) -> PromptEdit:
        return PromptEdit(tokens_in_run(tokenizers, prompts, dialect, run), settings)

    for jobs in groups:
        yield from session.paint(jobs, batch_size=len(jobs), control=MadeAtBegin(make))


def save_row(
    result: TextToImageResult, options: argparse.Namespace, *, several: bool
) -> tuple[str, list[Image]]:
    """Write the pictures, each with its settings and a name that says which it is.

    Args:
        several: there are other seeds, so names have theirs.
    """
    from sdcore.metadata.png import save_png

    folder, stem = _folder_and_stem(options)
    for number, (image, settings) in enumerate(zip(result.images, result.settings, strict=True)):
        kind = "source" if number == 0 else "edit" if len(result.images) == 2 else f"edit{number}"
        kind = f"seed{settings.job.seed}-{kind}" if several else kind
        command.tell(f"seed {settings.job.seed}")
        command.say(save_png(image, folder / f"{stem}-{kind}.png", settings))
    return f"seed {result.seeds[0]}", result.images


def save_pairs(
    rows: Sequence[tuple[str, list[Image]]], options: argparse.Namespace, prompts: Sequence[str]
) -> Path:
    """Before and after as one labelled picture, with a row for each seed."""
    from sdcore.image.grid import labelled_grid
    from sdcore.metadata.png import save_png

    folder, stem = _folder_and_stem(options)
    scales = f" ({', '.join(options.reweight)})" if options.reweight else ""
    names = [options.prompt, *(prompt + scales for prompt in prompts[1:])]
    sheet = labelled_grid([images for _, images in rows], names, [name for name, _ in rows])
    return save_png(sheet, folder / f"{stem}.png")


def _folder_and_stem(options: argparse.Namespace) -> tuple[Path, str]:
    if output.is_file(options.output):
        return options.output.parent, options.output.stem
    return options.output, output.slug(options.prompt)
