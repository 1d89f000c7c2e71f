"""Textual inversion: learned vectors in place of words, against diffusers' loader, and removed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from sdcore import TextToImage
from sdcore.adapters.textual_inversion import apply_embeddings, read_embedding
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.errors import FileError, UsageError

WIDTH, WIDTH_2 = 32, 40  # of the tiny models' text encoders


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sdxl_folder)


def vectors(n: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed + n))


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


@torch.no_grad()
def text_by_hand(pipe: TextToImage, before: str, rows: Tensor, after: str) -> Tensor:
    """The encoder's answer with the vectors written into its input where the word would be."""
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    ids = [piece.id for piece in tokenizer.pieces(before)] + [0] * len(rows)
    start = 1 + len(ids) - len(rows)
    ids += [piece.id for piece in tokenizer.pieces(after)]
    row = torch.tensor([tokenizer.row(ids)])
    x = encoder.text_model.embeddings(row)
    positions = encoder.text_model.embeddings.position_embedding.weight
    x[0, start : start + len(rows)] = rows + positions[start : start + len(rows)]
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    return encoder.text_model.final_layer_norm(encoder.text_model.encoder(x, mask)[-1])


@torch.no_grad()
def text_of(pipe: TextToImage, prompt: str) -> Tensor:
    return pipe.text_encoder(pipe.tokenizer(prompt).ids).last_hidden_state


# --- the files and what they do ----------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("tensors", "metadata", "token"),
    [
        (lambda rows: {"<my-fox>": rows}, None, "<my-fox>"),
        (lambda rows: {"<my-fox>": rows[0] if len(rows) == 1 else rows}, None, "<my-fox>"),
        (lambda rows: {"emb_params": rows}, {"name": "zwx style"}, "zwx style"),
        (lambda rows: {"emb_params": rows}, None, "file_name"),
        (lambda rows: {"*": rows}, None, "file_name"),
    ],
)
def test_the_word_is_the_vectors(sd, tmp_path, n, tensors, metadata, token):
    rows = vectors(n)
    embedding = read_embedding(write(tmp_path / "file_name.safetensors", tensors(rows), metadata))
    assert embedding.token == token
    expected = text_by_hand(sd, "a photo of", rows, "on a tree")
    plain = text_of(sd, f"a photo of {token} on a tree")
    with apply_embeddings(sd, [embedding]) as applied:
        assert applied.words == (token,)
        torch.testing.assert_close(text_of(sd, f"a photo of {token} on a tree"), expected)
        tokens = sd.tokenizer(f"a photo of {token.upper()}, on a tree")
        word = tokens.spans[0][3]
        assert word.word == token.upper() and list(word.positions) == list(range(4, 4 + n))
        assert [span.word for span in tokens.spans[0]][4:] == [",", "on", "a", "tree"]
        assert sd.tokenizer.decode(tokens.ids[0]) == f"a photo of {token} , on a tree"
    assert torch.equal(text_of(sd, f"a photo of {token} on a tree"), plain)


@pytest.mark.parametrize("n", [1, 4])
def test_same_text_as_diffusers(sd, sd_folder, tmp_path, n):
    theirs = StableDiffusionPipeline.from_pretrained(sd_folder)
    path = write(tmp_path / "a.safetensors", {"<my-fox>": vectors(n)})
    other = write(tmp_path / "b.safetensors", {"zwx": vectors(n, seed=9)})
    theirs.load_textual_inversion([str(path), str(other)])
    prompts = ["a photo of <my-fox> and zwx", "zwx<my-fox>", "a <my-fox>s  zwxfox", "a fox", ""]
    if n == 1:  # diffusers finds words in any case, but the further vectors of lower case alone
        prompts.append("A <MY-FOX>")
    with apply_embeddings(sd, [read_embedding(path), read_embedding(other)]), torch.no_grad():
        for prompt in prompts:
            expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
            torch.testing.assert_close(text_of(sd, prompt), expected, rtol=1e-5, atol=1e-5)


def test_both_text_encoders_of_sdxl(sdxl, tmp_path):
    rows = {"clip_l": vectors(2), "clip_g": vectors(2, WIDTH_2)}
    embedding = read_embedding(write(tmp_path / "fox_xl.safetensors", rows))
    assert embedding.token == "fox_xl"
    with apply_embeddings(sdxl, [embedding]):
        for tokenizer, encoder, key in (
            (sdxl.tokenizer, sdxl.text_encoder, "clip_l"),
            (sdxl.tokenizer_2, sdxl.text_encoder_2, "clip_g"),
        ):
            ids = tokenizer("a fox_xl").ids
            table = encoder.text_model.embeddings.token_embedding
            assert torch.equal(table(ids)[0, 2:4], rows[key])
        with_it = sdxl("a fox_xl", steps=1, seed=1).latents
    assert not torch.equal(sdxl("a fox_xl", steps=1, seed=1).latents, with_it)


def test_the_pooled_text_is_read_at_the_end_token(sdxl_folder, tmp_path):
    """Published configs say eos_token_id = 2, by which the highest id ends the text."""
    pipe = TextToImage.from_pretrained(sdxl_folder)
    encoder = pipe.text_encoder_2
    assert encoder is not None and pipe.tokenizer_2 is not None
    rows = {"clip_l": vectors(2), "clip_g": vectors(2, WIDTH_2)}
    with apply_embeddings(pipe, [read_embedding(write(tmp_path / "xl.safetensors", rows))]):
        ids = pipe.tokenizer_2("xl fox").ids
        expected = encoder(ids).pooled
        object.__setattr__(encoder.config, "eos_token_id", 2)
        assert torch.equal(encoder(ids).pooled, expected)


def test_dialects_call_a_file_by_its_name(sd, tmp_path):
    path = write(tmp_path / "bad-hands.safetensors", {"<my-fox>": vectors(2)})
    embedding = read_embedding(path)
    expected = text_by_hand(sd, "a", vectors(2), "photo")
    calls = {"plain": "<my-fox>", "a1111": "bad-hands", "comfy": "embedding:bad-hands"}
    for dialect, call in calls.items():
        with apply_embeddings(sd, [embedding], dialect=dialect) as applied:
            torch.testing.assert_close(text_of(sd, f"a {call} photo"), expected)
            assert applied.words == (call,)
            others = [other for other in calls.values() if call not in other]
            assert applied.unused(*others) == (call,)
            assert applied.unused("a", f"({call}:1.2)") == ()
            inside = applied.unused(f"x{call}x")  # part of a longer word
            assert inside == (() if dialect == "plain" else (call,))


def test_what_a_long_prompt_cuts_is_a_whole_word(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(4)}))
    with apply_embeddings(sd, [embedding]) as applied, pytest.warns(UserWarning, match="zwx"):
        prompt = "fox " * 73 + "zwx tree"
        assert sd.tokenizer(prompt).cut == ("zwx tree",)
        assert applied.unused(prompt) == ()


def test_heatmaps_know_a_learned_word(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "x.safetensors", {"<my-fox>": vectors(3)}))
    prompt = "a <my-fox> on a tree"
    with apply_embeddings(sd, [embedding]):
        maps = WordHeatmaps(sd.tokenizer(prompt))
        sd(prompt, seed=1, steps=1, width=64, height=64, control=maps)
        spans = {span.word: list(span.positions) for span in maps.spans()}
    assert spans["<my-fox>"] == [2, 3, 4] and spans["on"] == [5]
    assert maps.of("<my-fox>").std() > 0


def test_half_precision(sd_folder, tmp_path):
    pipe = TextToImage.from_pretrained(sd_folder, dtype=torch.float16)
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(2)}))
    with apply_embeddings(pipe, [embedding]):
        assert text_of(pipe, "a zwx").dtype == torch.float16
        pipe.to(torch.float32)
        assert text_of(pipe, "a zwx").dtype == torch.float32


# --- and afterwards ----------------------------------------------------------------------------


def test_removal_is_exact(sd, tmp_path):
    tokenizer, table = sd.tokenizer, sd.text_encoder.text_model.embeddings.token_embedding
    before = {key: value.clone() for key, value in sd.text_encoder.state_dict().items()}
    size = len(tokenizer)
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(2)}))
    applied = apply_embeddings(sd, [embedding])
    text_of(sd, "a zwx")
    with pytest.raises(UsageError, match="give all embeddings in one call"):
        apply_embeddings(sd, [embedding])
    applied.remove()
    applied.remove()
    assert sd.tokenizer is tokenizer and len(tokenizer) == size
    assert isinstance(table, nn.Embedding)
    assert sd.text_encoder.text_model.embeddings.token_embedding is table
    after = sd.text_encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tokenizer("a zwx").spans[0]) == 2


def test_another_tokenizer_put_there_is_not_overwritten(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(2)}))
    applied = apply_embeddings(sd, [embedding])
    mine, sd.tokenizer = sd.tokenizer, "another"
    with pytest.raises(UsageError, match="another one now"):
        applied.remove()
    sd.tokenizer = mine
    applied.remove()


def test_saving_with_embeddings_is_refused(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(2)}))
    with apply_embeddings(sd, [embedding]):
        for part in (sd.tokenizer, sd.text_encoder):
            with pytest.raises(UsageError, match="cannot be saved while embeddings"):
                part.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["cat", "Fox", "<|endoftext|>", "!", "a"])
def test_a_word_with_a_meaning_is_taken_unless_renamed(sd, tmp_path, token):
    path = write(tmp_path / "x.safetensors", {token: vectors(1)})
    tokenizer = sd.tokenizer
    with pytest.raises(UsageError, match=r"x\.safetensors.*is taken"):
        apply_embeddings(sd, [read_embedding(path)])
    assert sd.tokenizer is tokenizer
    with apply_embeddings(sd, [read_embedding(path, token="<other>")]) as applied:
        assert applied.words == ("<other>",)


def test_two_of_one_name(sd, tmp_path):
    first = read_embedding(write(tmp_path / "x.safetensors", {"<a>": vectors(1)}))
    second = read_embedding(write(tmp_path / "y.safetensors", {"<A>": vectors(1)}))
    with pytest.raises(UsageError, match="another embedding is called '<a>'"):
        apply_embeddings(sd, [first, second])


def test_other_families_are_named(sd, sdxl, tmp_path):
    one = {width: {"emb_params": vectors(1, width)} for width in (768, 1024, WIDTH)}
    pair = {"clip_l": vectors(1), "clip_g": vectors(1, WIDTH_2)}
    real = {"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}
    for pipe, tensors, message in (
        (sd, one[768], "for SD 1.x, 768 wide; this model has one text encoder"),
        (sd, one[1024], "for SD 2.x, 1024 wide"),
        (sd, pair, "for SDXL, clip_l 32 and clip_g 40 wide; this model has one text encoder"),
        (sdxl, one[768], "for SD 1.x, 768 wide; this model has text_encoder and text_encoder_2"),
        (sdxl, one[WIDTH], "another model, 32 wide"),
        (sdxl, real, "clip_l 768 and clip_g 1280"),
        (sdxl, {"clip_l": vectors(1)}, "clip_l 32 wide"),
    ):
        embedding = read_embedding(write(tmp_path / "x.safetensors", tensors), token="<x>")
        tokenizer = pipe.tokenizer
        with pytest.raises(FileError, match=r"made for another model") as caught:
            apply_embeddings(pipe, [embedding])
        assert message in caught.value.why
        assert pipe.tokenizer is tokenizer


def test_more_vectors_than_a_prompt_has_room_for(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(76)}))
    with pytest.raises(UsageError, match="76 vectors, a prompt has room for 75"):
        apply_embeddings(sd, [embedding])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no single textual inversion"),
        ({"<a>": vectors(1), "<b>": vectors(1)}, "no single textual inversion"),
        ({"clip_l": vectors(1), "<b>": vectors(1)}, "no single textual inversion"),
        ({"clip_l": vectors(1), "clip_g": vectors(2, WIDTH_2)}, "number of vectors"),
        ({"<a>": torch.ones(1, 1, 8)}, "holds no vectors"),
        ({"<a>": torch.tensor(1.0)}, "holds no vectors"),
        ({"<a>": torch.zeros(0, 8)}, "holds no vectors"),
        ({"<a>": torch.ones(1, 8, dtype=torch.int64)}, "holds no vectors"),
        ({"<a>": torch.full((1, 8), torch.nan)}, "not finite"),
        ({" ": vectors(1)}, "cannot be called"),
        ({"a\nb": vectors(1)}, "cannot be called"),
        ({"x" * 300: vectors(1)}, "cannot be called"),
    ],
)
def test_bad_files(tmp_path, tensors, message):
    path = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(FileError, match=message) as caught:
        read_embedding(path)
    assert "bad.safetensors" in caught.value.what


def test_missing_files_and_pickles(tmp_path):
    with pytest.raises(FileError, match="missing"):
        read_embedding(tmp_path / "none.safetensors")
    torch.save({"string_to_param": {"*": vectors(1)}}, tmp_path / "old.pt")
    with pytest.raises(FileError, match="pickle checkpoint"):
        read_embedding(tmp_path / "old.pt")
