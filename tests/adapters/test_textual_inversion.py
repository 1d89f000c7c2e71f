"""Textual inversion: learned vectors in place of words, against diffusers' loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from sdcore import TextToImage, apply_embeddings, read_embedding, unused_words
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.errors import FileError, UsageError
from sdcore.files.hashes import file_hash

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
        (lambda rows: {"emb_params": rows, "step": torch.tensor(500)}, None, "file_name"),
        (lambda rows: {"*": rows}, None, "file_name"),
    ],
)
def test_the_word_is_the_vectors(sd, tmp_path, n, tensors, metadata, token):
    rows = vectors(n)
    embedding = read_embedding(write(tmp_path / "file_name.safetensors", tensors(rows), metadata))
    assert embedding.token == token
    expected = text_by_hand(sd, "a photo of", rows, "on a tree")
    plain = text_of(sd, f"a photo of {token} on a tree")
    taught = apply_embeddings(sd, [embedding])
    (known,) = taught.embeddings
    assert known.word == token and known.name == "file_name" and not sd.embeddings
    assert known.hash == file_hash(embedding.path) == embedding.hash
    torch.testing.assert_close(text_of(taught, f"a photo of {token} on a tree"), expected)
    tokens = taught.tokenizer(f"a photo of {token.upper()}, on a tree")
    word = tokens.spans[0][3]
    assert word.word == token.upper() and list(word.positions) == list(range(4, 4 + n))
    assert [span.word for span in tokens.spans[0]][4:] == [",", "on", "a", "tree"]
    assert taught.tokenizer.decode(tokens.ids[0]) == f"a photo of {token} , on a tree"
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
    together = apply_embeddings(sd, [read_embedding(path), read_embedding(other)])
    first = apply_embeddings(sd, [read_embedding(path)])
    for taught in (together, apply_embeddings(first, [read_embedding(other)])):
        assert [known.word for known in taught.embeddings] == ["<my-fox>", "zwx"]
        for prompt in prompts:
            with torch.no_grad():
                expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
            torch.testing.assert_close(text_of(taught, prompt), expected, rtol=1e-5, atol=1e-5)
    assert len(first.tokenizer("zwx").spans[0]) == 1 and unused_words(first, "zwx") == ("<my-fox>",)


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_both_text_encoders_of_sdxl(sdxl, tmp_path, names):
    rows = {"clip_l": vectors(2), "clip_g": vectors(2, WIDTH_2)}
    named = dict(zip(names, rows.values(), strict=True))
    embedding = read_embedding(write(tmp_path / "fox_xl.safetensors", named))
    assert embedding.token == "fox_xl"
    taught = apply_embeddings(sdxl, [embedding])
    for (tokenizer, encoder), key in zip(taught.readers, ("clip_l", "clip_g"), strict=True):
        ids = tokenizer("a fox_xl").ids
        table = encoder.text_model.embeddings.token_embedding
        assert torch.equal(table(ids)[0, 2:4], rows[key])
    with_it = taught("a fox_xl", steps=1, seed=1).latents
    assert not torch.equal(sdxl("a fox_xl", steps=1, seed=1).latents, with_it)


def test_the_pooled_text_is_read_at_the_end_token(sdxl_folder, tmp_path):
    """Published configs say eos_token_id = 2, by which the highest id ends the text."""
    rows = {"clip_l": vectors(2), "clip_g": vectors(2, WIDTH_2)}
    embedding = read_embedding(write(tmp_path / "xl.safetensors", rows))
    pipe = apply_embeddings(TextToImage.from_pretrained(sdxl_folder), [embedding])
    tokenizer, encoder = pipe.readers[1]
    ids = tokenizer("xl fox").ids
    expected = encoder(ids).pooled
    object.__setattr__(encoder.config, "eos_token_id", 2)
    assert torch.equal(encoder(ids).pooled, expected)


def test_dialects_call_a_file_by_its_name(sd, tmp_path):
    path = write(tmp_path / "bad-hands.safetensors", {"<my-fox>": vectors(2)})
    embedding = read_embedding(path)
    expected = text_by_hand(sd, "a", vectors(2), "photo")
    calls = {"plain": "<my-fox>", "a1111": "bad-hands", "comfy": "embedding:bad-hands"}
    for dialect, call in calls.items():
        taught = apply_embeddings(sd, [embedding], dialect=dialect)
        torch.testing.assert_close(text_of(taught, f"a {call} photo"), expected)
        assert taught.embeddings[0].word == call
        others = [other for other in calls.values() if call not in other]
        assert unused_words(taught, *others) == (call,)
        assert unused_words(taught, "a", f"({call}:1.2)") == ()
        inside = unused_words(taught, f"x{call}x")  # part of a longer word
        assert inside == (() if dialect == "plain" else (call,))
    assert unused_words(sd, "a") == ()


def test_what_a_long_prompt_cuts_is_a_whole_word(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(4)}))
    taught, prompt = apply_embeddings(sd, [embedding]), "fox " * 73 + "zwx tree"
    with pytest.warns(UserWarning, match="zwx"):
        assert taught.tokenizer(prompt).cut == ("zwx tree",)
    assert unused_words(taught, prompt) == ()


def test_heatmaps_know_a_learned_word(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "x.safetensors", {"<my-fox>": vectors(3)}))
    prompt = "a <my-fox> on a tree"
    taught = apply_embeddings(sd, [embedding])
    maps = WordHeatmaps(taught.tokenizer(prompt))
    taught(prompt, seed=1, steps=1, width=64, height=64, control=maps)
    spans = {span.word: list(span.positions) for span in maps.spans()}
    assert spans["<my-fox>"] == [2, 3, 4] and spans["on"] == [5]
    assert maps.of("<my-fox>").std() > 0


def test_half_precision(sd_folder, tmp_path):
    pipe = TextToImage.from_pretrained(sd_folder, dtype=torch.float16)
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(2)}))
    taught = apply_embeddings(pipe, [embedding])
    assert text_of(taught, "a zwx").dtype == torch.float16
    taught.to(torch.float32)
    assert text_of(taught, "a zwx").dtype == torch.float32
    assert text_of(pipe, "a zwx").dtype == torch.float16


def test_the_model_itself_is_not_touched(sd, tmp_path):
    known, size = dict(vars(sd)), len(sd.tokenizer)
    before = {key: value.clone() for key, value in sd.text_encoder.state_dict().items()}
    table = sd.text_encoder.text_model.embeddings.token_embedding
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(2)}))
    text_of(apply_embeddings(sd, [embedding]), "a zwx")
    assert vars(sd) == known and len(sd.tokenizer) == size
    assert sd.text_encoder.text_model.embeddings.token_embedding is table
    after = sd.text_encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert len(sd.tokenizer("a zwx").spans[0]) == 2


def test_saving_with_embeddings_is_refused(sd, tmp_path):
    embedding = read_embedding(write(tmp_path / "zwx.safetensors", {"emb_params": vectors(2)}))
    taught = apply_embeddings(sd, [embedding])
    for part in (taught.tokenizer, taught.text_encoder):
        with pytest.raises(UsageError, match="with embeddings cannot be saved"):
            part.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["cat", "Fox", "<|endoftext|>", "!", "a"])
def test_a_word_with_a_meaning_is_taken_unless_renamed(sd, tmp_path, token):
    path = write(tmp_path / "x.safetensors", {token: vectors(1)})
    with pytest.raises(UsageError, match=r"x\.safetensors.*is taken"):
        apply_embeddings(sd, [read_embedding(path)])
    renamed = read_embedding(path, token="<other>")
    assert apply_embeddings(sd, [renamed]).embeddings[0].word == "<other>"


def test_two_of_one_name(sd, tmp_path):
    first = read_embedding(write(tmp_path / "x.safetensors", {"<a>": vectors(1)}))
    second = read_embedding(write(tmp_path / "y.safetensors", {"<A>": vectors(1)}))
    for pipe, embeddings in (
        (sd, [first, second]),
        (apply_embeddings(sd, [first]), [second]),
        (apply_embeddings(sd, [first]), [first]),
    ):
        with pytest.raises(UsageError, match="Another embedding is called '<a>'"):
            apply_embeddings(pipe, embeddings)


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
        with pytest.raises(FileError, match=r"made for another model") as caught:
            apply_embeddings(pipe, [embedding])
        assert message in caught.value.why


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
