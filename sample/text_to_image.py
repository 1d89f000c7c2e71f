"""Paint prompts.

python sample/text_to_image.py "a red apple on a light blue background"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sample import command
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Paint prompts with the embedded model, or with Stable Diffusion 1.x, 2.x, XL."
    )
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="what to paint; several in one go")
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
    size = parse_size(options)
    command.check(options)
    pipe = command.load(options)
    grid: list[Image] = []
    for result in command.paint_batches(pipe, options.prompts, options, **size):
        for image in command.save(result, options.output):
            if options.grid:
                grid.append(image)
    if options.grid:
        print(save_grid(grid, options))


def parse_size(options: argparse.Namespace) -> dict[str, int | None]:
    if options.size is None:
        return {"width": options.width, "height": options.height}
    width, x, height = options.size.lower().partition("x")
    twice = options.width is not None or options.height is not None
    if twice or not width.isdigit() or (x and not height.isdigit()):
        raise UsageError(
            f"--size {options.size} cannot be used.",
            "It is one number or two joined by x, and stands in place of --width and --height.",
            "Use for example --size 512 or --size 768x512.",
        )
    return {"width": int(width), "height": int(height or width)}


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
