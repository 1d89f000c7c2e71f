"""Textual inversion files of ours, as diffusers reads them: the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from sdcore import TextToImage, apply_embeddings, read_embedding, save_embedding
from tests.adapters.test_lora import random

TEXT = "a red <fox> on the tree"


def texts_of(pipe: TextToImage) -> list[torch.Tensor]:
    with torch.no_grad():
        return [encoder(reader(TEXT).ids).hidden_states[-1] for reader, encoder in pipe.readers]


def reference_text(tokenizer: Any, encoder: Any, theirs: Any) -> torch.Tensor:
    prompt = theirs.maybe_convert_prompt(TEXT, tokenizer)  # the word to its tokens
    ids = tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("spelling", ["web_ui", "diffusers"])
def test_diffusers_loads_a_word(spelling: str, sd_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    save_embedding(path, "<fox>", {"text_encoder": random(3, 32)}, spelling=spelling)
    ours = apply_embeddings(TextToImage.from_pretrained(sd_folder), [read_embedding(path)])
    theirs: Any = StableDiffusionPipeline.from_pretrained(sd_folder)
    plain = texts_of(TextToImage.from_pretrained(sd_folder))[0]
    theirs.load_textual_inversion(path, token="<fox>" if spelling == "web_ui" else None)
    expected = reference_text(theirs.tokenizer, theirs.text_encoder, theirs)
    assert (texts_of(ours)[0] - plain).abs().mean() > 0.01
    torch.testing.assert_close(texts_of(ours)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spelling", ["web_ui", "diffusers"])
def test_diffusers_loads_both_halves_for_sdxl(
    spelling: str, sdxl_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fox.safetensors"
    vectors = {"text_encoder": random(2, 32), "text_encoder_2": random(2, 40)}
    files = save_embedding(path, "<fox>", vectors, spelling=spelling)
    theirs: Any = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    halves: list[Any] = list(files)
    if spelling == "web_ui":  # as its documentation says for such files
        halves = [load_file(path)[key] for key in ("clip_l", "clip_g")]
    save_embedding(tmp_path / "both.safetensors", "<fox>", vectors)
    read = read_embedding(tmp_path / "both.safetensors")
    ours = texts_of(apply_embeddings(TextToImage.from_pretrained(sdxl_folder), [read]))
    readers = (
        (theirs.tokenizer, theirs.text_encoder),
        (theirs.tokenizer_2, theirs.text_encoder_2),
    )
    for half, (tokenizer, encoder), got in zip(halves, readers, ours, strict=True):
        theirs.load_textual_inversion(
            half, token="<fox>", text_encoder=encoder, tokenizer=tokenizer
        )
        expected = reference_text(tokenizer, encoder, theirs)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
