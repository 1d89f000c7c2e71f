"""Paint from a picture, or repaint a part of one.

sdcore image fox.png "a red apple" --strength 0.7
sdcore image fox.png "a blue sky" --mask mask.png
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.app import command
from sdcore.app import session as painting
from sdcore.app.sizes import add_hires_flags, parse_size, read_hires
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from typing import Any

PADDING = 32  # the web UI's


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Paint from a picture, or repaint what a mask shows in white, with the "
        "embedded model, or with Stable Diffusion 1.x, 2.x, XL, their inpainting models and XL's "
        "refiner.",
    )
    add = parser.add_argument
    add("image", type=Path, metavar="PICTURE", help="PNG, JPEG or WebP to begin from")
    add("prompts", nargs="+", metavar="PROMPT", help="what to paint; several in one go")
    text = "how much is painted anew, above 0 to 1 (default: the model's, with a mask 1)"
    add("--strength", type=float, metavar="X", help=text)
    masks = parser.add_mutually_exclusive_group()
    text = "picture as large: white is repainted, black kept to the bit (default: no mask)"
    masks.add_argument("--mask", type=Path, metavar="FILE", help=text)
    text = "repaint what is transparent in the picture (default: no)"
    masks.add_argument("--mask-transparent", action="store_true", help=text)
    add("--invert-mask", action="store_true", help="repaint black, keep white (default: no)")
    text = f"paint only the part around the mask, this much wider ({PADDING}), at --size or the "
    text += "model's (default: no)"
    add("--only-masked", type=int, nargs="?", const=PADDING, metavar="PIXELS", help=text)
    command.add_painting_flags(parser)
    text = "to paint at, the picture is resized (default: its own size, down to a multiple of 8)"
    add("--size", metavar="WxH", help=text)
    add_hires_flags(parser)
    text = "autoencoder in tiles, for little memory (default: no)"
    add("--tiled", action="store_true", help=text)
    command.add_model_flags(parser)
    command.add_output_flags(parser)
    parser.set_defaults(width=None, height=None, source=None)
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(paint, make_parser(prog).parse_args(arguments))


def paint(options: argparse.Namespace) -> None:
    hires = read_hires(options)
    size = parse_size(options)
    command.check(options)
    given = read_pictures(options, size)
    pipe = painting.load(options)
    second = None
    if hires is not None:
        from sdcore.pipeline.second_pass import enlarge

        second = partial(enlarge, tiled=options.tiled, **vars(hires))
    more = {**given, **size, "tiled": options.tiled}
    for result in painting.paint_batches(pipe, options.prompts, options, second, **more):
        for _ in command.save(result, options.output):
            pass


def read_pictures(options: argparse.Namespace, size: dict[str, int | None]) -> dict[str, Any]:
    """Picture and mask as arguments of the pipeline, checked as far as can be without a model."""
    from PIL import ImageOps

    from sdcore.image.pictures import open_mask, open_picture, open_transparency
    from sdcore.pipeline.source import read_source

    image, mask = open_picture(options.image), None
    if options.mask is not None:
        mask = open_mask(options.mask)
    elif options.mask_transparent:
        mask = open_transparency(options.image)
    if mask is not None and options.invert_mask:
        mask = ImageOps.invert(mask)
    if mask is None and (options.invert_mask or options.only_masked is not None):
        raise UsageError(
            f"{'--invert-mask' if options.invert_mask else '--only-masked'} is given alone.",
            "It needs a mask.",
            "Add --mask mask.png, or --mask-transparent.",
        )
    if mask is not None and options.hires is not None:
        raise UsageError(
            "--hires cannot be used with a mask.",
            "The second pass would paint over what the mask keeps.",
            "Enlarge the result in a run of its own: without a mask, with a low --strength.",
        )
    given = {"strength": options.strength, "only_masked": options.only_masked}
    sides = (size["width"], size["height"])
    read_source(image, mask, denoising_start=None, size=sides, **given)
    return {"image": image, "mask": mask, **given}
