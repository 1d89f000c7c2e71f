"""A warning for the words of prompts that a model was never taught."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdcore.errors import warn
from sdcore.job.job import Job
from sdcore.pipeline.text_to_image import TextToImage
from sdcore.prompt.dialects import parse_prompt
from sdcore.prompt.text import Steps
from sdcore.text.known_words import describe_unknown


def warn_of_unknown_words(pipe: TextToImage, jobs: Sequence[Job]) -> None:
    """Name them, with near words that it knows, if its folder lists what it knows."""
    for message in unknown_words(pipe, jobs):
        warn(message)


def unknown_words(pipe: TextToImage, jobs: Sequence[Job]) -> Iterator[str]:
    """A line for the prompts and one for the negative prompts, where there is something to say.

    With an embedding or a LoRA nothing is said: these teach words that no list holds.
    """
    known = pipe.defaults.words
    plain = [job for job in jobs if not job.loras and not job.embeddings]
    if known is None or not plain:
        return
    if message := describe_unknown(known, _distinct(pipe, plain, negative=False)):
        yield message
    if message := describe_unknown(known, _distinct(pipe, plain, negative=True)):
        yield f"negative prompt: {message}"


def _distinct(pipe: TextToImage, jobs: Sequence[Job], negative: bool) -> list[str]:
    """What is left of the prompts to be read, each once, in order."""
    texts: dict[str, None] = {}
    for job in jobs:
        prompt = (job.negative_text or "") if negative else job.text
        steps = job.steps or pipe.defaults.steps
        texts.update(dict.fromkeys(_texts(prompt, job.dialect, steps, negative)))
    return list(texts)


def _texts(prompt: str, dialect: str, steps: int, negative: bool) -> Iterator[str]:
    """What a dialect leaves of a prompt to be read, at any step, without its marks."""
    for part in parse_prompt(prompt, dialect, negative).parts:
        for clauses in part.timeline(Steps(steps)).items:
            for passage in (passage for clause in clauses for passage in clause.passages):
                yield from (fragment.text.text for fragment in passage)
