"""/v1: pictures as OpenAI's interface asks for them."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from PIL import Image, ImageOps
from starlette.datastructures import UploadFile

from sdcore.app.serve.asked import Door, as_text, png_bytes, read_object, ready, repeated, result_of
from sdcore.app.serve.painter import Painter, Task
from sdcore.app.serve.watching import paint_alone
from sdcore.app.session import Session
from sdcore.errors import UsageError
from sdcore.image.pictures import decode_picture
from sdcore.job.job import Job
from sdcore.job.record import job_from_dict
from sdcore.job.sources import Picture
from sdcore.size import Size

# What their models take and ours do not have; answers name those that were sent.
_WITHOUT_EFFECT = (
    *("background", "input_fidelity", "moderation", "output_compression", "partial_images"),
    *("quality", "style", "user"),
)
_OURS = ("n", "size", "response_format", "output_format", "stream", "model", "strength")


def router(door: Door, painter: Painter) -> APIRouter:
    """Its addresses."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.get("/models")
    async def _() -> dict[str, Any]:
        """The models by name."""
        told = [
            {"id": name, "object": "model", "created": 0, "owned_by": "sdcore"}
            for name in door.models.names
        ]
        return {"object": "list", "data": told}

    @routes.post("/images/generations")
    async def _(body: Annotated[Any, Body()], request: Request) -> dict[str, Any]:
        """Paint a prompt. Any field of a job may be sent beside theirs, such as seed or steps."""
        return await _answer(read_object(body), None, door, painter, request)

    @routes.post("/images/edits")
    async def _(request: Request) -> dict[str, Any]:
        """Repaint a picture where its mask, or it itself, is transparent; or all of it."""
        form = await request.form(max_files=4, max_fields=100)
        said: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        for name, value in form.multi_items():
            plain = name.removesuffix("[]")
            if not isinstance(value, UploadFile):
                said[plain] = _number(value) if plain not in ("prompt", "model") else value
            elif plain in files:
                why = "Several pictures were sent."
                raise UsageError("One picture is painted over.", why, "Send one image.")
            else:
                files[plain] = await value.read()
        strength = said.get("strength")
        source = await asyncio.to_thread(_source, files, strength)
        return await _answer(said, source, door, painter, request)

    return routes


def _number(text: str) -> Any:
    """A field of a form, where numbers stand as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _source(files: dict[str, bytes], strength: Any) -> Picture:
    import io

    if "image" not in files:
        why = "It is what is painted over."
        raise UsageError("There is no image.", why, "Send a file called image.")
    image = decode_picture(io.BytesIO(files["image"]), "The image")
    of = decode_picture(io.BytesIO(files["mask"]), "The mask") if "mask" in files else image
    mask: Image.Image | None = None
    if of.has_transparency_data:
        alpha = of.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            mask = ImageOps.invert(alpha)
    if "mask" in files and mask is None:
        raise UsageError(
            "The mask has no transparency.",
            "What is transparent in it is repainted.",
            "Erase what is to be repainted, and save it as PNG.",
        )
    return Picture(image, strength, mask)


async def _answer(
    said: dict[str, Any],
    source: Picture | None,
    door: Door,
    painter: Painter,
    request: Request,
) -> dict[str, Any]:
    ignored = [name for name in _WITHOUT_EFFECT if said.pop(name, None) is not None]
    ours = {name: said.pop(name, None) for name in _OURS}
    kind = ours["output_format"] or "png"
    if kind != "png" or ours["stream"]:
        raise UsageError(
            "The answer cannot be had in that form.",
            "Pictures are PNG files, which keep their settings, and come at once.",
            "Leave out output_format and stream; /api/paint gives steps.",
        )
    if ours["strength"] is not None and source is None:
        raise UsageError("A strength is given alone.", "It needs an image.", "Leave it out.")
    data = {name: value for name, value in said.items() if value is not None}
    job = job_from_dict(data, budget=door.budget)
    if source is not None:
        job = replace(job, source=source)
    if ours["size"] not in (None, "auto"):
        job = replace(job, size=Size.parse(str(ours["size"]), "size"))
    images = 1 if ours["n"] is None else ours["n"]
    jobs = door.with_adapters(repeated(job, images, door.budget))
    pngs = await _painted(jobs, door.models.known(ours["model"]), painter, request)
    form = "url" if ours["response_format"] == "url" else "b64_json"
    head = "data:image/png;base64," if form == "url" else ""
    answer: dict[str, Any] = {"created": int(time.time())}
    answer["data"] = [{form: head + as_text(png)} for png in pngs]
    return answer | ({"ignored": ignored} if ignored else {})


async def _painted(jobs: list[Job], model: str, painter: Painter, request: Request) -> list[bytes]:
    def work(session: Session, task: Task) -> list[bytes]:
        return [png_bytes(each) for each in paint_alone(session, ready(jobs, session), task)]

    task = painter.add(Task(work, model, len(jobs)))
    return await result_of(task, request)
