"""Marks that nearly are one: read as the tool reads them, and said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdcore import TextToImage, apply_embeddings, read_embedding
from sdcore.prompt.dialects import DIALECTS, parse_prompt
from sdcore.prompt.near_marks import near_marks

NEAR = {
    "a (red:1,3) cat": ("plain", "a1111", "comfy"),
    "（红:1.2）": ("plain", "a1111", "comfy"),
    "a (red：1.2) cat": ("plain", "a1111", "comfy"),
    "(red;1.2)": ("plain", "a1111", "comfy"),
    "<lora x:1> a": ("a1111",),
    "a <lora:x:1": ("a1111",),
    "＜lora:x:1＞": ("a1111",),
    "[a:b:0,5]": ("a1111",),
    "［猫|狗］": ("a1111",),
    "a cat AND a dog:0,5": ("a1111",),
    "a cat ：1.2 AND a dog": ("a1111",),
    "a cat withLora(bob.n47-v1,0.75)": ("compel",),
    "a cat withlora(bob)": ("compel",),
    "(red)1,3": ("compel",),
    "（red）++ cat": ("compel",),
    "&lt;lora:x:1&gt; a": ("a1111",),
    "a lora:x:1>": ("a1111",),
    "{a cat} in snow": ("plain", "a1111", "comfy", "compel"),
    "1.2::a cat:: in snow": ("plain", "a1111", "comfy", "compel"),
    "a {cat|dog}": ("plain", "a1111", "comfy", "compel"),
    "a __animal__ in snow": ("plain", "a1111", "comfy", "compel"),
    "Embedding:x": ("plain", "a1111", "comfy", "compel"),
    "embedding :x": ("plain", "a1111", "comfy", "compel"),
    "embedding:x": ("plain", "a1111", "compel"),
}


@pytest.mark.parametrize("prompt", NEAR)
@pytest.mark.parametrize("dialect", ["plain", "a1111", "comfy", "compel"])
def test_they_are_noted_where_they_nearly_are_one(prompt: str, dialect: str) -> None:
    notes = parse_prompt(prompt, dialect).notes
    assert len(notes) == (dialect in NEAR[prompt]), notes
    assert all("read as text" in note for note in notes)


@pytest.mark.parametrize(
    "prompt",
    [
        "a (red:1.3) cat, (blue), [green], 16:9, in 3,000 pieces",
        "<lora:x:0.7> [a:b:0.5] [c|d] (a:.5) (b: 1.3 )",
        "a cat :1.2 AND a dog:.5",
        "a cat and a dog: 0,5",
        "withLora(x-1, 0.5) (red)1.3, word++ (a, b), c",
        "she asked: what? (at 10:30), by snake_case__or_so_ {}",
        "一只红色的狐狸，在雪地里（很冷）",
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_sound_marks_and_plain_text_are_not(prompt: str, dialect: str) -> None:
    assert near_marks(prompt, dialect.removesuffix("-nonorm")) == []


def test_a_prompt_of_many_is_short_and_quick() -> None:
    notes = near_marks("(a:1,3) (b:1,3) (c:1,3) (d:1,3) (e:1,3) (f:1,3)", "a1111")
    assert len(notes) == 5 and "2 more" in notes[-1]
    for text in (
        "(" * 19_000,
        "(a:" * 6_000,
        "embedding :" * 1_500,
        "<lora " * 3_000,
        "［" * 19_000,
    ):
        near_marks(text, "a1111")


def test_comfyui_takes_the_whole_name_of_a_file(sd_folder: Path, tmp_path: Path) -> None:
    pipe = TextToImage.from_pretrained(sd_folder)
    save_file({"emb_params": torch.randn(2, 32)}, tmp_path / "EasyNegative.safetensors")
    embedding = read_embedding(tmp_path / "EasyNegative.safetensors")
    taught = apply_embeddings(pipe, [embedding], dialect="comfy")
    ids = [
        taught.tokenizer(f"a embedding:EasyNegative{end} cat").ids.tolist()
        for end in ("", ".safetensors", ".pt")
    ]
    assert ids[0] == ids[1] == ids[2]
    with pytest.warns(UserWarning, match="'embedding:Other' is no learned word"):
        taught("a embedding:EasyNegative.safetensors embedding:Other", steps=1, dialect="comfy")
