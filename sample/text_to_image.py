"""Paint prompts.

python sample/text_to_image.py "a red apple on a light blue background"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sample import command, from_picture
from sdcore.errors import FileError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Paint prompts with the embedded model, or with Stable Diffusion 1.x, 2.x, XL."
    )
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to paint; several in one go")
    add("--prompt-file", type=Path, metavar="FILE", help="more prompts, one a line (default: none)")
    from_picture.add_from_flag(parser)
    command.add_painting_flags(parser)
    add("--width", type=int, help="in pixels (default: the model's)")
    add("--height", type=int, help="in pixels (default: the model's)")
    add("--size", metavar="WxH", help="both in one: 768x512, or 512 (default: the model's)")
    command.add_model_flags(parser)
    command.add_output_flags(parser)
    add("--grid", action="store_true", help="also write all pictures as one (default: no)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    return command.run(paint, make_parser().parse_args(arguments))


def paint(options: argparse.Namespace) -> None:
    options.prompts += read_prompts(options.prompt_file) if options.prompt_file else []
    options, recipe = from_picture.fill(options, from_picture.read_source(options))
    if not options.prompts:
        raise UsageError(
            "There is no prompt.",
            "Nothing says what to paint.",
            'Use for example "a red apple", --prompt-file or --from.',
        )
    size = parse_size(options)
    command.check(options)
    pipe = command.load(options)
    options = from_picture.fit(options, recipe, pipe)
    grid: list[Image] = []
    for result in command.paint_batches(pipe, options.prompts, options, **size):
        for image in command.save(result, options.output):
            if options.grid:
                grid.append(image)
    if options.grid:
        print(save_grid(grid, options))


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


def parse_size(options: argparse.Namespace) -> dict[str, int | None]:
    """Width and height as far as they are given. UsageError where they cannot be."""
    from sdcore.request import check_size

    sides = {"width": options.width, "height": options.height}
    if options.size is not None:
        width, x, height = options.size.lower().partition("x")
        twice = sides != {"width": None, "height": None}
        if twice or not _is_count(width) or (x and not _is_count(height)):
            raise UsageError(
                f"--size {options.size} cannot be used.",
                "It is one number or two joined by x, and stands in place of --width and --height.",
                "Use for example --size 512 or --size 768x512.",
            )
        sides = {"width": int(width), "height": int(height or width)}
    return {name: s if s is None else check_size(s, name) for name, s in sides.items()}


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 7


def save_grid(images: list[Image], options: argparse.Namespace) -> Path:
    from PIL import Image

    from sdcore.png import save_png

    rows, columns = len(options.prompts), options.images
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


if __name__ == "__main__":
    sys.exit(main())
