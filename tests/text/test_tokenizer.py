"""The tokenizer: transformers' ids from every kind of folder, words to tokens, what is cut."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdcore.errors import FileError, UsageError
from sdcore.text.tokenizer import Tokenizer
from tests.tiny import END, START, make_tokenizer, vocabulary

MODELS = Path(__file__).parents[2] / "sdcore" / "models"

LENGTH = 24
PIECES = [
    *["a", "red", "fox,", "don't", "it's", "we'll", "ice-cream", "42", "3rd", "foo_bar"],
    *["<my-cat>", "<MY-CAT>", "Fox Two", "fox two"],
    *["!!", "!", ".", "\n", "\t", ""],
    *["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|endoftext", "</w>", "photo", "apple"],
    *[
        "café",
        "cafe\u0301",
        "İstanbul",
        "ﬁne",
        "ẞ",
        "🦊",
        "👩‍🚀",
        "हिन्दी",
        "日本語",
        "\u00a0",
        "\x00",
        "½",
        "Ⅷ",
    ],
]
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*PIECES, " ", ""]), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
)


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def marked(content: str) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": content, **flags}


def write_vocabulary(folder: Path) -> None:
    vocab, merges = vocabulary()
    write(folder, "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_transformers_5(folder: Path) -> None:
    make_tokenizer(LENGTH).save_pretrained(folder)


def write_transformers_5_pad_0(folder: Path) -> None:
    make_tokenizer(LENGTH, pad_token="!").save_pretrained(folder)


def write_sd15(folder: Path, pad: object = END) -> None:
    """The spelling of the Stable Diffusion 1.5 repository."""
    write_vocabulary(folder)
    roles = {"bos_token": START, "eos_token": END, "unk_token": END}
    config = {name: {"__type": "AddedToken", **marked(token)} for name, token in roles.items()}
    write(
        folder,
        "tokenizer_config.json",
        {
            **config,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": LENGTH,
            "name_or_path": "openai/clip-vit-large-patch14",
            "pad_token": END,
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    special = {name: marked(token) for name, token in roles.items()}
    write(folder, "special_tokens_map.json", {**special, "pad_token": pad})


def write_sd21(folder: Path) -> None:
    """As above, padded with "!", which is id 0."""
    write_sd15(folder, pad="!")


def write_sdxl_2(folder: Path) -> None:
    """The spelling of SDXL's tokenizer_2 as transformers 4.33 and later save it."""
    write_vocabulary(folder)
    vocab, _ = vocabulary()
    added = {str(vocab[t]): {**marked(t), "special": True} for t in (START, END)}
    added["0"] = {**marked("!"), "normalized": False, "special": True}
    config = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    config = {**config, "model_max_length": LENGTH, "added_tokens_decoder": added}
    write(folder, "tokenizer_config.json", {**config, "clean_up_tokenization_spaces": True})


def write_with_new_words(folder: Path) -> None:
    """Words added for textual inversion, in the old file for them."""
    write_sd15(folder)
    size = len(vocabulary()[0])
    write(folder, "added_tokens.json", {"<my-cat>": size, "Fox Two": size + 1})


WRITERS = {
    "transformers 5": write_transformers_5,
    "transformers 5, pad 0": write_transformers_5_pad_0,
    "sd 1.5": write_sd15,
    "sd 2.1": write_sd21,
    "sdxl 2": write_sdxl_2,
    "new words": write_with_new_words,
}


@pytest.fixture(params=WRITERS, scope="module")
def pair(request, tmp_path_factory):
    """Our tokenizer, transformers' from the same folder, and transformers' from what we saved."""
    folder = tmp_path_factory.mktemp("tokenizer")
    WRITERS[request.param](folder)
    ours = Tokenizer.from_pretrained(folder)
    saved = tmp_path_factory.mktemp("saved")
    ours.save_pretrained(saved)
    theirs, again = CLIPTokenizer.from_pretrained(folder), CLIPTokenizer.from_pretrained(saved)
    return ours, theirs, again, Tokenizer.from_pretrained(saved)


def reference_ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    assert tokenizer.model_max_length == LENGTH
    return tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH).input_ids


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_same_ids_as_transformers(pair, text):
    ours, theirs, again, ours_again = pair
    wanted = reference_ids(theirs, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = ours(text)
        assert tokens.ids.tolist() == [wanted]
        assert ours_again(text).ids.tolist() == [wanted]
    assert reference_ids(again, text) == wanted
    check_spans(ours, text, tokens)


def check_spans(tokenizer: Tokenizer, text: str, tokens) -> None:
    """Every prompt token belongs to a word, and words come in order with the right letters."""
    ids, spans, cut = tokens.ids[0].tolist(), tokens.spans[0], tokens.cut[0]
    last = 0
    for span in spans:
        assert text[span.start : span.end] == span.word
        assert span.start >= last
        last = span.end
        assert span.positions or cut
    covered = {position for span in spans for position in span.positions}
    assert covered <= set(range(1, LENGTH - 1))
    outside = set(range(1, LENGTH - 1)) - covered
    if outside:  # then only the end token and padding follow
        assert ids[min(outside)] in (tokenizer.end_id, tokenizer.pad_id)
        assert min(outside) > max(covered, default=0)


def test_the_folders_differ_where_they_should(tmp_path):
    for name, pad in {"sd 1.5": None, "sd 2.1": 0, "sdxl 2": 0}.items():
        folder = tmp_path / name
        folder.mkdir()
        WRITERS[name](folder)
        tokenizer = Tokenizer.from_pretrained(folder)
        assert tokenizer.pad_id == (tokenizer.end_id if pad is None else pad)
        assert tokenizer("a fox").ids[0, -1] == tokenizer.pad_id


def make_ours(length: int = LENGTH) -> Tokenizer:
    vocab, merges = vocabulary()
    return Tokenizer.from_vocab(vocab, merges, max_length=length)


def test_words_know_their_tokens():
    tokens = make_ours()(["a red-apple, don\u2019t", ""])
    assert tokens.ids.shape == (2, LENGTH) and tokens.ids.dtype == torch.int64
    assert torch.equal(tokens.weights, torch.ones(2, LENGTH))
    words = [(span.word, list(span.positions)) for span in tokens.spans[0]]
    # red-apple is red, -, apple; the comma is one token; the apostrophe is three bytes
    assert words[:3] == [("a", [1]), ("red-apple", [2, 3, 4]), (",", [5])]
    assert words[3][0] == "don\u2019t" and words[3][1][0] == 6
    assert tokens.spans[1] == () and tokens.cut == ("", "")


def test_chinese_and_japanese_letters_are_words_of_their_own():
    """They are written without spaces; CLIP's vocabulary knows few of their words."""
    tokenizer = Tokenizer.from_vocab(*vocabulary(), max_length=LENGTH)
    text = "狐狸 cat在 red"
    spans = tokenizer(text).spans[0]
    assert [span.word for span in spans] == ["狐", "狸", "cat", "在", "red"]
    assert [text[span.start : span.end] for span in spans] == [span.word for span in spans]
    positions = [list(span.positions) for span in spans]
    assert [p for each in positions for p in each] == list(range(1, 1 + sum(map(len, positions))))
    assert all(positions)


def test_what_is_cut_is_shown():
    tokenizer = make_ours(8)  # room for six tokens
    with pytest.warns(UserWarning, match="6 tokens.*'tree photo'"):
        tokens = tokenizer(["a red fox on a big tree photo", "a fox"])
    assert tokens.cut == ("tree photo", "")
    assert [list(span.positions) for span in tokens.spans[0]][-3:] == [[6], [], []]
    assert tokens.ids[0, -1] == tokenizer.end_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer("a red fox on a big")


def test_a_long_cut_is_shortened_in_the_warning_only():
    with pytest.warns(UserWarning, match="letters") as caught:
        tokens = make_ours(8)("fox " * 10_000)
    assert len(str(caught[0].message)) < 1000
    assert tokens.cut[0] == ("fox " * 10_000)[4 * 6 :]


def test_decode():
    tokenizer = make_ours()
    assert tokenizer.decode(tokenizer("A red FOX").ids[0]) == "a red fox"


@pytest.mark.parametrize("prompts", [[], [3], None, "\ud800"])
def test_bad_prompts(prompts):
    with pytest.raises((UsageError, TypeError)):
        make_ours()(prompts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "vocab.json").unlink(), "vocab.json is missing"),
        (lambda f: (f / "merges.txt").unlink(), "merges.txt is missing"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json is missing"),
        (lambda f: (f / "vocab.json").write_text('{"a": 1, "a": 2}'), "given twice"),
        (lambda f: (f / "vocab.json").write_text('{"a": 1'), "not a valid settings file"),
        (lambda f: (f / "vocab.json").write_text('{"a": -1}'), "vocabulary is damaged"),
        (lambda f: (f / "vocab.json").write_text('{"a": 1}'), "merges do not fit|has no id"),
        (lambda f: (f / "merges.txt").write_text("a b c\n"), "cannot be used"),
        (lambda f: (f / "merges.txt").write_bytes(b"\xff\xfe"), "cannot be used"),
        (lambda f: cut(f / "merges.txt"), "merges is not whole"),
        (lambda f: edit(f, tokenizer_class="T5Tokenizer"), "another kind"),
        (lambda f: edit(f, auto_map={"AutoTokenizer": "x.Y"}), "custom code"),
        (lambda f: edit(f, model_max_length=10**30), "model_max_length"),
        (lambda f: edit(f, model_max_length=None), "model_max_length"),
        (lambda f: edit(f, do_lower_case=False), "do_lower_case"),
        (lambda f: edit(f, padding_side="left"), "padding_side"),
        (lambda f: write(f, "special_tokens_map.json", {"pad_token": "<nope>"}), "pad_token"),
        (lambda f: write(f, "special_tokens_map.json", {"pad_token": 3}), "no token"),
        (lambda f: write(f, "added_tokens.json", {"<new>": 5}), "ids"),
    ],
)
def test_damaged_folders(tmp_path, change, message):
    write_sd15(tmp_path)
    change(tmp_path)
    with pytest.raises(FileError, match=message):
        Tokenizer.from_pretrained(tmp_path)


def cut(path: Path) -> None:
    """Leave the last line out."""
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_vocabulary_that_cannot_work():
    vocab, merges = vocabulary()
    with pytest.raises(UsageError, match=r"has no id|vocabulary has no"):
        Tokenizer.from_vocab({k: v for k, v in vocab.items() if k != END}, merges)
    with pytest.raises(UsageError):
        Tokenizer.from_vocab(vocab, [("zz", "qq")])
    with pytest.raises(UsageError):
        Tokenizer.from_vocab(vocab, merges, max_length=2)


def test_transformers_is_not_imported():
    code = "import sdcore.text.tokenizer, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokens_are_shown_in_letters() -> None:
    tokenizer = Tokenizer.from_pretrained(MODELS / "emoji" / "tokenizer")
    for text in ("一只狐狸在左边", "a red fox, café", "naïve 🦊"):
        shown = [tokenizer.readable(piece.id) for piece in tokenizer.pieces(text)]
        data = [
            bytes.fromhex(part[1:-1]) if re.fullmatch("<[0-9a-f]+>", part) else part.encode()
            for part in shown
        ]
        assert b"".join(data).decode() == text.replace(" ", "")
    assert tokenizer.readable(tokenizer.start_id) == "<|startoftext|>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("byte_fallback", True),
        ("byte_fallback", 10**200),
        ("ignore_merges", True),
        ("dropout", 0.5),
        ("end_of_word_suffix", ""),
        ("continuing_subword_prefix", "##"),
        ("fuse_unk", [1]),
    ],
)
def test_rules_that_are_not_clips_are_refused(tmp_path: Path, name: str, value: object) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    Tokenizer.from_pretrained(tmp_path)
    rules["model"][name] = value
    write(tmp_path, "tokenizer.json", rules)
    with pytest.raises(FileError, match="kind"):
        Tokenizer.from_pretrained(tmp_path)
