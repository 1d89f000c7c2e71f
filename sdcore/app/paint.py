"""Paint prompts.

python sample/text_to_image.py "a red apple in flat style on a light blue background"
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.app import command, flags, from_picture, output
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.app.session import Session
    from sdcore.job.job import Job


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog,
        description="Paint prompts with the embedded model, or with Stable Diffusion 1.x, 2.x, XL.",
    )
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to paint; several in one go")
    add("--prompt-file", type=Path, metavar="FILE", help="more prompts, one a line (default: none)")
    from_picture.add_from_flag(parser)
    flags.add_painting_flags(parser)
    add("--width", type=int, metavar="N", help="in pixels (default: the model's)")
    add("--height", type=int, metavar="N", help="in pixels (default: the model's)")
    add("--size", metavar="WxH", help="both in one: 768x512, or 512 (default: the model's)")
    flags.add_hires_flags(parser)
    text = "print token by token how prompts are read, and paint nothing (default: no)"
    add("--explain-prompt", action="store_true", help=text)
    flags.add_model_flags(parser)
    flags.add_output_flags(parser)
    flags.add_enlarged_flag(parser)
    add("--grid", action="store_true", help="also write all pictures as one (default: no)")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(paint, make_parser(prog).parse_args, arguments)


def paint(options: argparse.Namespace) -> None:
    prompts = list(options.prompts)
    prompts += flags.read_prompts(options)
    adapters = flags.adapters(options)
    again = from_picture.read(options, adapters, prompts)
    model, sides = flags.model_choice(options), flags.sides(options)
    if again is not None:
        prompts, model = prompts or [again.job.prompt], again.model_choice(model)
    if not prompts:
        raise UsageError(
            "There is no prompt.",
            "Nothing says what to paint.",
            'Use for example "a red apple", --prompt-file or --from.',
        )
    images = flags.count(options, "images", 1 if again is None else again.images)
    usual = flags.BATCH_SIZE if again is None or again.place is None else again.images
    batch_size = flags.count(options, "batch_size", usual)
    jobs = make_jobs(options, prompts, images, again)
    jobs = flags.with_loras(jobs, adapters, () if again is None else again.job.loras)
    output.check_output(options.output, jobs)
    enlarged = flags.enlarged(options)

    from sdcore.app.session import Session, results
    from sdcore.pipeline.start import complete_size

    if not options.explain_prompt:
        output.greet(jobs, model, options.output)
    session = Session(model, adapters)
    pipe = session.pipe
    if again is not None:
        jobs = again.fitted(jobs, pipe, keep_clip_skip=options.clip_skip is not None)
    if options.explain_prompt:
        explain(jobs, session)
        return
    size = complete_size(*sides, jobs[0].source, pipe.native_size, pipe.autoencoder.factor)
    jobs = [with_size(job if size is None else replace(job, size=size), session) for job in jobs]
    grid: list[Image] = []
    names = output.Names(options.output, enlarged)
    for result in results(session.paint(jobs, batch_size=batch_size)):
        for image in output.save(result if again is None else again.kept(result), names):
            if options.grid:
                grid.append(image)
    if options.grid:
        command.say(output.save_grid(grid, len(prompts), images, options.output))


def make_jobs(
    options: argparse.Namespace,
    prompts: list[str],
    images: int,
    again: from_picture.Again | None,
) -> list[Job]:
    """A job for each picture, in order; flags come before what a picture says."""
    from sdcore.job.job import make_jobs

    settings = flags.job_settings(options)
    hires = flags.hires(options, None if again is None else again.job.hires)
    if again is not None:
        settings = {**again.settings(keep_size=flags.sides(options) == (None, None)), **settings}
        if settings["size"] is not None:
            settings["size"].paintable()
    return make_jobs(prompts, images_per_prompt=images, hires=hires, **settings)


def with_size(job: Job, session: Session) -> Job:
    """A job whose second pass says its size, with that of a first pass that suits the model."""
    if job.hires is None or job.size is not None:
        return job
    from sdcore.pipeline.second_pass import first_size
    from sdcore.size import Size

    size = Size(job.hires.width, job.hires.height)
    return replace(job, size=first_size(session.pipe, size))


def explain(jobs: list[Job], session: Session) -> None:
    """Print how each prompt, and the negative one, is read."""
    from sdcore.app.unknown_words import warn_of_unknown_words
    from sdcore.prompt.explain import explain_prompt

    warn_of_unknown_words(session.pipe, jobs)

    pipe = session.adapters.with_embeddings(session.pipe, jobs)
    tokenizer = pipe.readers[0][0]  # which knows the embeddings' words
    steps = jobs[0].steps or pipe.defaults.steps
    for prompt in dict.fromkeys(job.prompt for job in jobs):
        command.say(f"{explain_prompt(prompt, tokenizer, jobs[0].dialect, steps=steps)}\n")
    if jobs[0].negative_prompt:
        prompt = jobs[0].negative_prompt
        command.say(explain_prompt(prompt, tokenizer, jobs[0].dialect, steps=steps, negative=True))
