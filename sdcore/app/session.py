"""A session: a model that is loaded once, its adapters by name, and jobs painted with it.

Commands, a batch, a page and a server all paint through one of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

from sdcore.app.adapters import Adapters
from sdcore.app.command import tell
from sdcore.app.model_choice import ModelChoice
from sdcore.app.unknown_words import warn_of_unknown_words
from sdcore.errors import is_terminal
from sdcore.job.job import OWN, Job
from sdcore.pipeline.result import Moment, TextToImageResult
from sdcore.pipeline.text_to_image import TextToImage

if TYPE_CHECKING:
    from sdcore.control.run_control import ControlLike


@dataclass(frozen=True)
class BatchBegins:
    """Images `first` to `last`, counted from 1, of `count` are painted next."""

    first: int
    last: int
    count: int


class Session:
    """A model with the adapters that names stand for.

    Args:
        model: which, and where it runs.
        adapters: the files behind the names in jobs.
    """

    def __init__(self, model: ModelChoice, adapters: Adapters | None = None) -> None:
        self.model, self.adapters = model, adapters or Adapters()
        self.pipe: TextToImage = model.load()

    @cached_property
    def _known(self) -> dict[str, Any]:
        """What records say of the model beside its name; its weights are hashed but once."""
        prediction, digest = self.model.prediction_type, self.model.model_hash()
        return {"prediction_type": prediction, "model_hash": digest}

    def paint(
        self,
        jobs: Sequence[Job],
        *,
        batch_size: int = 1,
        control: ControlLike | None = None,
    ) -> Iterator[BatchBegins | Moment | TextToImageResult]:
        """Paint jobs in their order; those in a row that are alike, `batch_size` at a time.

        Yields what happens: a batch begins, a step was taken, a batch is done. Whoever stops asking
        stops the run.
        """
        warn_of_unknown_words(self.pipe, jobs)
        first = 1
        for batch in batches(jobs, batch_size, job=lambda job: job):
            yield BatchBegins(first, first + len(batch) - 1, len(jobs))
            first += len(batch)
            for happened in self._batch(batch, control):
                if isinstance(happened, TextToImageResult):
                    settings = [replace(one, **self._known) for one in happened.settings]
                    happened = replace(happened, settings=settings)
                yield happened

    def prepared(self, jobs: Sequence[Job]) -> TextToImage:
        """The model with what these jobs, which are alike, ask for."""
        pipe = self.adapters.with_embeddings(self.pipe, jobs)
        return self.adapters.with_loras(pipe, jobs[0])

    def _batch(
        self, jobs: Sequence[Job], control: ControlLike | None
    ) -> Iterator[Moment | TextToImageResult]:
        yield from self.prepared(jobs).painting(jobs, control)


ItemT = TypeVar("ItemT")


def batches(
    items: Iterable[ItemT], size: int, job: Callable[[ItemT], Job]
) -> Iterator[list[ItemT]]:
    """Items in a row whose jobs can be painted at once, at most `size` of them together.

    They are taken one by one, so that there may be any number of them.
    """
    names = [field.name for field in fields(Job) if field.name not in OWN]

    def alike(item: ItemT) -> tuple[Any, ...]:
        of = job(item)
        return (*(getattr(of, name) for name in names), type(of.source))

    for _, group in groupby(items, key=alike):
        while together := list(islice(group, size)):
            yield together


def results(
    happenings: Iterable[BatchBegins | Moment | TextToImageResult], *, shown: bool = True
) -> Iterator[TextToImageResult]:
    """The results alone, with the progress shown: a bar in a terminal, elsewhere plain lines."""
    progress = _Progress()
    try:
        for happened in happenings:
            if not shown and not isinstance(happened, TextToImageResult):
                continue
            if isinstance(happened, BatchBegins):
                progress.begin(f"images {happened.first}-{happened.last} of {happened.count}")
            elif isinstance(happened, Moment):
                progress.step(happened)
            else:
                progress.close()
                yield happened
    finally:
        progress.close()


class _Progress:
    """A bar in a terminal; elsewhere a plain line for each quarter of the way."""

    def __init__(self) -> None:
        self.title = ""
        self.bar: Any = None
        self.rerun = False

    def begin(self, title: str) -> None:
        self.close()
        self.title, self.rerun = title, False

    def step(self, moment: Moment) -> None:
        step = moment.step
        if moment.rerun and not self.rerun:
            self.begin(f"{self.title}, second pass")
            self.rerun = True
        done = step.index + 1
        if is_terminal(sys.stderr):
            from tqdm import tqdm

            self.bar = self.bar or tqdm(total=step.count, desc=self.title, unit="step")
            self.bar.update(1)
        elif done * 4 // step.count > step.index * 4 // step.count:
            tell(f"{self.title}: step {done} of {step.count}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
