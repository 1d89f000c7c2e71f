"""What became of the jobs of a batch: lines in files beside the pictures, and how far it is."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app import command
from sdcore.app.job_lines import Line
from sdcore.errors import SdcoreError, UsageError, is_terminal

if TYPE_CHECKING:
    from sdcore.job.job import Job

_PAUSE = 10.0  # seconds between two lines on how far it is
_FAILED = 10  # of so many failures the reasons are printed; the file has all


@dataclass(frozen=True)
class Item:
    """A job of the file, and where its picture lies."""

    line: Line
    job: Job
    path: Path


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
        from sdcore.files.opening import require_file

        of = "" if shard == (1, 1) else f"-{shard[0]}-of-{shard[1]}"
        make_folder(folder)
        self.pictures, self.failures = folder / f"batch{of}.jsonl", folder / f"failed{of}.jsonl"
        self.pictures.touch()
        require_file(self.pictures)  # a pipe would be waited for
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
        if is_terminal(sys.stderr):
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
