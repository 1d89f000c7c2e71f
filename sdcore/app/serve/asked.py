"""What a request asks for: pictures that it brings, and jobs; and the wait for what it gets."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from starlette.requests import Request

from sdcore.app import flags
from sdcore.app.adapters import Adapters
from sdcore.app.paint import with_size
from sdcore.app.serve.models import Models
from sdcore.app.serve.painter import Stopped, Task
from sdcore.app.session import Session
from sdcore.errors import UsageError
from sdcore.image.pictures import decode_picture
from sdcore.job.budget import Budget
from sdcore.job.job import Job
from sdcore.metadata.png import write_png
from sdcore.pipeline.result import TextToImageResult
from sdcore.prompt.dialects import parse_prompt


@dataclass(frozen=True)
class Door:
    """What all requests share: the models, and how much one of them may ask for."""

    models: Models
    budget: Budget

    @property
    def adapters(self) -> Adapters:
        return self.models.adapters

    def with_adapters(self, jobs: list[Job]) -> list[Job]:
        """With the LoRAs and learned words that prompts name, and those of the command line.

        A job that names some itself says all of them but for those of its prompt.
        """
        return [
            self._completed(job)
            if job.loras or job.embeddings
            else flags.with_loras([job], self.adapters)[0]
            for job in jobs
        ]

    def _completed(self, job: Job) -> Job:
        named = {lora.name for lora in job.loras}
        tags = [tag for tag in parse_prompt(job.text, job.dialect).loras if tag.name not in named]
        wanted, texts = {tag.name for tag in tags}, (job.text, job.negative_text or "")
        more = [lora for lora in self.adapters.choose(tags) if lora.name in wanted]
        words = job.embeddings or self.adapters.embedding_settings(job.dialect, *texts)
        return replace(job, loras=(*job.loras, *more), embeddings=words)


def repeated(job: Job, images: Any, budget: Budget) -> list[Job]:
    """Image i from seed + i, as everywhere. UsageError for no count of them, or for too many."""
    if type(images) is not int or images < 1:
        why = "It counts pictures."
        raise UsageError(
            f"The request asks for {images!r:.40} images.", why, "Use a whole number from 1 up."
        )
    budget.check("images", images, "The request")
    job = job.with_seed()
    assert job.seed is not None
    return [replace(job, seed=job.seed + i) for i in range(images)]


def ready(jobs: list[Job], session: Session) -> list[Job]:
    """Jobs with what depends on the model that is loaded."""
    return [with_size(job, session) for job in jobs]


def read_object(value: Any) -> dict[str, Any]:
    """A JSON object with names as text. UsageError for anything else."""
    if isinstance(value, Mapping):
        return {str(name): each for name, each in value.items()}  # pyright: ignore
    raise UsageError(
        "The request is no JSON object.",
        f"It is of type {type(value).__name__}.",
        "Send names and values in braces.",
    )


def read_picture(text: Any, name: str) -> Image.Image:
    """A picture in base64, or as a data URL. Raises UsageError, or FileError for a damaged one."""
    return decode_picture(io.BytesIO(read_file(text, name)), name)


def read_file(text: Any, name: str) -> bytes:
    """The bytes of a picture's file in base64, or of a data URL. Raises UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"{name} is no text.", "A picture comes as base64.", "Encode its file.")
    try:
        return base64.b64decode(text.partition(",")[2] or text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{name} is no base64.", f"{error}.", "Encode the file.") from error


def png_bytes(result: TextToImageResult, place: int = -1) -> bytes:
    """A picture of a result as a PNG that says how it was made."""
    if not result.images:
        raise UsageError(
            "The job stops half way.",
            "Its result is latents, of which no picture is made.",
            "Leave out denoising_end.",
        )
    file = io.BytesIO()
    write_png(result.images[place], file, result.settings[place])
    return file.getvalue()


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def result_of(task: Task, request: Request) -> Any:
    """What a task gives. It is stopped where whoever asked goes away, or the server ends."""
    done = asyncio.wrap_future(task.done)
    left = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((done, left), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            task.stop()
        return await done
    except asyncio.CancelledError:
        raise Stopped from None
    finally:
        left.cancel()
        task.stop()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
