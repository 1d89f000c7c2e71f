"""Change words of a prompt and keep the picture: before and after, side by side.

sdcore edit "a fox in flat style" --to "a cat in flat style" --seed 3
sdcore edit "a red apple" --reweight "red:0" --images 4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app import adapters, command
from sdcore.app.sizes import parse_size
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore import TextToImage
    from sdcore.control.prompt_edit import EditSettings, PromptEdit
    from sdcore.control.run_control import Run
    from sdcore.pipeline.text_to_image import TextToImageResult

CROSS = (0.0, 0.5)
LAYOUT = 0.4
_RANGE = "two numbers from 0 to 1 joined by -, such as 0-0.8"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    command.add_painting_flags(parser)
    add("--size", metavar="WxH", help="768x512, or 512 (default: the model's)")
    command.add_model_flags(parser)
    command.add_output_flags(parser)
    parser.set_defaults(width=None, height=None)
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(edit, make_parser(prog).parse_args(arguments))


def edit(options: argparse.Namespace) -> None:
    if not options.to and not options.reweight:
        raise UsageError(
            "Nothing is changed.",
            "There is no changed prompt and no word that counts more or less.",
            'Add --to "a cat on grass", or --reweight fox:2.',
        )
    settings, size = read_settings(options), parse_size(options)
    # Without a changed prompt it is the same one, re-weighted.
    options.prompts = [options.prompt, *(options.to or [options.prompt])]
    command.check(options)
    if len({adapters.choose(options, prompt) for prompt in options.prompts}) > 1:
        why = "They are painted together, with one model."
        raise UsageError("The prompts name different LoRAs.", why, "Name the same ones in all.")
    if options.batch_size is not None:
        why = "A picture and its changed versions are painted together."
        raise UsageError("--batch-size has no effect here.", why, "Leave it out.")
    from sdcore.app.session import load

    pipe = load(options)
    rows = [save_row(result, options) for result in paint(pipe, options, settings, size)]
    print(save_pairs(rows, options))


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
    pipe: TextToImage,
    options: argparse.Namespace,
    settings: EditSettings,
    size: dict[str, Any],
) -> Iterator[TextToImageResult]:
    """The prompt and its edits from one noise, once for each of `--images` seeds."""
    import secrets

    from sdcore.app.session import paint_batches
    from sdcore.control.made_at_begin import MadeAtBegin, tokens_in_run
    from sdcore.control.prompt_edit import PromptEdit

    def make(run: Run) -> PromptEdit:
        tokenizers = [tokenizer for tokenizer, _ in pipe.readers]
        dialect = options.dialect or "plain"
        return PromptEdit(tokens_in_run(tokenizers, options.prompts, dialect, run), settings)

    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    for number in range(options.images or 1):
        together = {"images": 1, "batch_size": len(options.prompts), "seed": seed + number}
        yield from paint_batches(
            pipe,
            options.prompts,
            argparse.Namespace(**{**vars(options), **together}),
            one_seed=True,
            control=MadeAtBegin(make),
            **size,
        )


def save_row(result: TextToImageResult, options: argparse.Namespace) -> tuple[str, list[Image]]:
    """Write the pictures, each with its settings and a name that says which it is."""
    from sdcore.metadata.png import save_png

    folder, stem = _folder_and_stem(options)
    for number, (image, settings) in enumerate(zip(result.images, result.settings, strict=True)):
        kind = "source" if number == 0 else "edit"
        print(save_png(image, folder / f"{stem}-{kind}.png", settings), flush=True)
    return f"seed {result.settings[0].seed}", result.images


def save_pairs(rows: Sequence[tuple[str, list[Image]]], options: argparse.Namespace) -> Path:
    """Before and after as one labelled picture, with a row for each seed."""
    from sdcore.image.grid import labelled_grid
    from sdcore.metadata.png import save_png

    folder, stem = _folder_and_stem(options)
    scales = f" ({', '.join(options.reweight)})" if options.reweight else ""
    names = [options.prompt, *(prompt + scales for prompt in options.prompts[1:])]
    sheet = labelled_grid([images for _, images in rows], names, [name for name, _ in rows])
    return save_png(sheet, folder / f"{stem}.png")


def _folder_and_stem(options: argparse.Namespace) -> tuple[Path, str]:
    if command.is_file(options.output):
        return options.output.parent, options.output.stem
    return options.output, command.slug(options.prompt)
