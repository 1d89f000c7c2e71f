"""--from: pictures painted again, and texts of other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from sdcore import TextToImage
from sdcore.app import paint as text_to_image
from sdcore.errors import FileError
from sdcore.files.hashes import file_hash, tensor_hash, weights_hash
from sdcore.job.adapters import EmbeddingSettings, LoraSettings
from sdcore.metadata.png import read_settings, save_png
from sdcore.size import Size, SizeConditioning
from tests.metadata.test_recipe import GRAPH, node
from tests.painting import paint


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command; gives exit code, printed paths, and what went to stderr."""

    def call(*arguments: str | Path) -> tuple[int, list[Path], str]:
        output = ["--output", tmp_path / "out"]
        code = text_to_image.main([str(argument) for argument in (*arguments, *output)])
        captured = capsys.readouterr()
        return code, [Path(line) for line in captured.out.splitlines()], captured.err

    return call


@pytest.fixture
def lora(tmp_path) -> Path:
    """A LoRA of rank 2 on one layer of the tiny UNet, strong enough to be seen."""
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"{layer}.lora_down.weight": torch.randn(2, 32, generator=generator),
        f"{layer}.lora_up.weight": torch.randn(32, 2, generator=generator),
    }
    (tmp_path / "loras" / "style").mkdir(parents=True)
    save_file(tensors, tmp_path / "loras" / "style" / "ink.safetensors")
    return tmp_path / "loras" / "style" / "ink.safetensors"


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def picture(folder: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(folder / "x.png", pnginfo=info)
    return folder / "x.png"


FLAGS = [
    ["--negative-prompt", "bad, drawing", "--guidance-scale", "3.7", "--size", "40x24"],
    ["--negative-prompt", "", "--scheduler", "dpm++ sde karras", "--guidance-rescale", "0.4"],
    ["--clip-skip", "1", "--scheduler", "euler a", "--attention", "chunked"],
    ["--precision", "bf16", "--guidance-scale", "1"],
    ["--hires", "72x40", "--hires-strength", "0.7", "--size", "40x24", "--tiled"],
]


@pytest.mark.parametrize("flags", FLAGS, ids=range(len(FLAGS)))
def test_a_run_of_ours_is_repeated_to_the_bit(run, sd_folder, flags) -> None:
    prompt = 'a red "apple"\nNegative prompt: none\nSteps: 1, Seed: 1, Size: 8x8'
    few = ["--model", sd_folder, "--steps", "3", "--seed", "11", "--images", "2"]
    _, first, _ = run(prompt, *few, *flags)
    code, again, err = run("--from", first[1], "--model", sd_folder)
    assert code == 0 and "a picture by sdcore" in err and "not the same" not in err
    assert pixels(again[0]) == pixels(first[1]) != pixels(first[0])
    assert read_settings(again[0]) == read_settings(first[1])
    assert read_settings(again[0]).job.seed == 12


def test_sdxl_and_a_missing_negative_prompt(run, sdxl_folder) -> None:
    """None is zeros there, which is not the text of ""."""
    _, first, _ = run("a fox", "--model", sdxl_folder, "--steps", "2", "--seed", "1")
    _, other, _ = run("a fox", "--model", sdxl_folder, "--steps", "2", "--negative-prompt", "")
    for path in (first[0], other[0]):
        _, again, _ = run("--from", path, "--model", sdxl_folder)
        assert pixels(again[0]) == pixels(path)


def test_sdxls_sizes_are_told_again(run, sdxl_folder, tmp_path) -> None:
    pipe = TextToImage.from_pretrained(sdxl_folder)
    sizes = (
        SizeConditioning((512, 512), (0, 64), (64, 64)),
        SizeConditioning((8, 8), (0, 0), (8, 8)),
    )
    told = {"size_conditioning": sizes[0], "negative_size_conditioning": sizes[1]}
    result = paint(pipe, "a fox", seed=1, steps=2, **told)
    path = save_png(result.images[0], tmp_path / "x.png", result.settings[0])
    _, again, _ = run("--from", path, "--model", sdxl_folder)
    assert pixels(again[0]) == pixels(path) != pipe("a fox", seed=1, steps=2).images[0].tobytes()


def test_what_no_picture_can_hold_is_named(run, sd_folder, tmp_path) -> None:
    pipe = TextToImage.from_pretrained(sd_folder)
    noise = torch.zeros(1, 4, 8, 8)

    def control(site, grid, q, k, v, attend):
        return attend(q, k, v)

    result = paint(pipe, "a fox", seed=1, steps=1, latents=noise, control=control)
    path = save_png(result.images[0], tmp_path / "x.png", result.settings[0])
    code, _, err = run("--from", path, "--model", sd_folder)
    assert code == 0 and "with latents=, which no file" in err and "with control=" in err
    result = pipe("a fox", image=result.images[0], seed=1, steps=2)
    path = save_png(result.images[0], tmp_path / "y.png", result.settings[0])
    code, _, err = run("--from", path, "--model", sd_folder)
    assert code == 2 and "sdcore image" in err


def test_the_models_own_scheduler_is_used_again(run, sd_folder, tmp_path) -> None:
    """Its name alone would lose what the folder sets besides."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in sd_folder.iterdir():
        if part.name != "scheduler":
            (folder / part.name).symlink_to(part)
    (folder / "scheduler").mkdir()
    config = json.loads((sd_folder / "scheduler" / "scheduler_config.json").read_text())
    config |= {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    _, first, _ = run("a cat", "--model", folder, "--steps", "12", "--seed", "1")
    _, again, _ = run("--from", first[0], "--model", folder)
    _, named, _ = run("--from", first[0], "--model", folder, "--scheduler", "dpm++ 2m")
    assert pixels(again[0]) == pixels(first[0]) != pixels(named[0])


def test_flags_beside_it_come_first(run, sd_folder) -> None:
    _, first, _ = run("a cat", "--model", sd_folder, "--steps", "3", "--seed", "1")
    flags = ["a dog", "--seed", "2", "--steps", "2", "--width", "24", "--clip-skip", "1"]
    code, again, _ = run("--from", first[0], "--model", sd_folder, *flags)
    read = read_settings(again[0])
    assert code == 0
    job = read.job
    assert (job.prompt, job.seed, job.steps, job.size.width) == ("a dog", 2, 2, 24)
    assert (
        read.job.clip_skip == 1
        and read.job.guidance_scale == read_settings(first[0]).job.guidance_scale
    )


def test_loras_are_applied_recorded_and_repeated(run, sd_folder, lora) -> None:
    model = ["--model", sd_folder, "--steps", "2", "--seed", "1"]
    _, plain, _ = run("a cat", *model)
    _, first, _ = run("a cat", *model, "--lora", f"{lora}:0.7")
    assert pixels(first[0]) != pixels(plain[0])
    assert read_settings(first[0]).job.loras == (LoraSettings("ink", 0.7, 0.7, tensor_hash(lora)),)
    folder = ["--lora-folder", lora.parents[1]]
    for flags in (folder, ["--lora", lora]):  # by its name, or by the file; the weight is told
        code, again, err = run("--from", first[0], "--model", sd_folder, *flags)
        assert code == 0 and "not the same" not in err
        assert pixels(again[0]) == pixels(first[0])
    _, other, _ = run("--from", first[0], "--model", sd_folder, "--lora", f"{lora}:0.1")
    assert read_settings(other[0]).job.loras[0].unet == 0.1
    code, _, err = run("--from", first[0], "--model", sd_folder)
    assert code == 2 and "There is no LoRA 'ink'" in err
    tensors = {"other": torch.zeros(1)}
    save_file(tensors, lora)
    _, _, err = run("--from", first[0], "--model", sd_folder, *folder)
    assert "is another file by its hash" in err or "holds no LoRA" in err


@pytest.mark.parametrize("dialect", ["plain", "a1111", "comfy"])
def test_embeddings_and_dialects_are_repeated(run, sd_folder, tmp_path, dialect) -> None:
    learned = tmp_path / "mark.safetensors"
    save_file({"emb_params": torch.full((2, 32), 3.0)}, learned)
    word = "embedding:mark" if dialect == "comfy" else "mark"
    model = ["--model", sd_folder, "--steps", "2", "--seed", "1", "--dialect", dialect]
    prompt = f"a (red:1.4) cat {word}"
    _, plain, _ = run(prompt, *model)
    _, first, err = run(prompt, *model, "--embedding", learned)
    assert pixels(first[0]) != pixels(plain[0]) and "no effect" not in err
    told = read_settings(first[0])
    assert told.job.embeddings == (EmbeddingSettings("mark", file_hash(learned)),)
    assert told.job.dialect == dialect
    code, again, err = run("--from", first[0], "--model", sd_folder, "--embedding", learned)
    assert code == 0 and "not the same" not in err and pixels(again[0]) == pixels(first[0])
    code, _, err = run("--from", first[0], "--model", sd_folder)
    assert code == 2 and "embedding 'mark' is not given" in err
    _, _, err = run("a cat", *model, "--embedding", learned)
    assert f"no prompt says '{word}'" in err


WEB_UI = """\
a cat <lora:ink:0.5> <lora:gone:1>
Negative prompt: bad
Steps: 2, Sampler: DPM++ 2S a, Schedule type: Karras, CFG scale: 4, Seed: 5, Size: 40x24, \
Model hash: 0123456789, Model: /etc/passwd, Clip skip: 2, Odd key: 1, \
Lora hashes: "ink: aaaaaaaaaaaa" """.strip()


def test_a_text_of_the_web_ui(run, sd_folder, lora, tmp_path) -> None:
    source = picture(tmp_path, parameters=WEB_UI)
    folder = ["--lora-folder", lora.parents[1]]
    code, paths, err = run("--from", source, "--model", sd_folder, *folder)
    assert code == 0 and "a picture by Stable Diffusion web UI" in err
    for said in (
        *("'dpm++ 2s a' adds noise in every step", "RNG 'GPU'", "'Odd key'"),
        *("LoRA 'gone' is not here", "LoRA 'ink': ", "the model: it is", "'passwd'"),
    ):
        assert said in err, said
    read = read_settings(paths[0])
    job = read.job
    assert (job.seed, job.steps, job.guidance_scale, job.clip_skip) == (5, 2, 4.0, 1)
    assert (job.size, job.negative_prompt) == (Size(40, 24), "bad")
    assert (read.sampler, job.dialect) == ("dpm++ 2s a karras", "a1111")
    assert [(lora.name, lora.unet) for lora in job.loras] == [("ink", 0.5)]


def test_a_graph_of_comfyui(run, sd_folder, lora, tmp_path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    graph["6"] = node("EmptyLatentImage", width=40, height=24, batch_size=1)
    graph["7"]["inputs"] |= {"steps": 2}
    source = picture(tmp_path, prompt=json.dumps(graph), workflow="{}")
    code, paths, err = run("--from", source, "--model", sd_folder, "--lora-folder", lora.parent)
    assert code == 0 and "a picture by ComfyUI" in err and "the picture's 'v1-5'" in err
    read = read_settings(paths[0])
    job = read.job
    assert (job.seed, job.steps, job.clip_skip, job.dialect) == (42, 2, 1, "comfy")
    assert (job.loras[0].unet, job.loras[0].text) == (0.7, 0.3)


def test_clip_skip_of_others_means_nothing_on_sdxl(run, sdxl_folder, tmp_path) -> None:
    source = picture(tmp_path, parameters=WEB_UI.replace("DPM++ 2S a", "DPM++ 2M"))
    code, paths, _ = run("--from", source, "--model", sdxl_folder)
    assert code == 0 and read_settings(paths[0]).job.clip_skip == 0


def test_the_models_hash_is_noted_and_compared(run, sd_folder, sd2_folder) -> None:
    flags = ["--steps", "1", "--seed", "1", "--hash-model"]
    _, first, _ = run("a cat", "--model", sd_folder, *flags)
    assert read_settings(first[0]).model_hash == weights_hash(sd_folder)
    _, _, err = run("--from", first[0], "--model", sd_folder)
    assert "not the same" not in err
    _, _, err = run("--from", first[0], "--model", sd2_folder)
    assert f"the picture's {weights_hash(sd_folder)[:10]}" in err


def test_the_embedded_model_needs_no_name(run, tmp_path) -> None:
    _, first, _ = run("a red apple", "--steps", "1", "--seed", "1")
    code, again, err = run("--from", first[0])
    assert code == 0 and pixels(again[0]) == pixels(first[0]) and "not the same" not in err
    changed = replace(read_settings(first[0]), model_hash="0" * 64)
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "old.png", changed)
    _, _, err = run("--from", path)
    assert "the model: its hash is" in err


ERRORS = [
    ({"parameters": WEB_UI}, [], 2, ["x.png needs --model", "'passwd' (hash 0123456789)"]),
    ({"parameters": "a cat"}, [], 3, ["holds no settings"]),
    ({"prompt": "a cat"}, [], 3, ["'prompt' cannot be followed"]),
    ({"prompt": json.dumps({"1": node("X")})}, [], 3, ["KSampler"]),
    ({"sdcore": "{}"}, [], 3, ["'prompt' is missing"]),
    ({}, [], 3, ["does not say how it was made"]),
    ({"parameters": f"{WEB_UI}, Size: 20x20"}, ["--model", "{model}"], 2, ["width is 20"]),
    ({"parameters": WEB_UI}, ["--model", "{model}", "--steps", "0"], 2, ["--steps is 0"]),
]


@pytest.mark.parametrize(("texts", "flags", "code", "said"), ERRORS, ids=range(len(ERRORS)))
def test_errors_say_what_why_and_what_to_try(
    run, sd_folder, tmp_path, texts, flags, code, said
) -> None:
    source = picture(tmp_path, **texts)
    flags = [flag.format(model=sd_folder) for flag in flags]
    got, paths, err = run("--from", source, *flags)
    assert got == code and not paths and "why:" in err and "try:" in err
    assert all(text in err for text in said), err
    assert "attention:" not in err  # refused before a model was loaded


def test_hashes_are_the_public_ones(tmp_path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"a": torch.arange(5.0)}, one, {"note": "first"})
    save_file({"a": torch.arange(5.0)}, two, {"note": "a longer second"})
    assert tensor_hash(one) == tensor_hash(two) and file_hash(one) != file_hash(two)
    (tmp_path / "text").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert file_hash(tmp_path / "text") == known
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileError, match="no weights to hash"):
        weights_hash(tmp_path)
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        (tmp_path / "unet" / name).write_text(name)
    assert weights_hash(tmp_path) != weights_hash(tmp_path, "fp16")
