"""Paint prompts.

sdcore paint "a red apple in flat style on a light blue background"
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.app import command, from_picture
from sdcore.app import session as painting
from sdcore.app.sizes import add_hires_flags, parse_size, read_hires
from sdcore.errors import FileError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore import TextToImage


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Paint prompts with the embedded model, or with Stable Diffusion 1.x, 2.x, XL.",
    )
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to paint; several in one go")
    add("--prompt-file", type=Path, metavar="FILE", help="more prompts, one a line (default: none)")
    from_picture.add_from_flag(parser)
    command.add_painting_flags(parser)
    add("--width", type=int, metavar="N", help="in pixels (default: the model's)")
    add("--height", type=int, metavar="N", help="in pixels (default: the model's)")
    add("--size", metavar="WxH", help="both in one: 768x512, or 512 (default: the model's)")
    add_hires_flags(parser)
    text = "autoencoder in tiles, for large pictures in little memory (default: no)"
    add("--tiled", action="store_true", help=text)
    text = "print token by token how prompts are read, and paint nothing (default: no)"
    add("--explain-prompt", action="store_true", help=text)
    command.add_model_flags(parser)
    command.add_output_flags(parser)
    add("--grid", action="store_true", help="also write all pictures as one (default: no)")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(paint, make_parser(prog).parse_args(arguments))


def paint(options: argparse.Namespace) -> None:
    options.prompts += read_prompts(options.prompt_file) if options.prompt_file else []
    options.hires = read_hires(options)
    options, recipe = from_picture.fill(options, from_picture.read_source(options))
    if not options.prompts:
        raise UsageError(
            "There is no prompt.",
            "Nothing says what to paint.",
            'Use for example "a red apple", --prompt-file or --from.',
        )
    size = parse_size(options)
    command.check(options)
    pipe = painting.load(options)
    options = from_picture.fit(options, recipe, pipe)
    if options.explain_prompt:
        explain(options, pipe)
        return
    grid: list[Image] = []
    more = {**from_picture.more_arguments(options, recipe), **size}
    second = None
    if options.hires is not None:
        from sdcore.pipeline.second_pass import enlarge, first_size

        second = partial(enlarge, tiled=more["tiled"], **vars(options.hires))
        if size == {"width": None, "height": None}:
            width, height = first_size(pipe, options.hires.width, options.hires.height)
            more |= {"width": width, "height": height}
    results = painting.paint_batches(pipe, options.prompts, options, second, **more)
    for result in from_picture.kept(options, results):
        for image in command.save(result, options.output):
            if options.grid:
                grid.append(image)
    if options.grid:
        print(save_grid(grid, options))


def explain(options: argparse.Namespace, pipe: TextToImage) -> None:
    """Print how each prompt, and the negative one, is read."""
    from sdcore.prompt.explain import explain_prompt

    steps = options.steps or pipe.defaults.steps
    dialect = options.dialect or "plain"
    tokenizer = pipe.readers[0][0]
    for prompt in options.prompts:
        print(explain_prompt(prompt, tokenizer, dialect, steps=steps), end="\n\n")
    if options.negative_prompt:
        prompt = options.negative_prompt
        print(explain_prompt(prompt, tokenizer, dialect, steps=steps, negative=True))


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank. Raises FileError."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "It is not UTF-8 text."
        raise FileError(
            f"--prompt-file {path} cannot be read.",
            f"{why}",
            "Give a text file, one prompt a line.",
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise FileError(
            f"--prompt-file {path} holds no prompt.", "All its lines are blank.", "Fill it."
        )
    return prompts


def save_grid(images: list[Image], options: argparse.Namespace) -> Path:
    from PIL import Image

    from sdcore.metadata.png import save_png

    rows, columns = len(options.prompts), options.images or 1
    if rows > 1 and columns == 1:  # one picture of each prompt: nearly a square
        columns = int(len(images) ** 0.5 + 0.999)
        rows = -(-len(images) // columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for place, image in enumerate(images):
        grid.paste(image, (place % columns * width, place // columns * height))
    output = options.output
    one_file = command.is_file(output)
    path = output.with_stem(f"{output.stem}-grid") if one_file else output / "grid.png"
    return save_png(grid, path)
