"""Learned words, written as the files that other programs read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sdcore import TextToImage, apply_embeddings, read_embedding, save_embedding
from sdcore.errors import NonFiniteError, UsageError
from tests.adapters.test_lora import random


def pair(count: int = 2) -> dict[str, Tensor]:
    return {"text_encoder": random(count, 32), "text_encoder_2": random(count, 40)}


def test_one_text_encoder_for_the_web_ui(sd_folder: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "my-fox.safetensors", random(3, 32)
    assert save_embedding(path, "<fox>", {"text_encoder": rows}, metadata={"a": "b"}) == (path,)
    assert list(load_file(path)) == ["emb_params"]
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"a": "b", "name": "<fox>", "format": "pt"}
    read = read_embedding(path)
    assert read.token == "<fox>" and torch.equal(read.vectors[""], rows)
    taught = apply_embeddings(TextToImage.from_pretrained(sd_folder), [read])
    ids = taught.tokenizer("a <fox>").ids
    table = taught.text_encoder.text_model.embeddings.token_embedding
    assert torch.equal(table(ids)[0, 2:5], rows)


def test_both_text_encoders_of_sdxl_for_the_web_ui(sdxl_folder: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "fox.safetensors", pair()
    save_embedding(path, "fox", rows)
    assert set(load_file(path)) == {"clip_l", "clip_g"}
    read = read_embedding(path, token="<fox>")
    assert torch.equal(read.vectors["clip_l"], rows["text_encoder"])
    assert torch.equal(read.vectors["clip_g"], rows["text_encoder_2"])
    assert apply_embeddings(TextToImage.from_pretrained(sdxl_folder), [read]).embeddings


def test_diffusers_spelling_has_the_token_as_its_key(tmp_path: Path) -> None:
    rows = pair()
    files = save_embedding(tmp_path / "fox.safetensors", "<fox>", rows, spelling="diffusers")
    assert [file.name for file in files] == ["fox.safetensors", "fox_2.safetensors"]
    for file, tensor in zip(files, rows.values(), strict=True):
        assert torch.equal(load_file(file)["<fox>"], tensor)
        read = read_embedding(file)
        assert read.token == "<fox>" and torch.equal(read.vectors[""], tensor)


def test_vectors_are_written_as_float32(tmp_path: Path) -> None:
    path, rows = tmp_path / "fox.safetensors", random(1, 32).to(torch.bfloat16)
    save_embedding(path, "fox", {"text_encoder": rows})
    assert torch.equal(load_file(path)["emb_params"], rows.float())


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path, one = tmp_path / "fox.safetensors", {"text_encoder": random(1, 32)}
    for token in ("", " fox", "a\nb", "x" * 201):
        with pytest.raises(UsageError, match="cannot be saved"):
            save_embedding(path, token, one)
    uneven = {"text_encoder": random(1, 32), "text_encoder_2": random(2, 40)}
    for vectors in ({}, {"unet": random(1, 32)}, {"text_encoder": random(32)}, uneven):
        with pytest.raises(UsageError, match="cannot be saved"):
            save_embedding(path, "fox", vectors)
    with pytest.raises(UsageError, match="cannot be saved"):
        save_embedding(tmp_path / "fox.pt", "fox", one)
    with pytest.raises(UsageError, match="cannot be saved"):
        save_embedding(path, "fox", one, spelling="kohya")
    with pytest.raises(NonFiniteError, match="cannot be saved"):
        save_embedding(path, "fox", {"text_encoder": torch.full((1, 32), torch.nan)})
    assert not list(tmp_path.iterdir())
