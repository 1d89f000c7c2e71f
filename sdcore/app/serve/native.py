"""/api: a Job as JSON in; steps, words and the picture out, as they come.

The page speaks it, and programs that want to see or steer.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Request
from fastapi.responses import StreamingResponse

from sdcore.app.serve import book
from sdcore.app.serve.asked import (
    Door,
    as_text,
    png_bytes,
    read_object,
    read_picture,
    ready,
    repeated,
)
from sdcore.app.serve.painter import Painter, Task
from sdcore.app.serve.watching import Tell, as_draft, paint_seen
from sdcore.app.session import Session
from sdcore.app.unknown_words import unknown_words
from sdcore.checks import as_finite
from sdcore.control.prompt_edit import EditSettings
from sdcore.diffusion.levels import SCHEDULES, SPACINGS
from sdcore.diffusion.methods import METHODS
from sdcore.errors import SdcoreError, UsageError
from sdcore.image.data_url import data_url
from sdcore.job.job import Job
from sdcore.job.record import job_from_dict, job_to_dict
from sdcore.metadata.png import read_recipe
from sdcore.prompt.dialects import DIALECTS

KNOWN = ("job", "model", "images", "pictures", "edit", "heatmaps", "draft")
_EDIT = ("to", "reweight", "keep_layout", "steps_window", "only")


def router(door: Door, painter: Painter) -> APIRouter:
    """Its addresses."""
    routes = APIRouter(tags=["sdcore"])

    @routes.post("/paint")
    async def _(body: Annotated[Any, Body()]) -> StreamingResponse:
        """Paint a job: server-sent events `queued`, `step`, `picture` (one each), or `error`.

        `pictures` holds those that a job's source names, in base64; `edit` paints a changed prompt
        with the rest held; `heatmaps` tells where each word is read; `draft` gives a picture of few
        steps first, in an event of that name, and then no others of steps.
        """
        asked = _read(body, door)
        events: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: str, said: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (event, said))

        def ended(_: Future[Any]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, None)

        def work(session: Session, task: Task) -> None:
            _paint(asked, session, task, tell)

        task = painter.add(Task(work, door.models.known(asked["model"]), len(asked["groups"])))
        task.done.add_done_callback(ended)
        return StreamingResponse(_stream(task, events, painter), media_type="text/event-stream")

    @routes.post("/tasks/{id}/stop")
    async def _(id: str) -> dict[str, bool]:
        """Stop a task before its next step."""
        task = painter.tasks.get(id)
        if task is not None:
            task.stop()
        return {"known": task is not None}

    @routes.get("/tasks")
    async def _() -> list[dict[str, Any]]:
        """The queue, and what was done last."""
        return [
            {"id": task.id, "state": task.state, "progress": task.progress, "model": task.model}
            for task in list(painter.tasks.values())
        ]

    @routes.post("/read")
    async def _(request: Request) -> dict[str, Any]:
        """What a picture file says about how it was made, as a job."""
        return await asyncio.to_thread(_what_it_says, await request.body(), door)

    @routes.get("/choices")
    async def _() -> dict[str, Any]:
        """Models, samplers, LoRAs, learned words, and the sizes of the model in memory."""
        pipe = door.models.session(None).pipe
        defaults = pipe.defaults
        return {
            "model": door.models.current,
            "models": door.models.names,
            "methods": list(METHODS),
            "schedules": [*SCHEDULES, *SPACINGS],
            "loras": sorted(door.adapters.known()),
            "embeddings": sorted(door.adapters.folders.names("embeddings")),
            "size": list(pipe.native_size.width_height),
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "scheduler": defaults.scheduler,
            "region_dialects": [name for name, each in DIALECTS.items() if each.breaks],
            "book": book.is_here(),
        }

    return routes


def _read(body: Any, door: Door) -> dict[str, Any]:
    """The request, checked."""
    asked = read_object(body)
    for name in asked:
        if name not in KNOWN:
            why = f"A request has {', '.join(KNOWN)}."
            raise UsageError(f"The request has {name!r:.60}.", why, "Leave it out, or correct it.")
    given = read_object(asked.get("pictures") or {})
    pictures = {name: read_picture(text, f"Picture {name!r:.40}") for name, text in given.items()}
    job = job_from_dict(read_object(asked.get("job")), pictures, door.budget)
    images = asked.get("images", 1)
    groups = [door.with_adapters([one]) for one in repeated(job, images, door.budget)]
    edit, settings = asked.get("edit"), None
    if edit is not None:
        to, settings = _read_edit(read_object(edit), job)
        groups = [[one, replace(one, prompt=to)] for (one,) in groups]
    model = asked.get("model")
    if model is not None and not isinstance(model, str):
        raise UsageError("The model is no text.", "It is a name.", "Use a name of /api/choices.")
    said = {name: asked.get(name, False) is True for name in ("heatmaps", "draft")}
    return {"groups": groups, "edit": settings, "model": model, **said}


def _read_edit(edit: dict[str, Any], job: Job) -> tuple[str, EditSettings]:
    """The changed prompt, and how it is held."""
    for name in edit:
        if name not in _EDIT:
            why = f"An edit has {', '.join(_EDIT)}."
            raise UsageError(f"The edit has {name!r:.60}.", why, "Leave it out, or correct it.")
    to: Any = edit.get("to", job.prompt)
    window = cast("list[Any]", edit.get("steps_window", [0.0, 0.5]))
    only = cast("list[Any]", edit.get("only") or [])
    layout: Any = edit.get("keep_layout", 0.4)
    scales = read_object(edit.get("reweight") or {})
    lists = isinstance(window, list) and len(window) == 2 and isinstance(only, list)
    numbers = [layout, *window, *scales.values()] if lists else [None]
    if (
        not isinstance(to, str)
        or not all(as_finite(each) is not None for each in numbers)
        or not all(isinstance(each, str) for each in only)
    ):
        raise UsageError(
            "The edit cannot be read.",
            "A prompt is in to, words with numbers are in reweight, two numbers in steps_window.",
            'Send for example {"to": "a cat on grass", "reweight": {"cat": 1.5}}.',
        )
    return to, EditSettings(
        cross=(float(window[0]), float(window[1])),
        layout=(0.0, float(layout)) if layout else None,
        scales={word: float(scale) for word, scale in scales.items()},
        blend=tuple(only),
    )


def _paint(asked: dict[str, Any], session: Session, task: Task, tell: Tell) -> None:
    for number, jobs in enumerate(asked["groups"]):

        def numbered(event: str, said: dict[str, Any], number: int = number) -> None:
            tell(event, {"image": number, **said})

        how = {"edit": asked["edit"], "heatmaps": asked["heatmaps"]}
        jobs = ready(jobs, session)
        few = as_draft(jobs, session) if asked["draft"] else None
        if few is not None:
            result, words = paint_seen(session, few, task, _nothing, pictures=False, **how)
            said = {
                "picture": data_url(result.images[-1], lossless=True),
                "job": job_to_dict(few[-1]),
            }
            numbered("draft", {**said, "words": words})
        result, words = paint_seen(session, jobs, task, numbered, pictures=few is None, **how)
        task.finished()
        png, of = png_bytes(result), result.settings[-1]
        said = {"png": as_text(png), "job": job_to_dict(of.job), "sampler": of.sampler}
        notes = list(unknown_words(session.pipe, [of.job]))
        numbered("picture", {**said, "words": words, "notes": notes})


def _nothing(event: str, said: dict[str, Any]) -> None:
    """Nobody is told."""


async def _stream(
    task: Task, events: asyncio.Queue[tuple[str, dict[str, Any]] | None], painter: Painter
) -> AsyncGenerator[str]:
    """Events as they come; whoever stops listening stops the task."""
    try:
        yield _event("queued", {"id": task.id, "before": painter.before(task)})
        while (happened := await events.get()) is not None:
            yield _event(*happened)
        error = task.done.exception()
        if isinstance(error, SdcoreError):
            yield _event("error", {"what": error.what, "why": error.why, "hint": error.hint})
    finally:
        task.stop()


def _event(name: str, said: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(said)}\n\n"


def _what_it_says(content: bytes, door: Door) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            recipe = read_recipe(path, door.budget)
        except SdcoreError as error:
            plain = error.what.replace(str(path), "The picture"), error.why, error.hint
            raise UsageError(*(part.replace(str(path), "it") for part in plain)) from error
    recipe = door.adapters.without_missing(recipe)
    return {
        "job": job_to_dict(recipe.job),
        "origin": recipe.origin,
        "model": recipe.model,
        "differences": list(recipe.differences),
    }
