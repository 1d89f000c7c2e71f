"""Pictures of SwarmUI, Fooocus, InvokeAI, NovelAI and Easy Diffusion, and other web UIs' lines."""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcore.errors import FileError
from sdcore.job.adapters import HiresSettings, LoraSettings
from sdcore.metadata.parameters import read_parameters
from sdcore.metadata.png import read_recipe
from sdcore.metadata.recipe import Recipe
from sdcore.metadata.texts import read_texts
from sdcore.metadata.web_ui import recipe_of_parameters
from sdcore.size import Size
from tests.metadata.test_recipe import GRAPH

WEB_UI = (
    "a fox\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x640"
)


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("__", " "), text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def said(recipe: Recipe) -> tuple[Any, ...]:
    job = recipe.job
    scale = job.guidance_scale
    return (job.prompt, job.negative_prompt, job.seed, job.steps, scale, job.size, recipe.model)


SWARM = {
    "sui_image_params": {
        "prompt": "a fox",
        "negativeprompt": "bad",
        "model": "SDXL/base_1.0.safetensors",
        "seed": 5,
        "steps": 20,
        "cfgscale": 7.0,
        "width": 512,
        "height": 640,
        "sampler": "dpmpp_2m",
        "scheduler": "karras",
        "loras": ["styles/ink", "pen"],
        "loraweights": ["0.5", "1"],
        "clipstopatlayer": -2,
        "automaticvae": True,
        "swarm_version": "0.9.6",
    },
    "sui_extra_data": {"date": "2026-01-01"},
}
FOOOCUS = {
    "base_model": "base_1.0",
    "base_model_hash": "e6bb9ea85b",
    "clip_skip": 2,
    "guidance_scale": 7.0,
    "loras": [["ink.safetensors", 0.5, "4852686128"], ["pen.safetensors", 1.0, "0000000000"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "bad",
    "performance": "Speed",
    "prompt": "a fox",
    "refiner_model": "None",
    "resolution": "(512, 640)",
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "seed": "5",
    "sharpness": 2.0,
    "steps": 20,
    "styles": "['Fooocus V2']",
    "version": "Fooocus v2.5.5",
}
INVOKE = {
    "app_version": "5.4.0",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a fox",
    "negative_prompt": "bad",
    "width": 512,
    "height": 640,
    "seed": 5,
    "rand_device": "cpu",
    "cfg_scale": 7.0,
    "cfg_rescale_multiplier": 0.5,
    "steps": 20,
    "scheduler": "dpmpp_2m_k",
    "model": {"key": "x", "hash": "blake3:aa", "name": "base_1.0", "base": "sdxl", "type": "main"},
    "loras": [
        {"model": {"key": "y", "name": "ink"}, "weight": 0.5},
        {"model": {"key": "z", "name": "pen"}, "weight": 1.0},
    ],
}
INVOKE_BEFORE = {
    "model": "stable diffusion",
    "model_weights": "base_1.0",
    "model_hash": "e6bb9ea85b",
    "app_version": "2.3.5",
    "image": {
        "prompt": [{"prompt": "a fox [bad]", "weight": 1.0}],
        "steps": 20,
        "cfg_scale": 7.0,
        "height": 640,
        "width": 512,
        "seed": 5,
        "type": "txt2img",
        "sampler": "k_dpmpp_2m",
        "seamless": False,
        "threshold": 0.0,
        "perlin": 0.0,
        "variations": [],
    },
}
NOVELAI = {
    "steps": 20,
    "height": 640,
    "width": 512,
    "scale": 7.0,
    "seed": 5,
    "uc": "bad",
    "noise_schedule": "karras",
    "sampler": "k_dpmpp_2m",
    "sm": False,
    "n_samples": 1,
    "request_type": "PromptGenerateRequest",
}
EASY = {
    "prompt": "a fox",
    "negative_prompt": "bad",
    "seed": "5",
    "num_inference_steps": "20",
    "guidance_scale": "7.0",
    "width": "512",
    "height": "640",
    "sampler_name": "dpmpp_2m",
    "use_stable_diffusion_model": "base_1.0",
    "use_lora_model": '["ink", "pen"]',
    "lora_alpha": "[0.5, 1.0]",
}
EASY_SHOWN = {
    "Prompt": "a fox",
    "Negative Prompt": "bad",
    "Seed": "5",
    "Steps": "20",
    "Guidance Scale": "7.0",
    "Width": "512",
    "Height": "640",
    "Sampler": "dpmpp_2m",
    "Stable Diffusion model": "base_1.0",
}
DREAM = '"a fox [bad]" -s 20 -S 5 -W 512 -H 640 -C 7.0 -A k_dpmpp_2m'
SAID = ("a fox", "bad", 5, 20, 7.0, Size(512, 640), "base_1.0")
LORAS = (LoraSettings("ink", 0.5, 0.5, ""), LoraSettings("pen", 1.0, 1.0, ""))
PICTURES: dict[str, tuple[dict[str, str], str, str]] = {
    "SwarmUI": ({"parameters": json.dumps(SWARM)}, "comfy", " karras"),
    "Fooocus": ({"parameters": json.dumps(FOOOCUS)}, "a1111", " karras"),
    "InvokeAI": ({"invokeai_metadata": json.dumps(INVOKE)}, "compel", " karras"),
    "InvokeAI 2": ({"sd-metadata": json.dumps(INVOKE_BEFORE)}, "compel", ""),
    "InvokeAI 1": ({"Dream": DREAM}, "compel", ""),
    "NovelAI": (
        {
            "Title": "AI generated image",
            "Description": "a fox",
            "Software": "NovelAI",
            "Source": "base_1.0 C1E1DE52",
            "Comment": json.dumps(NOVELAI),
        },
        "plain",
        " karras",
    ),
    "Easy Diffusion": (EASY, "compel", ""),
    "Easy Diffusion, as shown": (EASY_SHOWN, "compel", ""),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_each_program_says(tmp_path: Path, name: str) -> None:
    texts, dialect, levels = PICTURES[name]
    recipe = read_recipe(png(tmp_path / "x.png", **texts))
    model = None if name == "InvokeAI 1" else "base_1.0"
    assert said(recipe) == (*SAID[:-1], model)
    assert (recipe.job.dialect, recipe.job.scheduler) == (dialect, f"dpm++ 2m{levels}")
    assert name.startswith(recipe.origin)
    if name in ("SwarmUI", "Fooocus", "InvokeAI", "Easy Diffusion"):
        assert recipe.job.loras == LORAS
    if name != "Fooocus":
        assert recipe.differences == ()
    # Layer -2 is one left out in SD 1.x, and what SDXL does anyway.
    skips = (1, 0) if name in ("SwarmUI", "Fooocus") else (0, 0)
    assert (recipe.clip_skip_for(False), recipe.clip_skip_for(True)) == skips


CHANGED = [
    ("parameters", SWARM, {"initimage": "x.png"}, "it began from a picture"),
    ("parameters", SWARM, {"refinermodel": "y"}, "a refiner painted on"),
    ("parameters", SWARM, {"somethingnew": 3}, "not known here: somethingnew"),
    ("parameters", FOOOCUS, {}, "its styles ['Fooocus V2'] added texts"),
    ("invokeai_metadata", INVOKE, {"rand_device": "cuda"}, "drawn on a GPU"),
    ("invokeai_metadata", INVOKE, {"controlnets": [{"a": 1}]}, "ControlNet is not there"),
    ("invokeai_metadata", INVOKE, {"scheduler": "what"}, "'what' is not there"),
    ("invokeai_metadata", INVOKE, {"cfg_scale": "high"}, "cfg_scale 'high' cannot be used"),
    ("parameters", SWARM, {"loras": ["a"], "loraweights": ["x"]}, "weight 'x' of LoRA 'a'"),
    ("Comment", NOVELAI, {"sm": True}, "SMEA"),
    ("Comment", NOVELAI, {"prompt": "a {fox}"}, "its weights { } and [ ]"),
    ("sd-metadata", INVOKE_BEFORE, {"perlin": 0.2}, "its noise was changed"),
]


@pytest.mark.parametrize(("name", "settings", "change", "why"), CHANGED)
def test_what_cannot_match_is_named(
    tmp_path: Path, name: str, settings: Any, change: dict[str, Any], why: str
) -> None:
    inner = {"parameters": "sui_image_params", "sd-metadata": "image"}.get(name)
    whole = {**settings, **change}
    if inner in settings:
        whole = {**settings, inner: {**settings[inner], **change}}
    recipe = read_recipe(png(tmp_path / "x.png", **{name: json.dumps(whole)}))
    assert why in " | ".join(recipe.differences)


def test_parameters_are_read_where_the_graph_cannot_be_followed(tmp_path: Path) -> None:
    graph = {"1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}}
    path = png(tmp_path / "x.png", prompt=json.dumps(graph), parameters=WEB_UI)
    recipe = read_recipe(path)
    assert (recipe.job.prompt, recipe.job.seed) == ("a fox", 5)
    assert "'prompt' cannot be followed" in recipe.differences[0]
    both = png(tmp_path / "y.png", prompt=json.dumps(GRAPH), parameters=WEB_UI)
    assert read_recipe(both).job.prompt == "a (cat:1.2)"


def test_texts_of_no_use_are_one_error(tmp_path: Path) -> None:
    for texts in ({"parameters": "a fox"}, {"prompt": "{"}, {"Comment": "Created with GIMP"}):
        with pytest.raises(ValueError, match="does not say how it was made"):
            read_recipe(png(tmp_path / "x.png", **texts))


def hide(text: bytes, sign: bytes) -> Image.Image:
    """A picture with a text in the last bits of its alpha channel, column by column."""
    bits = np.unpackbits(
        np.frombuffer(sign + (len(text) * 8).to_bytes(4, "big") + text, dtype=np.uint8)
    )
    width = len(bits) // 64 + 1
    alpha = np.full(64 * width, 254, dtype=np.uint8)
    alpha[: len(bits)] |= bits
    picture = np.full((64, width, 4), 200, dtype=np.uint8)
    picture[..., 3] = alpha.reshape(width, 64).T
    return Image.fromarray(picture)


def test_a_text_hidden_in_the_alpha_channel(tmp_path: Path) -> None:
    texts = {"Description": "a fox", "Source": "base_1.0 C1E1DE52", "Comment": NOVELAI}
    packed = gzip.compress(json.dumps(texts).encode())
    hide(packed, b"stealth_pngcomp").save(tmp_path / "x.png")
    assert said(read_recipe(tmp_path / "x.png")) == SAID
    hide(WEB_UI.encode(), b"stealth_pnginfo").save(tmp_path / "y.png")
    assert read_texts(tmp_path / "y.png") == {"parameters": WEB_UI}
    hide(gzip.compress(b"x" * (6 << 20)), b"stealth_pngcomp").save(tmp_path / "z.png")
    with pytest.raises(ValueError, match=r"over 4 MiB"):
        read_texts(tmp_path / "z.png")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("words", ["一" * 150, "fox", "一"])
def test_the_order_of_bytes_is_not_guessed_from_zeros(
    tmp_path: Path, mark: str, order: str, words: str
) -> None:
    text = WEB_UI.replace("a fox", words)
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"UNICODE\0" + (mark + text).encode(order)}
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert read_recipe(tmp_path / "x.jpg").job.prompt == words


def test_comfyui_in_webp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(GRAPH)}", 'workflow:{"nodes": []}'
    Image.new("RGB", (8, 8)).save(tmp_path / "x.webp", exif=exif)
    assert read_recipe(tmp_path / "x.webp").job.prompt == "a (cat:1.2)"


LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x640"
LINES = {
    "a template": f"{LINE}\nTemplate: a {{fox|cat}}, (x:1.2)\nNegative Template: bad, old",
    "a line break within": LINE.replace(", Seed", ",\nSeed"),
    "a line for each": LINE.replace(", ", "\n"),
    "a broken value": f"{LINE}, ADetailer prompt: one\ntwo, ADetailer model: face.pt",
    "a quoted break": f'{LINE}, ADetailer prompt: "one\ntwo, three", ADetailer model: face.pt',
    "semicolons": LINE.replace(", ", "; "),
    "other commas": LINE.replace(", ", "\uff0c"),
    "carriage returns": f"{LINE}\r\n",
    "json": LINE + ', Civitai resources: [{"type":"checkpoint","a":"x, y: z"}], Clip skip: 1',
    "other case": LINE.replace("CFG scale", "CFG Scale"),
    "width and height": LINE.replace("Size: 512x640", "Width: 512, Height: 640"),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_settings_in_the_wild(name: str) -> None:
    recipe = recipe_of_parameters(f"a fox\nNegative prompt: bad\n{LINES[name]}")
    assert said(recipe)[:6] == ("a fox", "bad", 5, 20, 7.0, Size(512, 640))
    assert recipe.job.scheduler is not None and recipe.job.scheduler.startswith("euler a")


def test_forks_of_the_web_ui() -> None:
    forge = (
        f"a fox\n{LINE}, Schedule type: Karras, Model hash: e6bb9ea85b, Model: base_1.0, "
        "Diffusion in Low Bits: Automatic (fp16 LoRA), freeu_enabled: True, Version: f2.0.1v1.10.1"
    )
    recipe = recipe_of_parameters(forge)
    assert (recipe.model, recipe.model_hash) == ("base_1.0", "e6bb9ea85b")
    assert "FreeU is not there" in recipe.differences
    next_one = (
        "a fox\nNegative prompt: bad\nSteps: 20, Size: 512x640, Sampler: Euler a, Seed: 5, "
        "CFG scale: 7, App: SD.Next, Version: 1234abc, Pipeline: StableDiffusionPipeline, "
        "Operations: txt2img, Model: base_1.0, Parser: compel"
    )
    recipe = recipe_of_parameters(next_one)
    assert (said(recipe)[:2], recipe.job.dialect) == (("a fox", "bad"), "compel")


def test_fooocus_and_nodes_of_comfyui_in_the_form_of_the_web_ui() -> None:
    fooocus = (
        f"a fox\n{LINE}, Sharpness: 2.0, Styles: \"['Fooocus V2']\", Performance: Speed, "
        'Lora hashes: "ink: 4852686128", Lora weights: "ink: 0.1, pen: 1", Version: Fooocus v2.5.0'
    )
    recipe = recipe_of_parameters(fooocus)
    assert recipe.job.loras == (
        LoraSettings("ink", 0.1, 0.1, ""),
        LoraSettings("pen", 1.0, 1.0, ""),
    )
    assert not [why for why in recipe.differences if "not known here" in why]
    nodes = recipe_of_parameters(
        f"a fox\n{LINE.replace('Euler a', 'dpmpp_2m_karras')}, Version: ComfyUI"
    )
    assert (nodes.job.dialect, nodes.job.scheduler) == ("comfy", "dpm++ 2m karras")
    assert nodes.differences == ()


def test_hashes_of_all_parts() -> None:
    told = '{"model": "e6bb9ea85b", "lora:ink": "AABBCCDDEE", "vae": "x"}'
    recipe = recipe_of_parameters(f"a fox <lora:ink:0.5>\n{LINE}, Hashes: {told}")
    assert recipe.model_hash == "e6bb9ea85b"
    assert recipe.job.loras == (LoraSettings("ink", 0.5, 0.5, "aabbccddee"),)


@pytest.mark.parametrize(("first", "size"), [("512x640", Size(512, 640)), ("0x0", Size(512, 576))])
def test_the_second_pass_of_2022(first: str, size: Size) -> None:
    line = LINE.replace("512x640", "1024x1280")
    recipe = recipe_of_parameters(
        f"a fox\n{line}, Denoising strength: 0.7, First pass size: {first}"
    )
    assert recipe.job.size == size
    assert recipe.job.hires == HiresSettings(1024, 1280, 0.7, None, "latents")


@pytest.mark.parametrize(
    "tail",
    [
        'Lora hashes: "' + " " * 200_000 + '"',
        "Lora hashes: " + "a:" * 100_000,
        "Lora hashes: " + '"' + ":" * 200_000 + '"',
        "x " * 100_000,
        ", " * 100_000,
        "ab: [" * 50_000,
        'ab: "' * 50_000,
        "ab: {" * 50_000,
        "[" * 200_000,
        ";   " * 50_000,
        "\n" * 200_000 + "x",
        "a" * 300_000,
    ],
    ids=lambda tail: repr(tail[:16]),
)
def test_reading_takes_time_in_proportion(tail: str) -> None:
    start = time.process_time()
    recipe_of_parameters(f"a fox\n{LINE}, {tail}")
    read_parameters(tail)
    assert time.process_time() - start < 3


def test_mutated_settings_are_read_or_refused(tmp_path: Path) -> None:
    chance = random.Random(3)
    odd: list[Any] = [
        None,
        True,
        -1,
        10**30,
        1.5,
        "",
        "x" * 99,
        [],
        {},
        [1, None],
        {"a": "b"},
        "nan",
    ]
    programs = {
        "parameters": (SWARM["sui_image_params"], lambda s: {"sui_image_params": s}),
        "invokeai_metadata": (INVOKE, lambda s: s),
        "sd-metadata": (INVOKE_BEFORE["image"], lambda s: {"image": s}),
        "Comment": (NOVELAI, lambda s: s),
    }
    for _ in range(150):
        name = chance.choice(list(programs))
        settings, whole = programs[name]
        changed = {**settings, chance.choice(list(settings)): chance.choice(odd)}
        path = png(tmp_path / "x.png", **{name: json.dumps(whole(changed))})
        try:
            assert read_recipe(path).origin
        except FileError as error:
            assert "cannot be followed" in str(error)
