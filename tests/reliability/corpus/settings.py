"""Bad settings: of models, tokenizers, training and data; captions; checkpoints of a run."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from sdcore import Job, TextToImage
from sdcore.checkpoint.inspection import inspect
from sdcore.files.limits import YAML_BYTES
from sdcore.size import Size
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.data.captions import full_caption
from sdcore.training.data.scan import scan
from sdcore.training.data.settings import DataSettings
from sdcore.training.data.sources import read_items
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.settings import load_settings
from sdcore.training.state import load_checkpoint, save_checkpoint
from tests.reliability import test_damaged_settings as settings
from tests.reliability.corpus.case import Reader
from tests.reliability.corpus.weights import choose, flip, model_folder

EXTRAS = {
    "sampling.json": {"steps": 2, "guidance_scale": 3.0, "scheduler": "ddim", "width": 64},
    "words.json": {"names": ["red apple", "fox"], "other": ["a", "on"]},
    "tokenizer/special_tokens_map.json": {"bos_token": "<|startoftext|>", "pad_token": "!"},
    "tokenizer/added_tokens.json": {"<|endoftext|>": 571},
}
ODD: list[Any] = [
    *("5", "1e5", "true", 1e300, -1e300, 1e-300, 1e18, 0.0, -0.0, 2**31, 2**31 - 1, 2**53, 10**20),
    *([], [0.5], [1, 2], ["a"] * 3, [[1, 2], [3]], [True], [10**9], [1e300], {"a": 1}, {"0": 1}),
    *("cpu", "silu", "gelu", "linear", "epsilon", "v_prediction", "a\nb", "\ud800", "\x1b[31m"),
]


def odd_value(path: Path, rng: random.Random) -> None:
    """Another type, or far out of range; sometimes of a setting that the file does not say."""
    values = json.loads(path.read_text())
    more = ["norm_eps", "sample_size", "scaling_factor", "shift_factor", "trained_betas"]
    more += ["freq_shift", "steps_offset", "attention_head_dim", "latents_mean", "layer_norm_eps"]
    more += ["num_train_timesteps", "beta_start", "beta_end", "class_embed_type", "dropout"]
    more += ["model_max_length", "mid_block_scale_factor", "downsample_padding", "act_fn"]
    name = rng.choice(more) if rng.random() < 0.3 else rng.choice(sorted(values) or ["a"])
    old = values.get(name)
    junk = rng.choice([*ODD, *settings.JUNK])
    if isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.5:
        junk = rng.choice([str(old), -old, old * 1000, old + 0.5, [old], old * 1e-9, float(old)])
    path.write_text(json.dumps({**values, name: junk}))


KINDS = {**settings.KINDS, odd_value: 80}


def damaged_model(folder: Path, rng: random.Random) -> str:
    model = folder / "model"
    for path in model_folder().rglob("*"):  # weights are linked: no case changes them
        if path.is_file():
            target = model / path.relative_to(model_folder())
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                target.hardlink_to(path)
            else:
                target.write_bytes(path.read_bytes())
    name = rng.choice([*settings.SETTINGS, *settings.SETTINGS, *EXTRAS])
    path = model / name
    if name in EXTRAS:
        path.write_text(json.dumps(EXTRAS[name]))
    sound, damage = path.read_bytes(), choose(KINDS, rng)
    damage(path, rng)
    return f"{damage.__name__} of {name}: {changed(sound, path)}"


def changed(sound: bytes, path: Path) -> str:
    """The names of the settings that a damage touched."""
    try:
        before, after = json.loads(sound), json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "no JSON any more"
    if not isinstance(after, dict):
        return "no object any more"
    names = [n for n in sorted({*before, *after}) if before.get(n, ...) != after.get(n, ...)]
    return ", ".join(names)[:100] or "nothing"


def open_model(folder: Path) -> None:
    """What opens paints, too: nothing may fail only after all steps are computed."""
    try:
        pipe = TextToImage.from_pretrained(folder / "model")
        pipe.paint(Job("a cat", seed=1, steps=1, size=Size(64, 64)), progress=False)
    finally:
        inspect(folder / "model")


# --- tokenizers ----------------------------------------------------------------------------------


@cache
def tokenizer() -> dict[str, bytes]:
    """The files of a tokenizer in the old form."""
    from tests.tiny import vocabulary

    tokens, merges = vocabulary()
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    config = model_folder() / "tokenizer" / "tokenizer_config.json"
    return {
        "vocab.json": json.dumps(tokens).encode(),
        "merges.txt": lines.encode(),
        "tokenizer_config.json": config.read_bytes(),
    }


def damaged_tokenizer(folder: Path, rng: random.Random) -> str:
    for name, content in tokenizer().items():
        (folder / name).write_bytes(content)
    path = folder / rng.choice(["vocab.json", "merges.txt"])
    data = path.read_bytes()
    kind = rng.choice(["bytes", "cut", "lines", "large", "many", "numbers", "odd_value"])
    if kind == "bytes":
        flip(path, rng)
        return f"bytes of {path.name}"
    if kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
        return f"cut of {path.name}"
    if kind == "lines":
        lines = (folder / "merges.txt").read_bytes().split(b"\n")
        place = rng.randrange(len(lines))
        odd = [b"a b c", b"", b"a", b"\xff b", b"a  b", b"\0 \0", b"a " + b"b" * 100_000]
        lines[place : place + rng.randrange(2)] = [rng.choice(odd)]
        (folder / "merges.txt").write_bytes(b"\n".join(lines))
    elif kind == "large":
        path.write_bytes(rng.choice([b"a b\n" * (12 << 20), b"{}," * (5 << 20), data * 1000]))
    elif kind == "many":
        (folder / "vocab.json").write_text(json.dumps({f"t{n}": n for n in range(250_000)}))
    elif kind == "numbers":
        tokens = json.loads((folder / "vocab.json").read_text())
        tokens[rng.choice(sorted(tokens))] = rng.choice([-1, 0, 2**40, 10**400, "1", 1.5, None, []])
        (folder / "vocab.json").write_text(json.dumps(tokens))
    else:
        odd_value(path := folder / "tokenizer_config.json", rng)
        return f"odd_value of {changed(tokenizer()[path.name], path)}"
    return kind


def open_tokenizer(folder: Path) -> None:
    Tokenizer.from_pretrained(folder)(["a red apple 一只"])


# --- training ------------------------------------------------------------------------------------

TEXTS = (
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b]",
    "run: !!python/object/apply:os.system [echo]",
    "run: {steps: 1, steps: 2}",
    "run:\n  steps: .nan",
    "? [a, b]\n: c",
    "\xef\xbb\xbfrun: {}",
    "- a",
    "run: *nothing",
    "{" * 5000,
    "[" * 5000,
    "a: " + "b" * YAML_BYTES,
    'run: {folder: "\\0"}',
    "data: 2001-01-01",
    "data: 0o17",
    "run: {steps: 1e999}",
)


def damaged_training(folder: Path, rng: random.Random) -> str:
    path = folder / "train.yaml"
    if rng.random() < 0.2:
        path.write_text(text := rng.choice(TEXTS))
        return f"text {text[:30]!r}"
    values = FinetuneSettings(data={"source": "x"}).model_dump(mode="json")
    group = rng.choice([name for name, value in values.items() if isinstance(value, dict)])
    name = rng.choice(sorted(values[group]))
    values[group][name] = rng.choice([*ODD, *settings.JUNK, float("nan"), float("inf"), -1])
    if rng.random() < 0.1:
        values[group][name + "s"] = 1
    path.write_text(yaml.safe_dump(values))
    if rng.random() < 0.2:
        flip(path, rng)
        return f"bytes beside {group}.{name}"
    return f"value of {group}.{name}"


def open_training(folder: Path) -> None:
    load_settings(FinetuneSettings, folder / "train.yaml")


def damaged_data(folder: Path, rng: random.Random) -> str:
    from PIL import Image

    data = folder / "pictures"
    data.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (9, 9, number)).save(data / f"{number}.png")
    kind = rng.choice(["caption", "jsonl", "csv", "toml", "picture"])
    odd = [
        "\0",
        "a" * 300_000,
        "\x1b[2J",
        "\u202e",
        "",
        " ",
        ",,,,",
        "👨‍👩‍👧" * 500,
        '"',
        "a,b\n" * 2000,
    ]
    odd += ["=cmd()", "../../etc/passwd", "{" * 3000, "[" * 3000, "9" * 400, "null", "1e999"]
    text = rng.choice(odd)
    if kind == "caption":
        raw = rng.choice([text.encode(), text.encode("utf-16"), rng.randbytes(500), b"\xff\xfe"])
        (data / "0.txt").write_bytes(raw)
        (data / "1.txt").write_text("a fox")
    elif kind == "jsonl":
        rows = [json.dumps({"file_name": rng.choice(["0.png", text]), "text": text}), text]
        rows += [json.dumps({"file_name": ["0.png"], "text": {"a": 1}}), "{" * 100]
        (data / "metadata.jsonl").write_text("\n".join(rng.sample(rows, 3)))
    elif kind == "csv":
        (data / "metadata.csv").write_text(f'file_name,text\n0.png,{text}\n"{text}",a\n1.png,b')
    elif kind == "toml":
        value = rng.choice([text, f'"{text}"', "[1, 2", "{a = 1}", "nan", "1e400", "9" * 400])
        key = rng.choice(["resolution", "num_repeats", "image_dir", "batch_size", text])
        lines = f"[[datasets]]\n{key} = {value}\n[[datasets.subsets]]\nimage_dir = 'pictures'\n"
        (folder / "data.toml").write_text(lines)
    else:
        flip(data / "0.png", rng)
    return kind


def open_data(folder: Path) -> None:
    table = folder / "data.toml"
    source = str(table if table.exists() else folder / "pictures")
    options = DataSettings(source=source, resolution=64)
    found = read_items(options)
    for item in found:
        full_caption(item)
    scan(found, options, threads=1)


@cache
def checkpoint() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sdcore-corpus-"))
    parts = {"model": {"a": torch.ones(4, 4)}, "optimizer": {"0.exp_avg": torch.ones(4)}}
    return save_checkpoint(folder, 3, parts, keep=1)


def damaged_checkpoint(folder: Path, rng: random.Random) -> str:
    path = folder / checkpoint().name
    shutil.copytree(checkpoint(), path)
    kind = rng.choice(["bytes", "gone", "manifest", "renamed", "more"])
    sound = (path / "manifest.json").read_bytes()
    if kind == "bytes":
        flip(one := rng.choice(sorted(path.iterdir())), rng)
        kind = f"bytes of {one.name}"
        kind += f": {changed(sound, one)}" if one.name == "manifest.json" else ""
    elif kind == "gone":
        rng.choice(sorted(path.iterdir())).unlink()
    elif kind == "manifest":
        choose(KINDS, rng)(path / "manifest.json", rng)
        kind = f"manifest: {changed(sound, path / 'manifest.json')}"
    elif kind == "renamed":
        path.rename(folder / "step-00000009")
    else:
        (path / "more.safetensors").write_bytes(rng.randbytes(50))
    return kind


def open_checkpoint(folder: Path) -> None:
    load_checkpoint(next(folder.iterdir()))


NOTE = "a note of who wrote it; nothing depends on it"
DEFAULT = "a setting that is not there has its default, as in diffusers and transformers"
CLIP_RULES = (
    "of this file vocabulary, merges and added tokens are read; the rest is CLIP's own rule"
)
ELSEWHERE = "not read: tokenizer_config.json lists the added and special tokens itself"
IN_RANGE = "a value of the setting's type and range: another model, which paints"
OF_MODELS = {
    **dict.fromkeys(("broken_text *", "not_there *", "code_asked_for *"), ""),
    "* of *: nothing": "the value is the same: 1.0 for 1",
    "* of *: _diffusers_version": NOTE,
    "* of *: transformers_version": NOTE,
    "value_gone of model_index.json: *": "a part that is [null, null], as it is where it is gone",
    "* of model_index.json: *": "a part that is [null, null], by whatever name",
    "* of tokenizer/added_tokens.json: *": ELSEWHERE,
    "* of tokenizer/special_tokens_map.json: *": ELSEWHERE,
    "* of tokenizer/tokenizer.json: model": "",
    "* of tokenizer/tokenizer.json: *": CLIP_RULES,
    "value_gone of *": DEFAULT,
    "* of tokenizer/tokenizer_config.json: model_max_length": "so many tokens, 3 to 65,536",
    "* of tokenizer/tokenizer_config.json: *": "no setting of CLIP's: programs keep notes there",
    "* of sampling.json: *": "a number that a job could say; every command and picture shows it",
    "* of words.json: *": "a list of words: a warning of words that are in none depends on it",
    "* of text_encoder/config.json: initializer_*": "how a training began; nothing depends on it",
    "* of text_encoder/config.json: dtype": "the weights say their type themselves",
    "* of text_encoder/config.json: architectures": NOTE,
    "* of vae/config.json: sample_size": "the size it was trained at: it decodes any",
    "* of unet/config.json: cross_attention_norm": "a null for each level is none",
    "* of unet/config.json: *": IN_RANGE,
    "* of vae/config.json: *": IN_RANGE,
    "* of text_encoder/config.json: *": IN_RANGE,
    "* of scheduler/scheduler_config.json: *": IN_RANGE,
}


READERS = (
    Reader("settings of models", 600, 8000, damaged_model, open_model, OF_MODELS),
    Reader(
        "tokenizers",
        150,
        2500,
        damaged_tokenizer,
        open_tokenizer,
        {
            "odd_value of model_max_length": "so many tokens, 3 to 65,536",
            "odd_value of nothing": "the value is the same: 1.0 for 1",
            "odd_value of *": "no setting of CLIP's: programs keep notes there",
        },
    ),
    Reader(
        "settings of training",
        300,
        4000,
        damaged_training,
        open_training,
        {
            "value of *": "a value of the setting's type and range",
            "text 'data: *": "short for data.source: a folder of that name",
            "bytes beside *": "a letter or digit of a value, within its type and range",
        },
    ),
    Reader(
        "data sets",
        150,
        2000,
        damaged_data,
        open_data,
        {
            "caption": "a caption is any text, in UTF-8 or UTF-16, tidied; it runs nothing",
            "csv": "every row names a picture that is there; its text is a caption, any text",
            "jsonl": "every row names a picture that is there; its text is a caption, any text",
            "toml": "a value of the option's type and range",
            "picture": "the scan's report names a picture that cannot be decoded",
        },
    ),
    Reader(
        "checkpoints of runs",
        100,
        1500,
        damaged_checkpoint,
        open_checkpoint,
        {
            "more": "a file that the manifest does not list is not read",
            **dict.fromkeys(("manifest: *files*", "manifest: step", "manifest: step, *"), ""),
            **dict.fromkeys(("manifest: *, step", "manifest: *, step, *"), ""),
            "manifest: nothing": "the value is the same: 3.0 for 3",
            "manifest: *": "a name that no manifest has; step and files alone are read",
        },
    ),
)
