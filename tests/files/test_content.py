"""What a file is that was taken for weights, and what to do with it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from sdcore.adapters.lora_file import read_lora
from sdcore.adapters.textual_inversion import read_embedding
from sdcore.checkpoint.inspection import inspect
from sdcore.checkpoint.single_file import read_single_file
from sdcore.errors import FileError
from sdcore.files.content import what_it_is


def zipped(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return data.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 2132625894\n"
# content -> what is said of it, and what to do
FILES: dict[str, tuple[bytes, str, str]] = {
    "page": (b"\n  <!doctype html><html lang=en><title>Sign in", "a web page", "/resolve/"),
    "page with a mark": (b"\xef\xbb\xbf<html><head>", "a web page", "log in"),
    "page, upper case": (b"<HTML>\r\n<BODY>404", "a web page", "log in"),
    "page, cut in a letter": (b"<!doctype html>" + "\u732b".encode() * 200, "a web page", "log in"),
    "pointer": (LFS, "a git-lfs pointer", "git lfs pull"),
    "refusal": (b"Access to model x is restricted.", "begins with 'Access to model x", "licence"),
    "answer": (b'{"error": "Unauthorized"}', "a server's answer", "log in"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML text", "log in"),
    "shards": (
        json.dumps({"metadata": {"total_size": 9}, "weight_map": {}}).encode(),
        "the list of a model's shards",
        "Name the folder",
    ),
    "settings": (b'{"_class_name": "UNet2DConditionModel"}', "the settings of a model", "folder"),
    "json": (b"[1, 2, 3]", "a JSON text", "the model itself"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(30), "a picture", "the file of the model"),
    "archive": (zipped("model/x.safetensors"), "such as 'model/x.safetensors'", "Unpack it"),
    "packed": (b"\x1f\x8b\x08" + bytes(30), "a packed archive", "Unpack it"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(30), "a GGUF file", "as safetensors"),
    "zeros": (bytes(300), "a download that was never filled", "Download it again"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_people_give_in_place_of_weights_is_named(name: str, tmp_path: Path) -> None:
    content, said, hint = FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    readers = [read_lora, read_embedding, *([read_single_file] if name != "gguf" else [])]
    for read in readers:
        with pytest.raises(FileError) as caught:
            read(path)
        assert said in caught.value.why and hint in caught.value.hint
    if name not in ("zeros", "gguf"):
        report = inspect(path)
        assert report["kind"] in caught.value.why and report["note"] == caught.value.hint


def test_what_torch_saved_is_converted(tmp_path: Path) -> None:
    for old_form in (True, False):
        path = tmp_path / f"{old_form}.safetensors"
        torch.save(
            {"a": torch.ones(2)}, path.open("wb"), _use_new_zipfile_serialization=not old_form
        )
        found = what_it_is(path)
        assert found is not None and found.is_pickle
        with pytest.raises(FileError, match="sdcore convert"):
            read_lora(path)


def test_sound_weights_are_nothing_else(sd_folder: Path) -> None:
    weights = sd_folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert what_it_is(weights) is None
