"""Paint a file of jobs, one a line, of any length; run again, it goes on where it ended.

sdcore batch prompts.txt --output out
sdcore batch prompts.jsonl --output out --shard 2/8

A picture's name has the number of its job and a digest of what was asked for, so a name that is
there is a picture that is painted: nothing else is needed to go on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.app import command, flags, output
from sdcore.app.batch_report import Item, Report
from sdcore.app.job_lines import Line, read_lines
from sdcore.errors import FileError, SdcoreError, UsageError

if TYPE_CHECKING:
    from sdcore.app.adapters import Adapters
    from sdcore.app.model_choice import ModelChoice
    from sdcore.app.session import Session
    from sdcore.job.job import Job
    from sdcore.pipeline.result import TextToImageResult


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog,
        description="Paint a file of jobs, one a line. Run again, it paints what is missing.",
    )
    add = parser.add_argument
    text = "prompts.txt, .csv, .jsonl or .parquet: a job a line"
    add("jobs", type=Path, metavar="FILE", help=text)
    text = "paint every n-th job, beginning with the i-th (default: 1/1, which is all)"
    add("--shard", type=read_shard, default=(1, 1), metavar="I/N", help=text)
    flags.add_painting_flags(parser, batch_size=1)
    add("--size", metavar="WxH", help="768x512, or 512 (default: the model's)")
    flags.add_hires_flags(parser)
    flags.add_model_flags(parser)
    flags.add_output_flags(parser)
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    stopped = "stopped; what was painted before is saved, and the same command goes on from there"
    return command.run(batch, make_parser(prog).parse_args, arguments, stopped=stopped)


def read_shard(text: str) -> tuple[int, int]:
    """I/N, such as 2/8."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 2/8, with I from 1 to N")
    return int(found[1]), int(found[2])


def batch(options: argparse.Namespace) -> None:
    Batch(options).paint(options.shard)


class Batch:
    """A file of jobs with the model that paints it, which is loaded once for any number of shards.

    Args:
        options: what `make_parser` reads; its shard is not looked at.

    Raises:
        UsageError: flags that say nothing here, or no folder to write to.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        if options.images is not None:
            why = "Each line of the file is one picture."
            raise UsageError("--images has no effect here.", why, "Repeat the lines.")
        self._jobs, self._folder = options.jobs, options.output
        self._batch_size = flags.count(options, "batch_size", 1)
        self._model, self._adapters = flags.model_choice(options), flags.adapters(options)
        self._reading = _Reading(options, self._adapters, self._model)
        output.check_output(self._folder)
        if output.is_file(self._folder):
            why = "A picture of each line is written."
            raise UsageError(f"--output {self._folder} is one file.", why, "Name a folder.")

    @cached_property
    def session(self) -> Session:
        """The model and its adapters."""
        from sdcore.app.session import Session

        return Session(self._model, self._adapters)

    def paint(self, shard: tuple[int, int]) -> None:
        """Paint what is missing of a shard, (i, n) with i from 1 to n.

        Raises:
            FileError: the file cannot be read, or holds no job of this shard.
            UsageError: another run is at work on it.
            SdcoreError: some jobs could not be painted; all others are.
        """
        count = sum(1 for _ in self._lines(shard))
        if not count:
            why = "No line of it says what to paint, or none in this shard."
            raise FileError(f"{self._jobs} holds no job.", why, "Fill it, or use fewer shards.")

        from sdcore.app.session import batches

        report = Report(self._folder, shard, count)
        items = self._reading.items(self._lines(shard), self.session, report)
        for group in batches(items, self._batch_size, job=lambda item: item.job):
            missing = [item for item in group if not item.path.exists()]
            for item in group:
                if item not in missing:
                    report.was_there(item)
            if missing:  # the last digits of a picture depend on its group, which is painted whole
                paint(self.session, group, missing, report)
        report.close()

    def _lines(self, shard: tuple[int, int]) -> Iterator[Line]:
        first, of = shard
        return (line for line in read_lines(self._jobs) if (line.number - first) % of == 0)


class _Reading:
    """Lines as jobs: what a line does not say, flags say for all of them."""

    def __init__(self, options: argparse.Namespace, adapters: Adapters, model: ModelChoice) -> None:
        from sdcore.job.job import check_seed

        self.options, self.adapters = options, adapters
        self.settings = flags.job_settings(options)
        self.seed = check_seed(self.settings.pop("seed", 0))
        self.hires, self.sides = flags.hires(options), flags.sides(options)
        shown = {name: v for name, v in asdict(model).items() if name not in ("device", "offline")}
        self.model = json.dumps(shown, default=str)

    def items(self, lines: Iterable[Line], session: Session, report: Report) -> Iterator[Item]:
        """The jobs of lines; those that cannot be read are reported."""
        for line in lines:
            try:
                if line.error is not None:
                    raise line.error
                job = self._job(line, session)
            except SdcoreError as error:
                report.failed(line, error)
            else:
                yield Item(line, job, self.options.output / self._name(line, job))

    def _job(self, line: Line, session: Session) -> Job:
        from sdcore.app.paint import with_size
        from sdcore.job.job import GENEROUS, NOISE
        from sdcore.job.record import job_from_dict
        from sdcore.pipeline.start import complete_size

        values, pipe = dict(line.values), session.pipe
        if not values.keys() & {"width", "height"}:
            values |= dict(zip(("width", "height"), self.sides, strict=True))
        sides = values.get("width"), values.get("height")
        if None in sides and sides != (None, None):
            size = complete_size(*sides, NOISE, pipe.native_size, pipe.autoencoder.factor)
            values |= {} if size is None else {"width": size.width, "height": size.height}
        values.setdefault("seed", self.seed + line.number - 1)
        settings = {name: v for name, v in self.settings.items() if name not in values}
        if "hires" not in values:
            settings["hires"] = self.hires
        job = replace(
            job_from_dict(values, budget=self.settings.get("budget", GENEROUS)), **settings
        )
        if not job.loras:
            (job,) = flags.with_loras([job], self.adapters)
        return with_size(job, session)

    def _name(self, line: Line, job: Job) -> str:
        from sdcore.job.record import job_to_dict

        asked = json.dumps(job_to_dict(job), sort_keys=True) + self.model
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        return f"{line.number:06d}-{output.slug(job.prompt)}-{digest}.png"


def paint(session: Session, group: Sequence[Item], missing: Sequence[Item], report: Report) -> None:
    """Paint a group and write what is missing of it; where that fails, each of them alone."""
    from sdcore.app.session import results

    try:
        jobs = [item.job for item in group]
        (result,) = results(session.paint(jobs, batch_size=len(jobs)), shown=False)
    except Exception as error:
        if len(group) == 1:
            report.failed(group[0].line, command.as_failure(error))
        else:
            for item in missing:
                paint(session, [item], [item], report)
        return
    for place, item in enumerate(group):
        if item in missing:
            save(result, place, item, report)


def save(result: TextToImageResult, place: int, item: Item, report: Report) -> None:
    """Write a picture, then its line."""
    from sdcore.metadata.png import save_png

    path = save_png(result.images[place], item.path, result.settings[place])
    report.painted(item, path, result.images[place].tobytes())
