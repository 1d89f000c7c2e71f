"""Cases that call sdcore from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import calls
import torch
from calls import get, paint, tokens
from workbench import Bench, Notes, clouds

CASES: dict[str, Callable[[Bench, Notes], None]] = {}
FEW = {"seed": 7, "steps": 3}
FOX = "a red fox on the small tree"
LONG = ", ".join(f"a {x} {y} on the {z}" for x in ("red", "big", "small") for y in ("fox", "cat")
                 for z in ("tree", "apple", "dog"))  # fmt: skip
SCHEDULERS = (
    *("ddim", "ddpm", "pndm", "euler", "euler karras", "euler a", "heun", "dpm++ 2m"),
    *("dpm++ 2m karras", "dpm++ 2m sde", "dpm++ 2m sde karras", "dpm++ sde", "dpm++ sde karras"),
    *("unipc", "lcm"),
)


def case(name: str) -> Callable[[Callable[[Bench, Notes], None]], Callable[[Bench, Notes], None]]:
    def keep(function: Callable[[Bench, Notes], None]) -> Callable[[Bench, Notes], None]:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return keep


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- runs that a model, a prompt and options say ------------------------------------------------


def paint_plainly(
    bench: Bench, notes: Notes, *, model: str, prompt: Any, options: Mapping[str, Any]
) -> None:
    notes.result(paint(bench.pipe(model), prompt, **{**FEW, **options}))


A1111, NONORM = {"dialect": "a1111"}, {"dialect": "a1111-nonorm"}
COMFY, COMPEL = {"dialect": "comfy"}, {"dialect": "compel"}
PLAIN_RUNS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "embedded english": ("embedded", "a red fox in flat style on a white background", {}),
    "embedded chinese": ("embedded", "一只狐狸在左边，扁平风格，浅蓝色背景", {}),
    "embedded both languages, a seed each": (
        "embedded",
        ["a big rocket in neon style", "一个红苹果，扁平风格"],
        {"seed": [11, 4]},
    ),
    "embedded images per prompt": ("embedded", "a cat", {"images_per_prompt": 2}),
    "embedded negative": ("embedded", "a fox", {"negative_prompt": "red", "guidance_scale": 4.0}),
    "embedded a negative each": (
        "embedded",
        ["a fox", "a cat"],
        {"negative_prompt": ["red", "白色"], "guidance_scale": 3.0},
    ),
    "embedded guidance 1": ("embedded", "a fox", {"guidance_scale": 1.0}),
    "embedded size": ("embedded", "a fish", {"width": 72, "height": 40}),
    "embedded clip skip": ("embedded", "a fish", {"clip_skip": 1}),
    "embedded euler a": ("embedded", "a fish", {"scheduler": "euler a"}),
    "embedded long": ("embedded", LONG, {}),
    "embedded default steps": ("embedded", "a star", {"steps": None, "width": 32, "height": 32}),
    "embedded plain brackets": ("embedded", "a (red:1.3) apple in [flat] style", {}),
    "embedded a1111 weights": (
        "embedded",
        "a (red:1.4) apple in [flat] style, ((white)) background",
        {**A1111, "negative_prompt": "(blue:1.2)", "guidance_scale": 3.0},
    ),
    "embedded a1111 break": ("embedded", "a red apple BREAK a white background", A1111),
    "embedded a1111 and": ("embedded", "a red fox AND a blue background :0.7", A1111),
    "embedded a1111 change": ("embedded", "a [fox:cat:0.4] in flat style", {**A1111, "steps": 5}),
    "embedded a1111 in turn": ("embedded", "a [fox|cat] in flat style", {**A1111, "steps": 4}),
    "embedded a1111 long": ("embedded", f"(fox:1.3), {LONG}", A1111),
    "embedded nonorm weights": ("embedded", "a (red:1.4) apple in [flat] style", NONORM),
    "embedded comfy weights": ("embedded", "a (red:1.4) apple, (white:0.6) background", COMFY),
    "embedded comfy long": ("embedded", f"(fox:1.3), {LONG}", COMFY),
    "embedded compel weights": ("embedded", "a red++ apple, (white background)0.6", COMPEL),
    "embedded compel and": (
        "embedded",
        '("a red fox", "a blue background").and(1, 0.5)',
        COMPEL,
    ),
    "embedded compel blend": ("embedded", '("a red fox", "a cat").blend(0.7, 0.3)', COMPEL),
    "embedded compel long": ("embedded", f"fox++, {LONG}", COMPEL),
    "sd1 own scheduler": ("sd1", [FOX, "a cat"], {"negative_prompt": "a bad photo"}),
    "sd1 guidance rescale": ("sd1", FOX, {"guidance_rescale": 0.7}),
    "sd1 clip skip": ("sd1", FOX, {"clip_skip": 1, "negative_prompt": "bad"}),
    "sd1 clip skip a1111": ("sd1", FOX, {**A1111, "clip_skip": 1, "negative_prompt": "bad"}),
    "sd1 size": ("sd1", FOX, {"width": 40, "height": 72}),
    "sd1 tiled": ("sd1", FOX, {"width": 136, "height": 96, "tiled": True}),
    "sd1 steps before": ("sd1", "a [cat:dog:1.5]", {**A1111, "steps": 4, "steps_before": 4}),
    "sd1 two-sided and": ("sd1", ["a cat AND a dog :0.5", "a red fox"], A1111),
    "sd2 v-prediction": ("sd2", [FOX, "a cat"], {"negative_prompt": "bad"}),
    "sd2 v-prediction dpm++ sde": ("sd2", FOX, {"scheduler": "dpm++ sde karras"}),
    "sd2 rescale": ("sd2", FOX, {"guidance_rescale": 0.6, "scheduler": "euler"}),
    "sdxl no negative": ("sdxl", FOX, {}),
    "sdxl empty negative": ("sdxl", FOX, {"negative_prompt": ""}),
    "sdxl clip skip": ("sdxl", [FOX, "a cat"], {"clip_skip": 1, "negative_prompt": "bad"}),
    "sdxl euler a": ("sdxl", FOX, {"scheduler": "euler a", "width": 72, "height": 48}),
    "sdxl a1111": ("sdxl", "a (red:1.4) fox BREAK a [cat:dog:0.4] AND a tree :0.5", A1111),
    "sdxl comfy": ("sdxl", f"a (red:1.4) fox, {LONG}", COMFY),
    "sdxl compel": ("sdxl", "a red++ fox, (small tree)0.6", COMPEL),
    "refiner alone": ("refiner", FOX, {"negative_prompt": "bad"}),
    **{f"sd1 scheduler {x}": ("sd1", FOX, {"scheduler": x, "steps": 4}) for x in SCHEDULERS},
}
for _name, (_model, _prompt, _options) in PLAIN_RUNS.items():
    case(_name)(partial(paint_plainly, model=_model, prompt=_prompt, options=_options))


# --- models, types, backends ----------------------------------------------------------------------


@case("models as they were built")
def _(bench: Bench, notes: Notes) -> None:
    for name in ("sd1", "sd2", "sdxl", "refiner", "inpainting"):
        for path in sorted(bench.model(name).rglob("*.safetensors")):
            notes.tensors(f"{name} {path.parent.name}", path)


@case("parts alone")
@torch.no_grad()
def _(bench: Bench, notes: Notes) -> None:
    pipe = bench.pipe("embedded")
    text = pipe.text_encoder(pipe.tokenizer("a red fox").ids).last_hidden_state
    notes.numbers("text", text)
    latents = noise(1, pipe.unet.config.in_channels, 8, 8)
    notes.numbers("prediction", pipe.unet(latents, time=500, text=text))
    notes.numbers("decoded", pipe.autoencoder.decode(latents))
    tiny = bench.pipe("sd1").autoencoder
    pixels = noise(1, 3, 96, 136).clamp(-1, 1)
    notes.numbers("encoded", tiny.encode(pixels))
    notes.numbers("encoded in tiles", tiny.encode(pixels, tiled=True))
    notes.numbers("decoded in tiles", tiny.decode(noise(1, 4, 12, 17), tiled=True))


@case("half precision")
def _(bench: Bench, notes: Notes) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for model in ("sd1", "sdxl"):
            pipe = calls.load(bench.model(model), dtype=dtype)
            notes.result(paint(pipe, FOX, **FEW), f"{model} {dtype}")
    pipe = calls.load(None, dtype=torch.bfloat16)
    notes.result(paint(pipe, "a red fox", seed=7, steps=2, width=32, height=32), "embedded")


def backend(bench: Bench, notes: Notes, *, name: str) -> None:
    for model in ("embedded", "sdxl"):
        pipe = bench.pipe(model)
        get("use_attention")(pipe.unet, name)
        try:
            notes.result(paint(pipe, "a red fox", **FEW), model)
        finally:
            get("use_attention")(pipe.unet, "auto")


for _name in ("auto", "sdpa", "chunked", "reference"):
    case(f"attention {_name}")(partial(backend, name=_name))


@case("every step's latents")
def _(bench: Bench, notes: Notes) -> None:
    def on_step(step: Any, latents: torch.Tensor) -> None:
        notes.numbers(f"step {step.index} of {step.count} at {step.time:g}", latents)

    for scheduler in ("heun", "pndm"):
        result = paint(bench.pipe("sd1"), FOX, **FEW, scheduler=scheduler, on_step=on_step)
        notes.result(result, scheduler)


@case("single file")
def _(bench: Bench, notes: Notes) -> None:
    for model in ("sd1", "sd2", "sdxl"):
        path = bench.folder / f"single-{model}.safetensors"
        get("save_single_file")(bench.pipe(model), path)
        notes.tensors(model, path)
        pipe = calls.open_single_file(path, bench.model(model))
        notes.result(paint(pipe, FOX, **FEW), model)


# --- from latents and pictures --------------------------------------------------------------------


@case("latents in")
def _(bench: Bench, notes: Notes) -> None:
    given = noise(2, 4, 8, 6, seed=3)
    notes.result(paint(bench.pipe("sd1"), [FOX, "a cat"], latents=given, **FEW))


@case("one model hands over to another")
def _(bench: Bench, notes: Notes) -> None:
    pipe = bench.pipe("sd1")
    for scheduler in (None, "dpm++ 2m karras", "euler a"):
        how = {"seed": 3, "steps": 6, "scheduler": scheduler}
        begun = notes.result(paint(pipe, FOX, denoising_end=0.6, **how), f"{scheduler} begun")
        ended = paint(pipe, "a cat", image=begun.latents, denoising_start=0.6, **how)
        notes.result(ended, f"{scheduler} ended")


@case("sdxl refined")
def _(bench: Bench, notes: Notes) -> None:
    how = {"seed": 3, "steps": 5, "negative_prompt": "bad", "denoising_end": 0.7}
    begun = notes.result(paint(bench.pipe("sdxl"), [FOX, "a cat"], **how), "begun")
    notes.result(calls.refine(bench.pipe("refiner"), begun), "refined")


@case("sdxl size conditioning")
def _(bench: Bench, notes: Notes) -> None:
    size = get("SizeConditioning")
    told = {
        "size_conditioning": size((512, 512), (0, 64), (64, 64)),
        "negative_size_conditioning": size((8, 8), (0, 0), (8, 8)),
    }
    notes.result(paint(bench.pipe("sdxl"), FOX, negative_prompt="bad", **told, **FEW), "sdxl")
    told = {"size_conditioning": size((64, 64), (0, 0), (64, 64), 3.0)}
    notes.result(paint(bench.pipe("refiner"), FOX, **told, **FEW), "refiner")


def from_picture(bench: Bench, notes: Notes, *, model: str, options: Mapping[str, Any]) -> None:
    how = {**FEW, "steps": 4, "image": bench.clouds, **options}
    if how.pop("masked", False):
        how["mask"] = bench.mask
    notes.result(paint(bench.pipe(model), "a red fox", **how))


for _name, (_model, _options) in {
    "image embedded": ("embedded", {"strength": 0.6}),
    "image sd1": ("sd1", {"strength": 0.5, "negative_prompt": "bad"}),
    "image sd1 default strength": ("sd1", {}),
    "image sd1 resized": ("sd1", {"strength": 0.5, "width": 80, "height": 56}),
    "image sd1 euler a": ("sd1", {"strength": 0.5, "scheduler": "euler a"}),
    "image sd1 tiled": ("sd1", {"strength": 0.5, "width": 136, "height": 96, "tiled": True}),
    "image sdxl": ("sdxl", {"strength": 0.7}),
    "image refiner": ("refiner", {"strength": 0.5}),
    "mask embedded": ("embedded", {"masked": True}),
    "mask 4 channels": ("sd1", {"masked": True}),
    "mask 4 channels strength": ("sd1", {"masked": True, "strength": 0.6, "scheduler": "ddim"}),
    "mask 9 channels": ("inpainting", {"masked": True}),
    "mask 9 channels strength": ("inpainting", {"masked": True, "strength": 0.6}),
    "mask 4 channels only masked": (
        "sd1",
        {"masked": True, "only_masked": 8, "width": 64, "height": 64},
    ),
    "mask 9 channels only masked": (
        "inpainting",
        {"masked": True, "only_masked": 4, "width": 48, "height": 48},
    ),
}.items():
    case(_name)(partial(from_picture, model=_model, options=_options))


@case("a picture for each prompt")
def _(bench: Bench, notes: Notes) -> None:
    pictures = [clouds((64, 48)), clouds((64, 48), seed=1)]
    how = {"strength": 0.5, "seed": 2, "steps": 4, "images_per_prompt": 2}
    notes.result(paint(bench.pipe("sd1"), [FOX, "a cat"], image=pictures, **how))


def second_pass(bench: Bench, notes: Notes, *, model: str, options: Mapping[str, Any]) -> None:
    pipe = bench.pipe(model)
    first = paint(pipe, ["a red fox", "a [cat:dog:1.4]"], dialect="a1111", seed=3, steps=4)
    notes.result(first, "first")
    notes.result(calls.enlarge(pipe, first, width=96, height=80, **options), "second")


for _name, (_model, _options) in {
    "second pass pixels": ("sd1", {"strength": 0.5}),
    "second pass latents": ("sd1", {"strength": 0.6, "upscale": "latents", "steps": 5}),
    "second pass tiled": ("sdxl", {"strength": 0.5, "tiled": True}),
    "second pass embedded": ("embedded", {}),
}.items():
    case(_name)(partial(second_pass, model=_model, options=_options))


# --- LoRA and textual inversion -------------------------------------------------------------------


def with_loras(bench: Bench, notes: Notes, *, loras: Mapping[str, Any], merge: bool) -> None:
    pipe = bench.pipe("sd1")
    read = [
        (get("read_lora")(bench.lora(spelling, seed=number + 1)), weight)
        for number, (spelling, weight) in enumerate(loras.items())
    ]
    read = [(lora, get("LoraWeight")(*w) if isinstance(w, tuple) else w) for lora, w in read]
    with calls.applied("apply_loras", pipe, read, merge=merge) as styled:
        notes.result(paint(styled, FOX, negative_prompt="bad", **FEW))


for _merge in (False, True):
    _how = "merged" if _merge else "beside"
    for _spelling in ("kohya", "peft", "diffusers", "older", "dora", "loha", "lokr"):
        case(f"lora {_spelling} {_how}")(partial(with_loras, loras={_spelling: 0.6}, merge=_merge))
    case(f"lora two at once {_how}")(
        partial(with_loras, loras={"kohya": 0.4, "diffusers": (-0.5, 0.8)}, merge=_merge)
    )


@case("lora saved")
def _(bench: Bench, notes: Notes) -> None:
    pipe = bench.pipe("sd1")
    changes = calls.changes_of(get("read_lora")(bench.lora("kohya")), pipe)
    for spelling in ("kohya", "diffusers"):
        path = bench.folder / f"saved-{spelling}.safetensors"
        get("save_lora")(path, changes, spelling=spelling)
        notes.tensors(spelling, path)
    notes.result(paint(pipe, FOX, **FEW), "removed")


@case("lora sdxl")
def _(bench: Bench, notes: Notes) -> None:
    pipe = bench.pipe("sdxl")
    lora = get("read_lora")(bench.lora("diffusers", "sdxl", seed=8, name="xl"))
    for merge in (False, True):
        with calls.applied("apply_loras", pipe, [(lora, 0.5)], merge=merge) as styled:
            notes.result(paint(styled, FOX, **FEW), f"merge={merge}")


def with_embedding(bench: Bench, notes: Notes, *, model: str, dialect: str, word: str) -> None:
    pipe = bench.pipe(model)
    learned = get("read_embedding")(bench.embedding(model))
    with calls.applied("apply_embeddings", pipe, [learned], dialect=dialect) as taught:
        prompt = f"a red {word} on the tree"
        notes.result(paint(taught, prompt, dialect=dialect, negative_prompt=word, **FEW))


for _name, _model, _dialect, _word in (
    ("plain", "sd1", "plain", "mark"),
    ("a1111", "sd1", "a1111", "(mark:1.3)"),
    ("comfy", "sd1", "comfy", "embedding:mark"),
    ("sdxl", "sdxl", "plain", "markxl"),
):
    case(f"embedding {_name}")(partial(with_embedding, model=_model, dialect=_dialect, word=_word))


# --- controls -------------------------------------------------------------------------------------


def note_heatmaps(
    notes: Notes, heatmaps: Any, name: str = "", steps: tuple[float, float] = (0, 1)
) -> None:
    notes.numbers(f"{name}maps", heatmaps.maps(steps=steps))
    shares = [(s.span.word, s.share.hex(), s.peak.hex(), s.ignored, s.cut)
              for s in heatmaps.share(steps=steps)]  # fmt: skip
    notes.text(f"{name}shares", "\n".join(map(str, shares)))


@case("heatmaps embedded")
def _(bench: Bench, notes: Notes) -> None:
    pipe, prompt = bench.pipe("embedded"), "a fox on the left in flat style, light blue background"
    negative = get("WordHeatmaps")(tokens(pipe, "red"), windows=2)
    heatmaps = get("WordHeatmaps")(tokens(pipe, prompt), windows=2, negative=negative)
    result = paint(pipe, prompt, negative_prompt="red", control=heatmaps, seed=1, steps=4)
    notes.result(result)
    note_heatmaps(notes, heatmaps)
    note_heatmaps(notes, negative, "negative ", steps=(0, 0.5))
    up = heatmaps.of("light blue", steps=(0, 0.5), sites=lambda site: site.place == "up")
    notes.numbers("light blue", up)
    notes.picture("overlay", heatmaps.overlay(result.images[0], "fox"))


@case("heatmaps sdxl, sd2, two prompts")
def _(bench: Bench, notes: Notes) -> None:
    for model in ("sdxl", "sd2"):
        pipe, prompts = bench.pipe(model), [FOX, "a cat"]
        heatmaps = get("WordHeatmaps")(tokens(pipe, prompts), sites=lambda site: site.level >= 0)
        notes.result(paint(pipe, prompts, control=heatmaps, **FEW), model)
        notes.numbers(f"{model} cat", heatmaps.of("cat", image=1))
        note_heatmaps(notes, heatmaps, f"{model} ")


@case("heatmaps of a picture")
def _(bench: Bench, notes: Notes) -> None:
    for model in ("embedded", "sdxl"):
        read = get("heatmaps_of_image")
        heatmaps = read(bench.pipe(model), bench.clouds, "a red fox", times=(300, 600), seed=2)
        note_heatmaps(notes, heatmaps, f"{model} ")


def edit(
    bench: Bench, notes: Notes, *, model: str, prompts: list[str], settings: dict[str, Any]
) -> None:
    pipe = bench.pipe(model)
    control = get("PromptEdit")(tokens(pipe, prompts), get("EditSettings")(**settings))
    how = {"seed": [7] * len(prompts), "steps": 4, "control": control}
    notes.result(paint(pipe, prompts, **how))


_SWAP = ["a fox in flat style", "a cat in flat style"]
_TINY_SWAP = ["a fox on the red tree", "a cat on the red tree"]
for _name, (_model, _prompts, _settings) in {
    "edit replace": ("embedded", _SWAP, {}),
    "edit replace sd1": ("sd1", _TINY_SWAP, {"cross": (0, 0.6)}),
    "edit refine": ("sd1", ["a fox on the tree", "a small red fox on the big tree"], {}),
    "edit reweight": ("sd1", [FOX, FOX], {"scales": {"red": 2.5, "tree": -1}, "cross": (0, 1)}),
    "edit layout": ("sd1", _TINY_SWAP, {"layout": (0, 0.8), "layout_sites": lambda site: True}),
    "edit no layout": ("sd1", _TINY_SWAP, {"layout": None, "cross": (0.2, 0.8)}),
    "edit words": ("sd1", _TINY_SWAP, {"words": {"cat": (0, 0.3)}}),
    "edit only where": (
        "sd1",
        _TINY_SWAP,
        {"blend": ("fox", "cat"), "blend_from": 0.25, "blend_threshold": 0.4},
    ),
    "edit two sdxl": ("sdxl", [*_TINY_SWAP, "a dog on the red tree"], {"blend": ("tree",)}),
}.items():
    case(_name)(partial(edit, model=_model, prompts=_prompts, settings=_settings))


@case("reweight")
def _(bench: Bench, notes: Notes) -> None:
    for model in ("embedded", "sdxl"):
        pipe = bench.pipe(model)
        control = get("Reweight")(tokens(pipe, "a red fox"), {"fox": 2.0, "red": -1})
        notes.result(paint(pipe, "a red fox", control=control, **FEW), model)


@case("regions boxes")
def _(bench: Bench, notes: Notes) -> None:
    places = [
        get("Region")("a red apple in flat style", box=(0, 0, 0.5, 1)),
        get("Region")("a fish in flat style", box=(0.5, 0, 1, 1)),
    ]
    regions = get("Regions")("a white background", places, soft=0.1)
    notes.result(paint(bench.pipe("embedded"), regions.prompt, **A1111, **FEW, control=regions))


@case("regions masks and negatives")
def _(bench: Bench, notes: Notes) -> None:
    mask = torch.zeros(48, 64)
    mask[:, 32:] = 1
    for model in ("sd1", "sdxl"):
        places = [
            get("Region")("a cat", mask=mask, negative_prompt="a dog"),
            get("Region")("a fox", box=(0, 0, 0.4, 0.5)),
        ]
        regions = get("Regions")("the tree", places, base=0.3, soft=0.2, negative_prompt="bad")
        how = {**A1111, **FEW, "width": 64, "height": 48, "control": regions}
        negative = regions.negative_prompt
        result = paint(bench.pipe(model), regions.prompt, negative_prompt=negative, **how)
        notes.result(result, model)


@case("attend and excite")
def _(bench: Bench, notes: Notes) -> None:
    settings = get("ExciteSettings")(steps=(0, 0.8), strength=0.2, targets={0: 0.1}, most_moves=3)
    for model, given in (("sd1", settings), ("sdxl", None), ("embedded", settings)):
        pipe, prompt = bench.pipe(model), "a red fox and a cat"
        control = get("AttendAndExcite")(tokens(pipe, prompt), ["fox", "cat"], given)
        size = {"width": 32, "height": 32} if model == "embedded" else {}
        notes.result(paint(pipe, prompt, control=control, **size, **FEW), model)


@case("controls together")
def _(bench: Bench, notes: Notes) -> None:
    for model in ("sd1", "embedded"):
        pipe, prompts = bench.pipe(model), ["a red fox", "a red cat"]
        read = tokens(pipe, prompts)
        heatmaps = get("WordHeatmaps")(read)
        scaled = get("during")(get("Reweight")(read, {"red": 3.0}), 0, 0.5)
        edited = get("at_sites")(get("PromptEdit")(read), lambda site: site.place != "down")
        control = get("chain")(heatmaps, scaled, edited)
        notes.result(paint(pipe, prompts, seed=[7, 7], steps=4, control=control), model)
        note_heatmaps(notes, heatmaps, f"{model} ")


@case("controls of an AND's prompts")
def _(bench: Bench, notes: Notes) -> None:
    pipe = bench.pipe("sd1")
    first = get("Reweight")(tokens(pipe, "a red fox", "a1111"), {"red": 3.0})
    second = get("during")(get("Reweight")(tokens(pipe, "a cat", "a1111"), {"cat": -1}), 0.3, 1)
    control = get("parts")(first, second)
    notes.result(paint(pipe, "a red fox AND a cat :0.7", **A1111, **FEW, control=control))


@case("a function as control")
def _(bench: Bench, notes: Notes) -> None:
    seen: list[str] = []

    def louder(site: Any, grid: Any, q: Any, k: Any, v: Any, attend: Any) -> Any:
        seen.append(f"{site} {grid} {site.name}")
        return attend(q, k, 1.5 * v) if site.kind == "cross" else attend(q, k, v)

    for model in ("sd1", "sdxl"):
        notes.result(paint(bench.pipe(model), FOX, seed=1, steps=2, control=louder), model)
        notes.text(f"{model} sites", "\n".join(dict.fromkeys(seen)))
        seen.clear()


@case("backends with controls")
def _(bench: Bench, notes: Notes) -> None:
    pipe = bench.pipe("sd1")
    for name in ("chunked", "reference"):
        get("use_attention")(pipe.unet, name)
        try:
            control = get("PromptEdit")(tokens(pipe, _TINY_SWAP))
            result = paint(pipe, _TINY_SWAP, seed=[7, 7], steps=4, control=control)
            notes.result(result, name)
        finally:
            get("use_attention")(pipe.unet, "auto")
