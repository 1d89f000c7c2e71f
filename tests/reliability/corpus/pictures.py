"""Bad pictures, and what pictures say about how they were made."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcore.image.pictures import open_mask, open_picture, to_rgb
from sdcore.job.job import Job
from sdcore.metadata.png import read_recipe
from sdcore.size import Size
from tests.reliability.corpus.case import Reader
from tests.reliability.corpus.weights import flip

# --- pixels --------------------------------------------------------------------------------------


@cache
def picture(form: str, mode: str) -> bytes:
    image = Image.effect_noise((48, 32), 90).convert("RGBA").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


FORMS = (
    *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("WEBP", "RGB"), ("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB")),
)


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(width: int, height: int, depth: int = 1) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(width * height // 8, 1 << 22)), 9)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def damaged_picture(folder: Path, rng: random.Random) -> str:
    form, mode = rng.choice(FORMS)
    data, path = picture(form, mode), folder / "picture.png"
    kind = rng.choice(["bytes", "bytes", "cut", "cut", "size", "bomb", "other", "number", "text"])
    if kind == "cut":
        data = data[: rng.randrange(len(data))]
    elif kind == "size":  # of the header, of which PNG has a checksum
        sides = struct.pack(">II", *rng.choices([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1], k=2))
        data = picture("PNG", "RGB")
        body = b"IHDR" + sides + data[24:29]
        form = "PNG"
        data = data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    elif kind == "bomb":
        sides = [(1, 60_000_000), (60_000_000, 1), (30_000, 30_000), (1, 100_000), (8000, 8000)]
        data, form = bomb(*rng.choice(sides), rng.choice([1, 8, 16])), "PNG"
    elif kind == "other":
        heads = [b"%!PS-Adobe-3.0 EPSF\n", b"8BPS\0\1", b"SIMPLE  =  T", b"<svg/>", b"<html>", b""]
        data = rng.choice(heads) + rng.randbytes(rng.randrange(500))
    elif kind == "number":
        place = rng.randrange(8, len(data) - 4)
        data = data[:place] + struct.pack(">I", 2**32 - 1) + data[place + 4 :]
    elif kind == "text":
        text = zlib.compress(bytes(rng.choice([1 << 10, 1 << 22, 100 << 20])), 9)
        data, form = picture("PNG", "RGB"), "PNG"
        data = data[:33] + chunk(b"zTXt", b"parameters\0\0" + text) + data[33:]
    path.write_bytes(data)
    if kind == "bytes":
        flip(path, rng)
    return f"{kind} of {form}"


@cache
def sound_pixels() -> frozenset[bytes]:
    """Those of every sound PNG."""
    modes = [mode for form, mode in FORMS if form == "PNG"]
    images = [to_rgb(Image.open(io.BytesIO(picture("PNG", mode))), mode) for mode in modes]
    return frozenset(image.tobytes() for image in images)


def open_pixels(folder: Path) -> None:
    """Read the pixels; of a PNG of the sound size they are the sound ones, as it has checksums."""
    from sdcore.errors import SdcoreError

    path = folder / "picture.png"
    image = open_picture(path)
    if path.read_bytes()[:26] in SOUND_HEADS:
        assert image.tobytes() in sound_pixels(), "other pixels in spite of the checksums"
    try:
        open_mask(path)
        read_recipe(path)
    except SdcoreError:  # a picture that says nothing is sound
        pass


SOUND_HEADS = {picture("PNG", mode)[:26] for form, mode in FORMS if form == "PNG"}

# --- texts ---------------------------------------------------------------------------------------

ODD = ("", " ", "-1", "0", "nan", "1e999", "9" * 400, "None", "true", "8192x8192", "[", '"', "{}")
ODD += ("../../etc/passwd", "\x1b[2J", "\u202e", "\0", "a" * 5000, ": " * 500, "<lora:x:1:30>")
ODD += ("<lora:x:1e30>", "Karras", "DPM++ 9M SDE", "Euler a", "100000", "0.5", "64x64", "7", "狐狸")
KEYS = ("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Clip skip")
KEYS += ("Denoising strength", "Hires upscale", "Hires steps", "Lora hashes", "TI hashes", "VAE")
KEYS += ("RNG", "ENSD", "Eta", "Variation seed", "Token merging ratio", "Version", "Hashes")
JSON: tuple[Any, ...] = (None, True, -1, 0, 1e300, 10**400, "", "x", [], {}, [[]], "9" * 500)
JSON += (["1", 0], ["1", -1], ["1", 10**30], [1, "0"], [None, None], {"a": {"b": []}}, "\ud800")


def parameters(rng: random.Random) -> str:
    known = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "1", "Size": "64x64"}
    for _ in range(rng.randrange(1, 5)):
        known[rng.choice(KEYS)] = rng.choice(ODD)
    line = ", ".join(f"{key}: {value}" for key, value in known.items())
    prompt = rng.choice(["a fox", *ODD])
    return f"{prompt}\nNegative prompt: {rng.choice(ODD)}\n{line}"


def comfy(rng: random.Random) -> str:
    sampler = {"steps": 2, "cfg": 3, "seed": 1, "sampler_name": "euler", "scheduler": "normal"}
    sampler |= {"positive": ["2", 0], "negative": ["3", 0], "model": ["4", 0], "denoise": 1}
    sampler |= {"latent_image": ["5", 0]}
    nodes: dict[str, Any] = {
        "1": {"class_type": "KSampler", "inputs": sampler},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
        "6": {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "strength_model": 1}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    names = [node["class_type"] for node in nodes.values()]
    names += ["ControlNetApplyAdvanced", "ConditioningCombine", "KSamplerAdvanced", "Reroute"]
    for _ in range(rng.randrange(1, 6)):
        node = nodes[rng.choice(list(nodes))]
        inputs = node["inputs"]
        kind = rng.random()
        if kind < 0.6 and inputs:
            link = [rng.choice(list(nodes)), rng.randrange(3)]
            inputs[rng.choice(list(inputs))] = rng.choice([*JSON, link, link, link])
        elif kind < 0.8:
            node["class_type"] = rng.choice([*names, *JSON])
        else:
            node["inputs"] = rng.choice([*JSON, inputs])
            if not isinstance(node["inputs"], dict):
                break
    return json.dumps(nodes)


def of_json(rng: random.Random, sound: dict[str, Any]) -> str:
    found = dict(sound)
    for _ in range(rng.randrange(1, 4)):
        found[rng.choice([*found, "x"])] = rng.choice([*JSON, *ODD])
    return json.dumps(found)


def ours(rng: random.Random) -> str:
    from sdcore.job.record import job_to_dict

    job = Job("a fox", seed=1, steps=2, guidance_scale=3.0, scheduler="ddim", size=Size(64, 64))
    facts = {"format": 1, "version": "0.1.0", "model": "m", "own_scheduler": False, "batch": [0, 1]}
    return of_json(rng, {**job_to_dict(job), **facts})


INVOKE = {"positive_prompt": "a fox", "seed": 1, "steps": 2, "width": 64, "height": 64}
INVOKE |= {"scheduler": "euler", "cfg_scale": 3, "model": {"name": "m"}, "loras": []}
NOVEL = {"prompt": "a fox", "sampler": "k_euler", "uc": "bad", "seed": 1, "steps": 2, "scale": 3}
NOVEL |= {"width": 64, "height": 64, "noise_schedule": "karras"}
SWARM = {"prompt": "a fox", "sampler": "euler", "loras": ["x"], "loraweights": ["1"], "steps": 2}
WRITERS: dict[str, Callable[[random.Random], dict[str, str]]] = {
    "parameters": lambda rng: {"parameters": parameters(rng)},
    "comfy": lambda rng: {"prompt": comfy(rng)},
    "ours": lambda rng: {"sdcore": ours(rng)},
    "invoke": lambda rng: {"invokeai_metadata": of_json(rng, INVOKE)},
    "novelai": lambda rng: {"Comment": of_json(rng, NOVEL), "Software": "NovelAI"},
    "swarm": lambda rng: {"parameters": json.dumps({"sui_image_params": of_json(rng, SWARM)})},
    "junk": lambda rng: {rng.choice(["parameters", "prompt", "sdcore"]): rng.choice(ODD)},
}


def damaged_text(folder: Path, rng: random.Random) -> str:
    kind = rng.choice([*WRITERS, "parameters", "comfy", "ours"])
    info = PngInfo()
    for name, text in WRITERS[kind](rng).items():
        info.add_itxt(name, text.encode("utf-8", "replace").decode())
    Image.new("RGB", (8, 8)).save(folder / "picture.png", pnginfo=info)
    return kind


def open_text(folder: Path) -> None:
    """Read it, and its prompt."""
    from sdcore.prompt.dialects import parse_prompt

    recipe = read_recipe(folder / "picture.png")
    parse_prompt(recipe.job.prompt, recipe.job.dialect or "plain")


NO_CHECKSUM = "it has no checksum: other pixels, as many as it says"
LEFT_OUT = "a setting that cannot be is left out and named in the recipe's notes; "

READERS = (
    Reader(
        "pictures",
        600,
        9000,
        damaged_picture,
        open_pixels,
        {
            **{f"* of {form}": NO_CHECKSUM for form in ("JPEG", "WEBP", "BMP")},
            "bytes of PNG": "a byte behind the pixels, which are the sound ones",
            "cut of PNG": "the end mark is gone; the pixels are all there, and the sound ones",
            "number of PNG": "a number behind the pixels, which are the sound ones",
            "size of PNG": "a smaller picture, with its own checksum; rows left over are not read",
            "text of PNG": "a text within the limit of letters, as any picture may carry",
        },
    ),
    Reader(
        "what pictures say",
        500,
        7000,
        damaged_text,
        open_text,
        {
            "parameters": LEFT_OUT + "the prompt is any text within the limits of a job",
            "comfy": LEFT_OUT + "nodes that are not known are named, and none of them is run",
            "invoke": LEFT_OUT + "every other value passed the checks of a job",
            "novelai": LEFT_OUT + "every other value passed the checks of a job",
            "swarm": LEFT_OUT + "every other value passed the checks of a job",
            "ours": "every value passed the checks of a job: those of a record are strict",
        },
    ),
)
