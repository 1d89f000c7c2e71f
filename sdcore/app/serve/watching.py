"""What is seen while a job is painted: the picture that is expected, and where words are read.

Whoever watches changes nothing: the picture and its record are those of the job alone.

Shapes: B images, C latent channels, h w grid, G columns (start, end with padding, words).
"""

from __future__ import annotations

import base64
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdcore.app.serve.painter import Task
from sdcore.control.chain import chain
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.made_at_begin import MadeAtBegin, tokens_in_run
from sdcore.control.prompt_edit import EditSettings, PromptEdit
from sdcore.control.run_control import Run, RunControl
from sdcore.image.data_url import data_url
from sdcore.image.pictures import to_images
from sdcore.pipeline.result import Moment, TextToImageResult
from sdcore.prompt.text import BREAK
from sdcore.text.nouns import nouns
from sdcore.text.words import FIRST_WORD, SPECIAL

if TYPE_CHECKING:
    from sdcore.app.session import Session
    from sdcore.diffusion.steps import Step
    from sdcore.job.job import Job
    from sdcore.pipeline.text_to_image import TextToImage

Tell = Callable[[str, dict[str, Any]], None]
DRAFT_STEPS = 4
_SHARE = 0.5  # of the time at most, that decoding what is expected takes
_LARGEST = 512


class Expected(RunControl):
    """Tells of each step, with the last image's picture that the model expects in the end.

    Args:
        pictures: False tells of the steps alone.
    """

    def __init__(self, pipe: TextToImage, tell: Tell, *, pictures: bool = True) -> None:
        self.pipe, self.tell, self.pictures = pipe, tell, pictures
        self._took, self._ended = 0.0, 0.0

    @property
    def watches(self) -> bool:
        return True

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        begun = time.monotonic()
        said: dict[str, Any] = {"index": step.index, "count": step.count}
        if self.pictures and begun - self._ended >= self._took * (1 / _SHARE - 1):
            (picture,) = to_images(self.pipe.autoencoder.decode(guess()[-1:]))
            picture.thumbnail((_LARGEST, _LARGEST))
            said["picture"] = data_url(picture)
            self._ended = time.monotonic()
            self._took = self._ended - begun
        self.tell("step", said)


def paint_alone(session: Session, jobs: Sequence[Job], task: Task) -> list[TextToImageResult]:
    """Jobs one after the other; those that are done when somebody stops it, if there are any."""
    found: list[TextToImageResult] = []
    for job in jobs:
        if found and task.stopped:
            break
        try:
            found.append(paint_one(session, [job], task, None))
            task.finished()
        except Exception:
            if not (found and task.stopped):
                raise
    return found


def paint_one(
    session: Session, jobs: Sequence[Job], task: Task, control: RunControl | None
) -> TextToImageResult:
    """Jobs in one batch."""
    for happened in session.paint(jobs, batch_size=len(jobs), control=control):
        if isinstance(happened, Moment):
            task.took(happened)
        elif isinstance(happened, TextToImageResult):
            return happened
    raise AssertionError("a painting ends with its result")


def paint_seen(
    session: Session,
    jobs: Sequence[Job],
    task: Task,
    tell: Tell,
    edit: EditSettings | None = None,
    *,
    heatmaps: bool = False,
    pictures: bool = True,
) -> tuple[TextToImageResult, list[dict[str, Any]]]:
    """A job, or one and its edit, with what is seen meanwhile; the words of the last one.

    Args:
        jobs: one, or with `edit` the source and the changed one.
        tell: is told of each step, with the picture that is then expected where there are
            to be `pictures`.
    """
    pipe = session.prepared(jobs)
    tokenizers = [tokenizer for tokenizer, _ in pipe.readers]
    prompts, dialect = [job.text for job in jobs], jobs[0].dialect

    def maps_of(run: Run) -> WordHeatmaps:
        return WordHeatmaps(tokens_in_run(tokenizers, prompts, dialect, run))

    def edit_of(run: Run) -> PromptEdit:
        return PromptEdit(tokens_in_run(tokenizers, prompts, dialect, run), edit)

    recording = MadeAtBegin(maps_of)
    controls: list[RunControl] = [Expected(pipe, tell, pictures=pictures)]
    controls += [recording] if heatmaps else []
    controls += [MadeAtBegin(edit_of)] if edit is not None else []
    result = paint_one(session, jobs, task, chain(*controls))
    words = list(read_words(recording.made, jobs[-1])) if heatmaps else []
    return result, words


def as_draft(jobs: Sequence[Job], session: Session) -> list[Job] | None:
    """Jobs in few steps from the same noise; None where they have few steps already."""
    steps = jobs[0].steps or session.pipe.defaults.steps
    if steps < 2 * DRAFT_STEPS:
        return None
    fewer: dict[str, Any] = {"steps": DRAFT_STEPS, "deepcache": 1, "tgate": None, "hires": None}
    return [replace(job, **fewer) for job in jobs]


def read_words(heatmaps: WordHeatmaps, job: Job) -> Iterator[dict[str, Any]]:
    """Start, end with padding, and each word of the last image: where it is read, and how much.

    `start` and `end` count the letters of text number `of`: 0 is the prompt, then the regions'.
    `map` holds h w levels of 0 to 255 between `low` and `high`, as base64.
    """
    image = heatmaps.images - 1
    maps = heatmaps.maps(image=image).cpu()  #  (G, h, w)
    for name, one in zip(SPECIAL, maps, strict=False):
        yield {"word": name, "special": True, "share": float(one.mean()), **_packed(one)}
    shares = heatmaps.share(image=image)
    texts = job.prompt, *(region.prompt for region in job.regions)
    begins = [0, *accumulate(len(text) + len(BREAK) for text in texts[:-1])]
    named = nouns([each.span for each in shares], job.text)
    own = maps[FIRST_WORD : FIRST_WORD + len(shares)]  # another prompt may have more words
    for each, one, noun in zip(shares, own, named, strict=True):
        span = each.span
        of = bisect(begins, span.start) - 1
        said: dict[str, Any] = {"word": span.word, "of": of}
        said |= {"start": span.start - begins[of], "end": span.end - begins[of]}
        said |= {"share": each.share, "cut": each.cut, "ignored": each.ignored, "noun": noun}
        yield said | {"special": False, **_packed(one)}


def _packed(one: Tensor) -> dict[str, Any]:
    low, high = float(one.min()), float(one.max())
    levels = ((one - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
    packed = base64.b64encode(levels.contiguous().numpy().tobytes()).decode()
    return {"low": low, "high": high, "grid": list(one.shape), "map": packed}
