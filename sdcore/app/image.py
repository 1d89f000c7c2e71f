"""Paint from a picture, or repaint a part of one.

python sample/image_to_image.py fox.png "a red apple" --strength 0.7
python sample/image_to_image.py fox.png "a blue sky" --mask mask.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app import command, flags, output
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.job.job import Job

PADDING = 32  # the web UI's


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog,
        description="Paint from a picture, or repaint what a mask shows in white, with the "
        "embedded model, or with Stable Diffusion 1.x, 2.x, XL, their inpainting models and XL's "
        "refiner.",
    )
    add = parser.add_argument
    add("image", type=Path, metavar="PICTURE", help="PNG, JPEG, WebP, BMP or AVIF to begin from")
    add("prompts", nargs="+", metavar="PROMPT", help="what to paint; several in one go")
    text = "how much is painted anew, above 0 to 1 (default: the model's, with a mask 1)"
    add("--strength", type=float, metavar="X", help=text)
    masks = parser.add_mutually_exclusive_group()
    text = "a picture: white is repainted, black kept to the bit (default: no mask)"
    masks.add_argument("--mask", type=Path, metavar="FILE", help=text)
    text = "repaint what is transparent in the picture (default: no)"
    masks.add_argument("--mask-transparent", action="store_true", help=text)
    add("--invert-mask", action="store_true", help="repaint black, keep white (default: no)")
    text = f"paint only the part around the mask, this much wider ({PADDING}), at --size or the "
    text += "model's (default: no)"
    add("--only-masked", type=int, nargs="?", const=PADDING, metavar="PIXELS", help=text)
    text = "the model repaints each place that the mask touches, or as in diffusers those of which "
    text += "it holds the corner: touched or corner (default: touched)"
    add("--mask-cells", metavar="NAME", help=text)
    flags.add_painting_flags(parser)
    text = "to paint at, the picture is resized (default: its own, if that suits the model)"
    add("--size", metavar="WxH", help=text)
    flags.add_hires_flags(parser)
    flags.add_model_flags(parser)
    flags.add_output_flags(parser)
    flags.add_enlarged_flag(parser)
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(paint, make_parser(prog).parse_args, arguments)


def paint(options: argparse.Namespace) -> None:
    adapters = flags.adapters(options)
    model, sides = flags.model_choice(options), flags.sides(options)
    batch_size = flags.count(options, "batch_size", flags.BATCH_SIZE)
    jobs = flags.with_loras(make_jobs(options), adapters)
    output.check_output(options.output, jobs)
    enlarged = flags.enlarged(options)

    from sdcore.app.session import Session, results
    from sdcore.pipeline.start import complete_size

    output.greet(jobs, model, options.output, begin=f" from {options.image}")
    session = Session(model, adapters)
    pipe = session.pipe
    size = complete_size(*sides, jobs[0].source, pipe.native_size, pipe.autoencoder.factor)
    jobs = [replace(job, size=size) for job in jobs]
    names = output.Names(options.output, enlarged)
    for result in results(session.paint(jobs, batch_size=batch_size)):
        for _ in output.save(result, names):
            pass


def make_jobs(options: argparse.Namespace) -> list[Job]:
    """A job for each picture to paint, checked as far as can be without a model."""
    from sdcore.job.job import make_jobs

    hires, pictures = flags.hires(options), read_pictures(options)
    if hires is not None and pictures["mask"] is not None:
        raise UsageError(
            "--hires cannot be used with a mask.",
            "The second pass would paint over what the mask keeps.",
            "Enlarge the result in a run of its own: without a mask, with a low --strength.",
        )
    return make_jobs(
        options.prompts,
        images_per_prompt=flags.count(options, "images", 1),
        strength=options.strength,
        only_masked=options.only_masked,
        mask_cells=options.mask_cells,
        hires=hires,
        **pictures,
        **flags.job_settings(options),
    )


def read_pictures(options: argparse.Namespace) -> dict[str, Any]:
    """Picture and mask as the flags name them."""
    from PIL import ImageOps

    from sdcore.image.pictures import open_mask, open_picture, open_transparency

    image, mask = open_picture(options.image), None
    if options.mask is not None:
        mask = open_mask(options.mask)
    elif options.mask_transparent:
        mask = open_transparency(options.image)
    if mask is not None and options.invert_mask:
        mask = ImageOps.invert(mask)
    alone = ("--invert-mask", options.invert_mask), ("--mask-cells", options.mask_cells is not None)
    alone = *alone, ("--only-masked", options.only_masked is not None)
    if mask is None and any(given for _, given in alone):
        raise UsageError(
            f"{next(flag for flag, given in alone if given)} is given alone.",
            "It needs a mask.",
            "Add --mask mask.png, or --mask-transparent.",
        )
    return {"image": image, "mask": mask}
