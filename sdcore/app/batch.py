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
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app import command, flags, output
from sdcore.app.job_lines import Line, read_lines
from sdcore.errors import FileError, SdcoreError, UsageError

if TYPE_CHECKING:
    from sdcore.app.adapters import Adapters
    from sdcore.app.model_choice import ModelChoice
    from sdcore.app.session import Session
    from sdcore.job.job import Job
    from sdcore.pipeline.result import TextToImageResult

_PAUSE = 10.0  # seconds between two lines on how far it is
_FAILED = 10  # of so many failures the reasons are printed; the file has all


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


@dataclass(frozen=True)
class Item:
    """A job of the file, and where its picture lies."""

    line: Line
    job: Job
    path: Path


def batch(options: argparse.Namespace) -> None:
    if options.images is not None:
        why = "Each line of the file is one picture."
        raise UsageError("--images has no effect here.", why, "Repeat the lines.")
    batch_size = flags.count(options, "batch_size", 1)
    model, adapters = flags.model_choice(options), flags.adapters(options)
    reading = _Reading(options, adapters, model)
    output.check_output(options.output)
    if output.is_file(options.output):
        why = "A picture of each line is written."
        raise UsageError(f"--output {options.output} is one file.", why, "Name a folder.")
    count = sum(1 for _ in _of_shard(options))
    if not count:
        why = "No line of it says what to paint, or none in this shard."
        raise FileError(f"{options.jobs} holds no job.", why, "Fill it, or use fewer shards.")

    from sdcore.app.session import Session, batches

    report = Report(options.output, options.shard, count)
    session = Session(model, adapters)
    items = reading.items(session, report)
    for group in batches(items, batch_size, job=lambda item: item.job):
        missing = [item for item in group if not item.path.exists()]
        for item in group:
            if item not in missing:
                report.was_there(item)
        if missing:  # the last digits of a picture depend on its group, which is painted whole
            paint(session, group, missing, report)
    report.close()


def _of_shard(options: argparse.Namespace) -> Iterator[Line]:
    first, of = options.shard
    return (line for line in read_lines(options.jobs) if (line.number - first) % of == 0)


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

    def items(self, session: Session, report: Report) -> Iterator[Item]:
        """The jobs of the shard; lines that cannot be read are reported."""
        for line in _of_shard(self.options):
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


class Report:
    """What became of each job: lines in files beside the pictures, and how far it is.

    Args:
        count: jobs that there are.

    Raises:
        UsageError: another run is at work on the same shard in the same folder.
    """

    def __init__(self, folder: Path, shard: tuple[int, int], count: int) -> None:
        from sdcore.files.atomic import append_line, make_folder
        from sdcore.files.locks import FolderLock

        of = "" if shard == (1, 1) else f"-{shard[0]}-of-{shard[1]}"
        make_folder(folder)
        self.pictures, self.failures = folder / f"batch{of}.jsonl", folder / f"failed{of}.jsonl"
        self.pictures.touch()
        try:
            self._lock = FolderLock(self.pictures)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder} is being filled.",
                "Another run paints the same jobs into it.",
                "Wait for it, or give each run a --shard of its own.",
            ) from error
        self.failures.unlink(missing_ok=True)  # they are tried again
        self._append = append_line
        self._told = set(_files_told(self.pictures))
        self.count, self.done, self.new, self.bad = count, 0, 0, 0
        self.codes: set[int] = set()
        self._begun = self._said = time.monotonic()
        self._bar: Any = None

    def was_there(self, item: Item) -> None:
        """A picture of an earlier run, whose line may have been lost with it."""
        if item.path.name not in self._told:
            from PIL import Image

            with Image.open(item.path) as image:
                self._line(item, item.path, image.convert("RGB").tobytes())
        self._advance()

    def painted(self, item: Item, path: Path, pixels: bytes) -> None:
        self._line(item, path, pixels)
        command.say(path)
        self.new += 1
        self._advance()

    def failed(self, line: Line, error: SdcoreError) -> None:
        said = {"number": line.number, "place": line.place, "prompt": line.values.get("prompt")}
        said |= {"what": error.what, "why": error.why, "try": error.hint}
        self._append(self.failures, json.dumps(said))
        self.bad += 1
        self.codes.add(error.exit_code)
        if self.bad <= _FAILED:
            command.tell(f"{line.place} failed: {error}")
        self._advance()

    def close(self) -> None:
        """Say what came of all. Raises SdcoreError where something failed."""
        if self._bar is not None:
            self._bar.close()
        before = self.done - self.new - self.bad
        command.tell(f"{self.new} painted, {before} were there, {self.bad} failed")
        self._lock.release()
        if self.bad:
            error = SdcoreError(
                f"{self.bad} of {self.count} jobs could not be painted.",
                f"The reasons are in {self.failures}.",
                "Correct those lines and run it again: what is painted stays.",
            )
            if len(self.codes) == 1:
                error.exit_code = self.codes.pop()
            raise error

    def _line(self, item: Item, path: Path, pixels: bytes) -> None:
        said = {
            "number": item.line.number,
            "place": item.line.place,
            "file": path.name,
            "prompt": item.job.prompt,
            "seed": item.job.seed,
            "sha256": hashlib.sha256(pixels).hexdigest(),
        }
        self._append(self.pictures, json.dumps(said))
        self._told.add(path.name)

    def _advance(self) -> None:
        self.done += 1
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = self._bar or tqdm(total=self.count, unit="picture", smoothing=0.1)
            self._bar.update(1)
            return
        now = time.monotonic()
        if now - self._said > _PAUSE and self.new:
            self._said = now
            each = (now - self._begun) / (self.new + self.bad)
            left = each * (self.count - self.done)
            command.tell(f"{self.done} of {self.count}, {each:.2f} s each, {left:.0f} s left")


def _files_told(path: Path) -> Iterator[str]:
    """The files that lines of earlier runs name; a line that a kill cut short names none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield str(json.loads(line)["file"])
            except (ValueError, KeyError, TypeError):
                continue
