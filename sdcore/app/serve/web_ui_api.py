"""/sdapi/v1: pictures as Stable Diffusion web UI's interface asks for them.

What has no counterpart here is not passed over: the answer's `info` lists it as `not_the_same`.
"""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Request
from PIL import ImageFilter, ImageOps

from sdcore.app.serve.asked import (
    Door,
    as_text,
    png_bytes,
    read_file,
    read_object,
    read_picture,
    ready,
    repeated,
    result_of,
)
from sdcore.app.serve.painter import Painter, Task
from sdcore.app.serve.watching import paint_alone, paint_seen
from sdcore.app.serve.web_ui_lists import Options, add_lists
from sdcore.app.session import Session
from sdcore.diffusion.sampler_names import from_web_ui
from sdcore.errors import UsageError
from sdcore.image.pictures import decode_picture, to_mask, to_rgb
from sdcore.job.adapters import HiresSettings
from sdcore.job.job import Job, make_jobs
from sdcore.metadata.parameters import write_parameters
from sdcore.metadata.texts import read_texts
from sdcore.pipeline.result import TextToImageResult
from sdcore.size import Size

HEATMAPS = "sdcore heatmaps"  # among alwayson_scripts
# What does nothing there at these values either; at others the answer says that it is not the same.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "styles": ([], None),
    "subseed_strength": (0, None),
    "seed_resize_from_h": (0, -1, None),
    "seed_resize_from_w": (0, -1, None),
    "restore_faces": (False, None),
    "tiling": (False, None),
    "s_churn": (0, None),
    "hr_prompt": ("", None),
    "hr_negative_prompt": ("", None),
    "resize_mode": (0, None),
    "initial_noise_multiplier": (1, None),
    "refiner_checkpoint": ("", None),
}
_SETTINGS = ("sd_model_checkpoint", "CLIP_stop_at_last_layers")


def router(door: Door, painter: Painter) -> APIRouter:
    """Its addresses."""
    routes = APIRouter(tags=["Stable Diffusion web UI"])
    options = Options()
    add_lists(routes, door, painter, options)

    @routes.post("/txt2img")
    async def _(body: Annotated[Any, Body()], request: Request) -> dict[str, Any]:
        """Paint a prompt."""
        asked = _Asked(read_object(body), options)
        return await _answer(asked, asked.jobs(door), door, painter, request)

    @routes.post("/img2img")
    async def _(body: Annotated[Any, Body()], request: Request) -> dict[str, Any]:
        """Paint from pictures, or repaint what a mask shows."""
        asked = _Asked(read_object(body), options)
        jobs = await asyncio.to_thread(asked.jobs_from_pictures, door)
        return await _answer(asked, jobs, door, painter, request)

    @routes.post("/png-info")
    async def _(body: Annotated[Any, Body()]) -> dict[str, Any]:
        """The text in a picture."""
        return await asyncio.to_thread(_texts_of, read_object(body).get("image"))

    @routes.post("/interrupt")
    async def _() -> dict[str, Any]:
        """Stop what is painted; what is finished of it is the answer."""
        if (task := painter.current) is not None:
            task.stop()
        return {}

    return routes


class _Asked:
    """A request's fields, and what of it cannot be the same."""

    def __init__(self, body: dict[str, Any], options: Options) -> None:
        self.body = body
        settings = read_object(body.get("override_settings") or {})
        self.model = settings.get("sd_model_checkpoint")
        self.clip_skip = settings.get("CLIP_stop_at_last_layers", options.clip_skip)
        known = {name for name, values in _NEUTRAL.items() if body.get(name) in values}
        self.not_the_same = [name for name in _NEUTRAL if name not in known and name in body]
        self.not_the_same += [name for name in settings if name not in _SETTINGS]
        scripts = read_object(body.get("alwayson_scripts") or {})
        self.heatmaps = HEATMAPS in scripts
        for name, each in scripts.items():
            args = cast("list[Any]", read_object(each).get("args") or [])
            if name != HEATMAPS and any(args):
                self.not_the_same.append(f"script {name}")
        if body.get("script_name"):
            raise UsageError(
                f"There is no script {body['script_name']!r:.60}.",
                "The web UI's scripts and extensions are not here.",
                "Leave out script_name.",
            )

    def _number(self, name: str, default: int | float) -> Any:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value) if float(value).is_integer() else value
        raise UsageError(f"{name} is {value!r:.60}.", "It is a number.", "Correct it.")

    def jobs(self, door: Door, **of_pictures: Any) -> list[Job]:
        """One for each picture."""
        body, number = self.body, self._number
        name = body.get("sampler_name") or body.get("sampler_index") or "Euler"
        if not isinstance(name, str) or not isinstance(body.get("scheduler") or "", str):
            why = "Samplers have names."
            raise UsageError(f"sampler_name is {name!r:.60}.", why, "See /sdapi/v1/samplers.")
        levels = (body.get("scheduler") or "Automatic").replace("_", " ")
        sampler = from_web_ui(name, levels)
        self.not_the_same += sampler.differences
        size = Size(number("width", 512), number("height", 512))
        told = body.get("enable_hr") or any(body.get(n) is not None for n in ("width", "height"))
        seed, skip = number("seed", -1), self.clip_skip
        if type(skip) is not int or skip < 1:
            why = "It counts layers from the last, which is 1."
            raise UsageError(f"CLIP_stop_at_last_layers is {skip!r:.40}.", why, "Use 1 or 2.")
        images = number("batch_size", 1) * number("n_iter", 1)
        (job,) = make_jobs(
            body.get("prompt") or "",
            negative_prompt=body.get("negative_prompt") or None,
            seed=None if seed == -1 else seed,
            steps=number("steps", 50),
            guidance_scale=float(number("cfg_scale", 7.0)),
            scheduler=sampler.name,
            size=size if told else None,  # the web UI's 512 x 512 may be far from the model's own
            dialect="a1111",
            clip_skip=skip - 1,
            hires=self._hires(size),
            budget=door.budget,
            **of_pictures,
        )
        if type(images) is not int or images < 1:
            why = "batch_size and n_iter count pictures."
            raise UsageError(f"There are {images} pictures.", why, "Use 1 or more of each.")
        return door.with_adapters(repeated(job, images, door.budget))

    def _hires(self, size: Size) -> HiresSettings | None:
        if not self.body.get("enable_hr"):
            return None
        number = self._number
        scale = number("hr_scale", 2)
        sides = number("hr_resize_x", 0), number("hr_resize_y", 0)
        width, height = (
            int(wanted or side * scale) // 8 * 8
            for wanted, side in zip(sides, size.width_height, strict=True)
        )
        kind = str(self.body.get("hr_upscaler") or "Latent")
        if not kind.startswith(("Latent", "Lanczos", "None")):
            self.not_the_same.append(f"upscaler {kind!r:.40} is not there; Lanczos is used")
        upscale = "latents" if kind.startswith("Latent") else "pixels"
        steps = number("hr_second_pass_steps", 0) or None
        return HiresSettings(
            width, height, float(number("denoising_strength", 0.7)), steps, upscale
        )

    def jobs_from_pictures(self, door: Door) -> list[Job]:
        """Those of img2img."""
        pictures = cast("list[Any]", self.body.get("init_images"))
        if not isinstance(pictures, list) or not pictures:
            raise UsageError(
                "There are no init_images.", "They are what is painted over.", "Send one."
            )
        if len(pictures) > 1:
            why = "It is painted over one picture at a time."
            raise UsageError("There are several init_images.", why, "Send one after the other.")
        image = to_rgb(read_picture(pictures[0], "The picture"))
        of_pictures: dict[str, Any] = {"image": image}
        of_pictures["strength"] = float(self._number("denoising_strength", 0.75))
        if self.body.get("mask"):
            mask = to_mask(read_picture(self.body["mask"], "The mask"))
            if self.body.get("inpainting_mask_invert"):
                mask = ImageOps.invert(mask)
            blur = self._number("mask_blur", 4)
            of_pictures["mask"] = mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask
            if self.body.get("inpaint_full_res", True):
                of_pictures["only_masked"] = self._number("inpaint_full_res_padding", 0)
            if self._number("inpainting_fill", 1) != 1:
                self.not_the_same.append("inpainting_fill: what is masked begins as it was")
        return self.jobs(door, **of_pictures)


async def _answer(
    asked: _Asked, jobs: list[Job], door: Door, painter: Painter, request: Request
) -> dict[str, Any]:
    words: list[Any] = []

    def nothing(event: str, said: dict[str, Any]) -> None: ...

    def work(session: Session, task: Task) -> list[TextToImageResult]:
        prepared = ready(jobs, session)
        if not asked.heatmaps:
            return paint_alone(session, prepared, task)
        found: list[TextToImageResult] = []
        for job in prepared:
            result, told = paint_seen(session, [job], task, nothing, heatmaps=True)
            task.finished()
            found.append(result)
            words.append(told)
        return found

    task = painter.add(Task(work, door.models.known(asked.model), len(jobs)))
    results = await result_of(task, request)
    info = _info(results, asked)
    if asked.heatmaps:
        info[HEATMAPS] = words
    return {
        "images": [as_text(png_bytes(each)) for each in results],
        "parameters": {name: v for name, v in asked.body.items() if name != "init_images"},
        "info": json.dumps(info),
    }


def _info(results: Sequence[TextToImageResult], asked: _Asked) -> dict[str, Any]:
    settings = [result.settings[0] for result in results]
    texts = [write_parameters(each) for each in settings]
    first = settings[0].job
    return {
        "prompt": first.prompt,
        "all_prompts": [each.job.prompt for each in settings],
        "negative_prompt": first.negative_prompt or "",
        "all_negative_prompts": [each.job.negative_prompt or "" for each in settings],
        "seed": first.seed,
        "all_seeds": [each.job.seed for each in settings],
        "width": first.size.width if first.size else None,
        "height": first.size.height if first.size else None,
        "sampler_name": settings[0].sampler,
        "steps": first.steps,
        "cfg_scale": first.guidance_scale,
        "sd_model_name": settings[0].model,
        "batch_size": len(results),
        "clip_skip": first.clip_skip + 1,
        "infotexts": texts,
        "index_of_first_image": 0,
        "not_the_same": asked.not_the_same,
    }


def _texts_of(image: Any) -> dict[str, Any]:
    content = read_file(image, "The picture")
    decode_picture(io.BytesIO(content), "The picture")  # which says what is wrong with it
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            texts = read_texts(path)
        except ValueError:
            texts = {}
    return {"info": texts.get("parameters", ""), "items": texts, "parameters": {}}
