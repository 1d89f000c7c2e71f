"""/sdapi/v1: what there is, and how far it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body

from sdcore.app.serve.asked import Door, read_object
from sdcore.app.serve.painter import Painter, Task
from sdcore.app.session import Session
from sdcore.diffusion.levels import SCHEDULES
from sdcore.diffusion.methods import METHODS
from sdcore.diffusion.sampler_names import to_web_ui
from sdcore.errors import UsageError
from sdcore.pipeline.memory import free_bytes

# Lists of the web UI of which this server has nothing.
_EMPTY = (
    *("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "sd-vae"),
    "sd-modules",
)


@dataclass
class Options:
    """What /options changes for requests that come later."""

    clip_skip: int = 1


def add_lists(routes: APIRouter, door: Door, painter: Painter, options: Options) -> None:
    """Its addresses."""

    @routes.get("/samplers")
    async def _() -> list[dict[str, Any]]:
        return [
            {"name": method.web_ui or name, "aliases": [name, *method.aliases], "options": {}}
            for name, method in METHODS.items()
        ]

    @routes.get("/schedulers")
    async def _() -> list[dict[str, Any]]:
        automatic = {"name": "automatic", "label": "Automatic", "aliases": None}
        shown = {name: to_web_ui(f"euler {name}")[1] for name in SCHEDULES}
        others = [{"name": n.replace(" ", "_"), "label": v} for n, v in shown.items()]
        rest = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        return [{**rest, **each} for each in (automatic, *others)]

    @routes.get("/sd-models")
    async def _() -> list[dict[str, Any]]:
        empty = {"hash": None, "sha256": None, "config": None}
        return [
            {"title": name, "model_name": name, "filename": name, **empty}
            for name in door.models.names
        ]

    @routes.get("/loras")
    async def _() -> list[dict[str, Any]]:
        known = door.adapters.known()
        return [
            {"name": name, "alias": name, "path": known[name].name, "metadata": {}}
            for name in sorted(known)
        ]

    @routes.get("/embeddings")
    async def _() -> dict[str, Any]:
        named = {*door.adapters.folders.names("embeddings")}
        named |= {path.stem for path in door.adapters.embeddings}
        blank = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
        blank |= {"shape": None, "vectors": None}
        return {"loaded": dict.fromkeys(sorted(named), blank), "skipped": {}}

    @routes.get("/upscalers")
    async def _() -> list[dict[str, Any]]:
        blank = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
        return [{"name": name, **blank} for name in ("None", "Lanczos")]

    @routes.get("/latent-upscale-modes")
    async def _() -> list[dict[str, str]]:
        return [{"name": "Latent"}]

    for name in _EMPTY:
        routes.add_api_route(f"/{name}", _nothing, methods=["GET"])

    @routes.get("/scripts")
    async def _() -> dict[str, list[str]]:
        return {"txt2img": ["sdcore heatmaps"], "img2img": ["sdcore heatmaps"]}

    @routes.get("/cmd-flags")
    async def _() -> dict[str, Any]:
        return {"api": True, "nowebui": False}

    @routes.post("/refresh-checkpoints")
    async def _() -> dict[str, Any]:
        return {}

    @routes.get("/options")
    async def _() -> dict[str, Any]:
        model, skip = door.models.current, options.clip_skip
        said = {"sd_model_checkpoint": model, "CLIP_stop_at_last_layers": skip}
        return {**said, "sd_checkpoint_hash": None, "samples_format": "png"}

    @routes.post("/options")
    async def _(body: Annotated[Any, Body()]) -> dict[str, Any]:
        asked = read_object(body)
        skip = asked.pop("CLIP_stop_at_last_layers", options.clip_skip)
        model = asked.pop("sd_model_checkpoint", None)
        if asked or type(skip) is not int or skip < 1:
            raise UsageError(
                "These options cannot be set.",
                "There are sd_model_checkpoint, and CLIP_stop_at_last_layers from 1 up.",
                "Leave out the others.",
            )
        if model is not None:
            task = Task(_loaded, door.models.known(model))
            await asyncio.wrap_future(painter.add(task).done)
        options.clip_skip = skip
        return {}

    @routes.get("/progress")
    async def _() -> dict[str, Any]:
        return _progress(painter)

    @routes.get("/memory")
    async def _() -> dict[str, Any]:
        device = door.models.session(None).pipe.device
        free = free_bytes(device) or 0
        return {"ram": {"free": free}, "cuda": {"device": str(device)}}


async def _nothing() -> list[Any]:
    return []


def _loaded(session: Session, task: Task) -> None:
    """The model is there once this runs."""


def _progress(painter: Painter) -> dict[str, Any]:
    task, waiting = painter.current, painter.waiting
    done = task.progress if task is not None else 0.0
    spent = time.monotonic() - task.begun if task is not None and task.begun else 0.0
    state = {
        "skipped": False,
        "interrupted": task is not None and task.stopped,
        "job": task.id if task is not None else "",
        "job_count": (task.images if task is not None else 0) + waiting,
        "job_no": task.painted if task is not None else 0,
        "sampling_step": task.step if task is not None else 0,
        "sampling_steps": task.steps if task is not None else 0,
    }
    left = spent / done - spent if done else 0.0
    said = {"progress": done, "eta_relative": left, "state": state}
    return {**said, "current_image": None, "textinfo": None}
