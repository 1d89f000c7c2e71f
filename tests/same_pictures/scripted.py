"""Cases that run the scripts of sample/, each in a folder of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import calls
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from workbench import Bench, Notes

CASES: dict[str, Callable[[Bench, Notes], None]] = {}
WEB_UI = """\
a (red:1.2) cat <lora:ink:0.5> <lora:gone:1>
Negative prompt: bad
Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 5, Size: 40x24, \
Model hash: 0123456789, Model: some, Clip skip: 2"""


def node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": node("CheckpointLoaderSimple", ckpt_name="some.safetensors"),
    "2": node(
        "LoraLoader",
        lora_name="a/ink.safetensors",
        strength_model=0.7,
        strength_clip=0.3,
        model=["1", 0],
        clip=["1", 1],
    ),
    "3": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["2", 1]),
    "4": node("CLIPTextEncode", text="a (cat:1.2)", clip=["3", 0]),
    "5": node("CLIPTextEncode", text="bad", clip=["3", 0]),
    "6": node("EmptyLatentImage", width=40, height=24, batch_size=1),
    "7": node(
        "KSampler",
        **{"seed": 42, "steps": 3, "cfg": 5, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
        **{"denoise": 1.0, "model": ["2", 0], "positive": ["4", 0], "negative": ["5", 0]},
        latent_image=["6", 0],
    ),
    "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
    "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
}


class Runs:
    """Script runs in one folder, and notes of what they print and write."""

    def __init__(self, bench: Bench, notes: Notes) -> None:
        self.bench, self.notes, self.count = bench, notes, 0
        self.folder = bench.folder / "runs" / re.sub(r"\W+", "-", notes.case)
        self.folder.mkdir(parents=True)

    def __call__(self, script: str, *flags: object) -> list[Path]:
        """Run a script; gives the files that it wrote."""
        self.count += 1
        before = set(self.folder.rglob("*"))
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            said = calls.run_script(script, *flags)
        finally:
            os.chdir(here)
        self.notes.text(f"run {self.count} said", said)
        new = sorted(p for p in self.folder.rglob("*") if p not in before and p.is_file())
        new = [path for path in new if path.parent.name != "enlarged"]  # of what is noted
        for path in new:
            name = f"run {self.count} {path.relative_to(self.folder)}"
            if path.suffix == ".png":
                self.notes.file(path, name)
            elif path.suffix == ".html":
                self._page(path, name)
            elif path.suffix == ".safetensors":
                self.notes.tensors(name, path)
            elif path.suffix == ".json":
                self.notes.text(name, path.read_text("utf-8"))
        return [path for path in new if path.suffix in (".png", ".html", ".safetensors")]

    def _page(self, path: Path, name: str) -> None:
        """A page: all of it, and apart from it the numbers and pictures in it."""
        page = path.read_text("utf-8")
        self.notes.text(f"{name} page", page, kind="pages")
        del self.notes.entries[f"{name} page"]["text"]  # long
        for number, data in enumerate(re.findall(r"<script[^>]*json[^>]*>(.*?)</script>", page)):
            self.notes.text(f"{name} data {number}", data, kind="page data")
        found = dict.fromkeys(re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", page))
        for number, data in enumerate(found):
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                self.notes.picture(f"{name} embedded {number}", image)


def case(name: str) -> Callable[[Callable[[Runs], None]], Callable[[Runs], None]]:
    def keep(function: Callable[[Runs], None]) -> Callable[[Runs], None]:
        assert name not in CASES, name
        CASES[f"script {name}"] = lambda bench, notes: function(Runs(bench, notes))
        return function

    return keep


SEED = ("--seed", "3", "--steps", "3")
TINY = (*SEED, "--model", "{sd1}")
A_PNG = ("--output", "x.png")


def fill(bench: Bench, flags: tuple[str, ...]) -> list[str]:
    """Flags with {names} of models and files put in."""
    known = {
        **{name: partial(bench.model, name) for name in ("sd1", "sd2", "sdxl", "refiner")},
        "inpainting": partial(bench.model, "inpainting"),
        "clouds": lambda: bench.picture,
        "mask": lambda: bench.mask_file,
        "erased": lambda: bench.erased,
        "lora": lambda: bench.lora("kohya"),
        "other_lora": lambda: bench.lora("diffusers"),
        "embedding": bench.embedding,
    }
    filled = []
    for flag in flags:
        for name in re.findall(r"\{(\w+)\}", flag):
            if name in known:
                flag = flag.replace(f"{{{name}}}", str(known[name]()))
        filled.append(flag)
    return filled


RUNS: dict[str, tuple[str, ...]] = {
    "paint": ("text_to_image", "a red apple in flat style on a light blue background", *SEED),
    "paint chinese, negative": (
        *("text_to_image", "一只狐狸在左边，扁平风格", *SEED, "--negative-prompt", "红色"),
        *("--guidance-scale", "3", "--scheduler", "euler a"),
    ),
    "paint grid": ("text_to_image", "a fox", "a cat", "a star", *SEED, "--grid"),
    "paint images, batches": (
        *("text_to_image", "a fox", "a cat", *TINY, "--images", "2", "--batch-size", "3"),
        *("--grid", "--size", "40x24"),
    ),
    "paint one file": ("text_to_image", "a fox", *SEED, "--output", "x.png", "--size", "32"),
    "paint hires": (
        *("text_to_image", "a red fox", *TINY, "--hires", "96x80", "--hires-strength", "0.6"),
        *("--tiled", "--scheduler", "dpm++ 2m sde"),
    ),
    "paint hires embedded": ("text_to_image", "a fox", *SEED, "--hires", "80x80"),
    "paint a1111": (
        *("text_to_image", "a (red:1.4) [fox:cat:0.4] BREAK a tree AND a dog :0.5", *TINY),
        *("--dialect", "a1111", "--clip-skip", "1", "--guidance-rescale", "0.5", "--hash-model"),
    ),
    "paint lora, embedding": (
        *("text_to_image", "a red mark", *TINY, "--lora", "{lora}:0.4", "--lora", "{other_lora}"),
        *("--embedding", "{embedding}", "--attention", "chunked"),
    ),
    "paint bf16": ("text_to_image", "a fox", *TINY, "--precision", "bf16", *A_PNG),
    "paint sd2": ("text_to_image", "a fox", *SEED, "--model", "{sd2}", *A_PNG),
    "paint sdxl": ("text_to_image", "a fox", *SEED, "--model", "{sdxl}", "--images", "2"),
    "explain prompt": (
        *("text_to_image", "a (red:1.4) [fox:cat:0.4] BREAK a tree", "a [fox|cat] AND 一只狐狸"),
        *("--explain-prompt", "--dialect", "a1111", "--negative-prompt", "(bad:0.7)"),
    ),
    "explain prompt compel": (
        *("text_to_image", "a red++ apple, (white background)0.6", "--explain-prompt"),
        *("--dialect", "compel"),
    ),
    "image": ("image_to_image", "{clouds}", "a red apple", *SEED, "--strength", "0.7"),
    "image batch": (
        *("image_to_image", "{clouds}", "a cat", "a dog", *TINY, "--strength", "0.5"),
        *("--images", "2"),
    ),
    "image mask": ("image_to_image", "{clouds}", "a blue fish", *SEED, "--mask", "{mask}"),
    "image mask inverted, 9 channels": (
        *("image_to_image", "{clouds}", "a cat", *SEED, "--model", "{inpainting}"),
        *("--mask", "{mask}", "--invert-mask"),
    ),
    "image only masked": (
        *("image_to_image", "{clouds}", "a cat", *SEED, "--mask", "{mask}"),
        *("--only-masked", "8"),
    ),
    "image transparent": ("image_to_image", "{erased}", "a cat", *TINY, "--mask-transparent"),
    "image hires": (
        *("image_to_image", "{clouds}", "a cat", *TINY, "--strength", "0.6"),
        *("--hires", "96x72", "--size", "64x48"),
    ),
    "image refiner": (
        *("image_to_image", "{clouds}", "a cat", *SEED, "--model", "{refiner}"),
        *("--strength", "0.7"),
    ),
    "edit": (
        *("edit_prompt", "a fox in flat style", "--to", "a cat in flat style"),
        *("--to", "a fox in neon style", "--seed", "3", "--steps", "4", "--images", "2"),
    ),
    "edit chinese": ("edit_prompt", "一只狐狸，扁平风格", "--to", "一只猫，扁平风格", *SEED),
    "edit reweight": ("edit_prompt", "a red apple", "--reweight", "red:0", *SEED),
    "edit only": (
        *("edit_prompt", "a fox on the red tree", "--to", "a cat on the red tree", *TINY),
        *("--only", "fox", "--only", "cat", "--steps-window", "0-0.6"),
        *("--steps-window", "cat:0-0.3", "--keep-layout", "0.5", "--dialect", "a1111"),
    ),
    "explain": (
        *("explain", "a fox to the left of a cat, light blue background", "--seed", "3"),
        *("--steps", "4", "--windows", "2", "--grid", "grid.png", "--grid-steps"),
        *("--negative-prompt", "red"),
    ),
    "explain chinese": ("explain", "一只狐狸在左边，扁平风格", *SEED, "--output", "page.html"),
    "explain several sdxl": (
        *("explain", "a red fox", "a cat", *SEED, "--model", "{sdxl}", "--windows", "2"),
    ),
    "explain a1111": (
        *("explain", "a (red:1.4) fox BREAK a [cat] on the tree", *TINY, "--dialect", "a1111"),
    ),
    "explain image": (
        *("explain", "a fox", "--image", "{clouds}", "--seed", "3", "--windows", "3"),
        *("--grid", "grid.png"),
    ),
    "inspect folder": ("inspect_model", "{sd1}", "--hash"),
    "inspect folder json": ("inspect_model", "{sdxl}", "--json"),
    "inspect refiner, inpainting": ("inspect_model", "{refiner}"),
    "inspect lora": ("inspect_model", "{lora}", "--hash"),
    "inspect embedding": ("inspect_model", "{embedding}", "--json"),
    "convert to one file": ("convert", "{sd1}", "new.safetensors"),
    "convert sdxl to one file, float16": (
        *("convert", "{sdxl}", "new.safetensors", "--dtype", "float16"),
    ),
}
for _name, (_script, *_flags) in RUNS.items():

    def _run(runs: Runs, script: str = _script, flags: tuple[str, ...] = tuple(_flags)) -> None:
        runs(script, *fill(runs.bench, flags))

    case(_name)(_run)


@case("from own pictures")
def _(runs: Runs) -> None:
    flags = fill(runs.bench, ("a (red:1.2) fox", *TINY, "--images", "2", "--dialect", "a1111"))
    model = fill(runs.bench, ("--model", "{sd1}"))
    more = ("--clip-skip", "1", "--negative-prompt", "bad", "--scheduler", "dpm++ sde karras")
    _, second = runs("text_to_image", *flags, *more)
    runs("text_to_image", "--from", second, *model)
    runs("text_to_image", "--from", second, *model, "--seed", "8", "--size", "40x24")
    (embedded,) = runs("text_to_image", "一个红苹果", *SEED, "--output", "own.png")
    runs("text_to_image", "--from", embedded)


@case("from own picture with lora, embedding and hires")
def _(runs: Runs) -> None:
    files = ("--lora", "{lora}:0.5", "--embedding", "{embedding}")
    flags = fill(runs.bench, ("a red mark", *TINY, *files, "--hires", "80x80", *A_PNG))
    (first,) = runs("text_to_image", *flags)
    again = fill(runs.bench, ("--model", "{sd1}", "--lora", "{lora}", "--embedding", "{embedding}"))
    runs("text_to_image", "--from", first, *again)


def picture_of_others(runs: Runs, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    path = runs.bench.folder / f"{re.sub(r'[^a-z]', '-', runs.notes.case)}.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def other_flags(runs: Runs) -> list[str]:
    runs.bench.lora("kohya", name="ink")
    return [*fill(runs.bench, ("--model", "{sd1}")), "--lora-folder", f"{runs.bench.folder}/loras"]


@case("from a web UI picture")
def _(runs: Runs) -> None:
    source = picture_of_others(runs, parameters=WEB_UI)
    runs("text_to_image", "--from", source, *other_flags(runs))


@case("from a ComfyUI graph")
def _(runs: Runs) -> None:
    source = picture_of_others(runs, prompt=json.dumps(GRAPH), workflow="{}")
    runs("text_to_image", "--from", source, *other_flags(runs))


@case("lora named in a prompt")
def _(runs: Runs) -> None:
    flags = [*fill(runs.bench, TINY), *other_flags(runs), "--dialect", "a1111"]
    runs("text_to_image", "a red fox <lora:ink:0.5>", "a cat", *flags)


@case("convert an old checkpoint and an embedding")
def _(runs: Runs) -> None:
    torch.manual_seed(6)
    weights = {"a": torch.randn(3, 5), "half": torch.randn(4).half(), "ids": torch.arange(77)}
    old, word = runs.bench.folder / "old.ckpt", runs.bench.folder / "word.pt"
    torch.save({"state_dict": weights, "epoch": 3}, old)
    torch.save({"string_to_param": {"*": torch.randn(2, 32)}, "name": "word"}, word)
    runs("convert", old, "new.safetensors")
    runs("convert", word, "word.safetensors", "--name", "zwx")
    runs("inspect_model", "new.safetensors", "--json")
