"""Time and memory of every reader of foreign text grow with its length, and no faster.

Twelve generators of text, each at two lengths of which the second is ten times the first. What is
compared is processor time with itself, never with a clock: with ten times the text a reader may
take `SLACK` times ten times as long, where one that grows with the square would take a hundred
times. Times too short to be compared count as equal; the long texts leave them no room.
"""

from __future__ import annotations

import json
import random
import time
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sdcore.app.model_folders import find_folders
from sdcore.control.alignment import align_tokens
from sdcore.errors import SdcoreError
from sdcore.files.tomlfile import read_toml
from sdcore.metadata.comfy import recipe_of_graph
from sdcore.metadata.invoke import recipe_of_invoke
from sdcore.metadata.other_tools import recipe_of_easy, recipe_of_novelai
from sdcore.metadata.png import recipe_of_parameters_text
from sdcore.prompt.dialects import parse_prompt
from sdcore.prompt.explain import explain_prompt
from sdcore.prompt.text import Steps
from sdcore.prompt.tokens import read_tokens
from sdcore.text.known_words import KnownWords, describe_unknown
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.data.texts import decode, tidy
from tests.tiny import vocabulary

SLACK, FLOOR = 5, 0.03  # seconds of processor time that are too short to be compared
BYTES_A_LETTER = 8000
DIALECTS = ("plain", "a1111", "comfy", "compel")
MARKS = (
    "(a:1.2)",
    "[a:b:0.4]",
    "[a|b]",
    "<lora:x:1>",
    " AND ",
    " BREAK ",
    "((",
    "))",
    "a+ ",
    "a, ",
)
TOKENIZER = Tokenizer.from_vocab(*vocabulary(), max_length=77, pad_token="!")
KNOWN = KnownWords.of(["red apple", "fox", "狐狸", "苹果"], ["a", "on the left of", "的左边"])


def of_signs(signs: tuple[str, ...], length: int) -> str:
    rng = random.Random(7)
    return "".join(rng.choice(signs) for _ in range(length))[:length]


TEXTS: dict[str, Callable[[int], str]] = {
    "spaces": lambda n: " " * n,
    "letters": lambda n: "a" * n,
    "brackets": lambda n: "(" * (n // 3) + "[" * (n // 3) + ")" * (n // 3),
    "colons": lambda n: ":" * n,
    "commas": lambda n: "," * n,
    "digits": lambda n: "1" * n,
    "cjk": lambda n: "一" * n,
    "emoji": lambda n: "🦊" * n,
    "backslashes": lambda n: "\\" * n,
    "pipes": lambda n: "|" * n,
    "mixed": partial(of_signs, tuple(' a b()[]:,1|\\一🦊<>"{}.+-\n')),
    "marks": partial(of_signs, MARKS),
}


# --- the readers -------------------------------------------------------------------------------


def parse(dialect: str, text: str) -> None:
    for part in parse_prompt(text, dialect).parts:
        for clauses in part.timeline(Steps(20)).items:
            _ = [f.text.text for clause in clauses for p in clause.passages for f in p]


def explain(dialect: str, text: str) -> None:
    assert str(explain_prompt(text, TOKENIZER, dialect, steps=4))


def settings(before: str, behind: str, text: str) -> None:
    line = f"Steps: 20, Sampler: Euler, Seed: 1, Size: 64x64, {before}{text}{behind}"
    recipe_of_parameters_text(f"a fox\nNegative prompt: a cat\n{line}")


def prompt_of_settings(text: str) -> None:
    recipe_of_parameters_text(
        f"{text}\nNegative prompt: {text}\nSteps: 20, Sampler: Euler, Seed: 1"
    )


def graph(text: str) -> None:
    sampler = {"steps": 2, "cfg": 3, "seed": 1, "sampler_name": text, "scheduler": text}
    links = {
        "positive": ["2", 0],
        "negative": ["2", 0],
        "model": ["3", 0],
        "latent_image": ["4", 0],
    }
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("KSampler", {**sampler, **links}),
        "2": ("CLIPTextEncode", {"text": text}),
        "3": (text, {"ckpt_name": text}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": text}),
        "5": ("SaveImage", {"images": ["1", 0]}),
    }
    recipe_of_graph(json.dumps({n: {"class_type": k, "inputs": i} for n, (k, i) in nodes.items()}))


def invoke(text: str) -> None:
    named = {"positive_prompt": text, "scheduler": text, "model": {"name": text}, text[:99]: 1}
    recipe_of_invoke({"invokeai_metadata": json.dumps(named)})


def dream(text: str) -> None:
    recipe_of_invoke({"Dream": f'"{text}" {text}'})


def novelai(text: str) -> None:
    said = {"prompt": text, "sampler": text, "noise_schedule": text, "uc": text}
    recipe_of_novelai({"Comment": json.dumps(said), "Source": text})


def easy(text: str) -> None:
    recipe_of_easy({"Prompt": text, "Sampler": text, "LoRA model": text, "Seed": text})


def swarm(text: str) -> None:
    said = {"prompt": text, "sampler": text, "loras": text, "loraweights": text}
    recipe_of_parameters_text(json.dumps({"sui_image_params": said}))


def fooocus(text: str) -> None:
    said = {"base_model": text, "prompt": text, "resolution": text, "styles": text, "loras": text}
    recipe_of_parameters_text(json.dumps(said))


def known_words(text: str) -> None:
    describe_unknown(KNOWN, [text, f"fox {text} 苹果"])


def alignment(text: str) -> None:
    prompts = [f"a fox {text}", f"a cat {text}"]
    align_tokens(read_tokens(prompts, TOKENIZER, "comfy"), 0, 1)


def toml(folder: Path, text: str) -> None:
    path = folder / "sdcore.toml"
    for written in (text, f"loras = [{text}", f'loras = "{text}', f"[{text}"):
        path.write_text(written, "utf-8")
        for read in (read_toml, partial(find_folders, [])):
            with suppress(SdcoreError):
                read(path)


def dotted_toml(folder: Path, text: str) -> None:
    toml(folder, f"{'a.' * (len(text) // 2)}a = 1")


def caption(text: str) -> None:
    tidy(decode(text.encode("utf-8", "replace"))[0])


READERS: dict[str, Callable[[str], None]] = {
    **{f"parse {dialect}": partial(parse, dialect) for dialect in DIALECTS},
    **{f"explain {dialect}": partial(explain, dialect) for dialect in DIALECTS},
    "settings": partial(settings, "", ""),
    "value": partial(settings, 'Lora hashes: "', '"'),
    "JSON value": partial(settings, 'Hashes: {"model": "', '"}'),
    "sampler": partial(settings, "Sampler: ", ", Schedule type: Karras"),
    **{
        read.__name__: read
        for read in (
            *(prompt_of_settings, graph, invoke, dream, novelai, easy, swarm, fooocus),
            *(known_words, alignment, caption),
        )
    },
}


# --- the test ----------------------------------------------------------------------------------


def seconds(read: Callable[[str], None], text: str) -> float:
    """Processor time of this thread; what a text is refused with is an error of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.thread_time()
        with suppress(SdcoreError, ValueError):
            read(text)
        return time.thread_time() - start


def check(read: Callable[[str], None], name: str, length: int) -> None:
    """Of times that do not fit, the best of three counts."""
    small, large = TEXTS[name](length), TEXTS[name](10 * length)
    before, after = seconds(read, small), seconds(read, large)
    for _ in range(2):
        if after <= FLOOR + SLACK * 10 * before:
            return
        before, after = max(before, seconds(read, small)), min(after, seconds(read, large))
    assert after <= FLOOR + SLACK * 10 * before, (
        f"{name}: {before * 1e3:.1f} ms for {length} letters, {after * 1e3:.1f} ms for ten times"
    )


def reader_of(name: str, folder: Path) -> Callable[[str], None]:
    in_folder = {"toml": toml, "dotted_toml": dotted_toml}
    return partial(in_folder[name], folder) if name in in_folder else READERS[name]


NAMES = [*READERS, "toml", "dotted_toml"]
# What reads token by token takes the longest; two kinds of text are enough for every commit.
FEW = ("letters", "brackets")


@pytest.mark.parametrize("name", NAMES)
def test_time_of_short_texts(tmp_path: Path, name: str) -> None:
    for kind in FEW if name.startswith(("explain", "alignment")) else TEXTS:
        check(reader_of(name, tmp_path), kind, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_time_of_long_texts(tmp_path: Path, name: str) -> None:
    for kind in TEXTS:
        check(reader_of(name, tmp_path), kind, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_memory(tmp_path: Path, name: str) -> None:
    for kind, make in TEXTS.items():
        text = make(20_000)
        tracemalloc.start()
        seconds(reader_of(name, tmp_path), text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < BYTES_A_LETTER * len(text), f"{kind}: {peak >> 20} MiB"
