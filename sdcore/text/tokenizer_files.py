"""The files of a CLIP tokenizer folder, read strictly."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdcore.checks import as_int, shown
from sdcore.errors import FileError
from sdcore.files.folder import refuse_custom_code
from sdcore.files.jsonfile import is_object, read_json
from sdcore.files.limits import ADDED_TOKENS, MERGES_BYTES, TOKEN_LETTERS, TOKENS
from sdcore.files.opening import read_bytes

START, END = "<|startoftext|>", "<|endoftext|>"
_ROLES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
# Settings that are accepted at this value only: the tokenizer has no other behaviour.
_FIXED = {
    "add_prefix_space": False,
    "do_lower_case": True,
    "padding_side": "right",
    "truncation_side": "right",
    "split_special_tokens": False,
}
_WITHOUT = (
    "additional_special_tokens",
    "extra_special_tokens",
    "sep_token",
    "cls_token",
    "mask_token",
)
# What else such files hold, without a meaning for CLIP's tokenizer.
_NO_EFFECT = (
    *("tokenizer_class", "model_max_length", "added_tokens_decoder", "name_or_path", "errors"),
    *("special_tokens_map_file", "clean_up_tokenization_spaces", "use_fast", "tokenizer_file"),
    *("processor_class", "model_input_names", "backend", "is_local", "local_files_only"),
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LENGTH_LIMIT = 65536

Token = dict[str, Any]  # "content" and flags, the arguments of tokenizers' AddedToken


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer folder says.

    Attributes:
        vocab: token -> id.
        merges: pairs of tokens to join, in order.
        max_length: positions of an encoded prompt, start and end token included.
        roles: bos_token, eos_token, unk_token, pad_token -> the token.
        added: tokens that are found in a prompt before any splitting, in the order of adding.
        added_ids: the ids that the folder claims for them.

    Raises:
        FileError: a special token has no id, a size is senseless, or there are more tokens or
            merges than any tokenizer of CLIP has.
    """

    vocab: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    max_length: int
    roles: dict[str, str]
    added: tuple[Token, ...]
    added_ids: dict[str, int]

    def __post_init__(self) -> None:
        length = self.max_length
        if as_int(length, 3, _LENGTH_LIMIT) is None:
            why = f"It is {length!r:.40}; it must be a whole number from 3 to {_LENGTH_LIMIT}."
            raise FileError(
                "The tokenizer's model_max_length cannot be used.", why, "Use 77, as CLIP has."
            )
        for name, count, most in (
            ("tokens", len(self.vocab), TOKENS),
            ("merges", len(self.merges), TOKENS),
            ("added tokens", len(self.added), ADDED_TOKENS),
        ):
            if count > most:
                why = f"There are {count:,} {name}; CLIP has 49,408, and at most {most:,} are read."
                raise FileError("The tokenizer's vocabulary is too large.", why, _RESTORE)
        for token, number in {**self.vocab, **self.added_ids}.items():
            if len(token) > TOKEN_LETTERS:
                why = f"{token!r:.40} has {len(token):,} letters."
                raise FileError("The tokenizer's vocabulary is damaged.", why, _RESTORE)
            if as_int(number, 0, (1 << 31) - 1) is None:
                why = f"{token!r:.40} has the id {number!r:.40}."
                raise FileError("The tokenizer's vocabulary is damaged.", why, "Restore the files.")
        for role, token in self.roles.items():
            if token not in self.vocab and token not in self.added_ids:
                why = f"The vocabulary has no {token!r:.80}."
                raise FileError(
                    f"The tokenizer's {role} has no id.", why, "Add it to the vocabulary."
                )


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a tokenizer folder as transformers 5's CLIPTokenizer does.

    tokenizer.json, where it is there, has the vocabulary; else vocab.json and merges.txt. Special
    and added tokens are those of tokenizer_config.json; a folder without added_tokens_decoder there
    has them in special_tokens_map.json, added_tokens.json and tokenizer.json.

    Raises:
        FileError: a file is missing or damaged, or describes another kind of tokenizer.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    in_one = (folder / "tokenizer.json").exists()
    tokenizer_json = read_json(folder / "tokenizer.json") if in_one else {}
    try:
        vocab, merges = _vocabulary_of(tokenizer_json["model"]) if in_one else _vocabulary(folder)
        if "added_tokens_decoder" in config:
            listed = {int(key): _token(v) for key, v in config["added_tokens_decoder"].items()}
        else:
            special_map = _read_if_there(folder / "special_tokens_map.json")
            config |= {name: _marked(value) for name, value in special_map.items()}
            listed = _listed_elsewhere(folder, config, tokenizer_json)
        _check_config(config, path)
        added, roles = _special(config, [listed[number] for number in sorted(listed)])
        ids = {token["content"]: number for number, token in listed.items()}
        length = config.get("model_max_length", 0)
        files = TokenizerFiles(vocab, merges, length, roles, added, ids)
        _check_merges(files)
        return files
    except FileError as error:
        raise FileError(f"{folder}: {error.what}", error.why, error.hint) from error
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        why = f"A value is not what it should be ({error!r:.200})."
        raise FileError(f"{folder}: the tokenizer files cannot be used.", why, _RESTORE) from error


_RESTORE = "Restore the tokenizer's files from where the model came from."


def _check_config(config: dict[str, Any], path: Path) -> None:
    refuse_custom_code(config, path)
    name = config.get("tokenizer_class", _CLASSES[0])
    if name not in _CLASSES:
        why = f"It is for {name!r:.80}; sdcore has {_CLASSES[0]}."
        raise FileError(
            "The tokenizer is of another kind.", why, "Use the tokenizer of a CLIP text encoder."
        )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            why = f"{key} is {config[key]!r:.80}; sdcore has only {value!r}."
            raise FileError("A tokenizer setting cannot be used.", why, "Use another tokenizer.")
    known = (*_ROLES, *_FIXED, *_WITHOUT, *_NO_EFFECT)
    for key in config:
        # Programs add notes of their own here; what is nearly a setting is one spelt wrongly.
        near = get_close_matches(key, known, n=1, cutoff=0.8)
        if key not in known and near:
            what = f"There is a setting {key!r:.80}, which is not known."
            raise FileError(what, f"It is nearly {near[0]!r}.", f"Did you mean {near[0]!r}?")
    for key in _WITHOUT:
        if config.get(key):
            raise FileError("A tokenizer setting cannot be used.", f"{key} is set.", "Remove it.")


# What tokenizers' BPE can do and CLIP's does not: setting -> values, the first where it is absent.
_CLIP_BPE: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": ("", None),
    "end_of_word_suffix": ("</w>",),
    "fuse_unk": (False, True),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}


def _vocabulary_of(model: dict[str, Any]) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges out of the model part of tokenizer.json."""
    if model.get("type", "BPE") != "BPE":
        why = f"The file tokenizer.json is of type {model['type']!r:.40}, CLIP's is BPE."
        raise FileError(
            "The tokenizer is of another kind.", why, "Use the tokenizer of a CLIP text encoder."
        )
    for name, values in _CLIP_BPE.items():
        if model.get(name, values[0]) not in values:
            why = f"The setting model.{name} of tokenizer.json is {shown(model[name])}."
            hint = f"CLIP's is {values[0]!r}: use the tokenizer of a CLIP text encoder."
            raise FileError("The tokenizer is of another kind.", why, hint)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return dict(model["vocab"]), tuple(_pair(pair) for pair in merges)


def _vocabulary(folder: Path) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges out of vocab.json and merges.txt."""
    vocab, path = read_json(folder / "vocab.json"), folder / "merges.txt"
    data = read_bytes(path, MERGES_BYTES)
    if (count := data.count(b"\n")) > TOKENS:
        why = f"It has {count:,} lines; CLIP's has 48,895, and at most {TOKENS:,} are read."
        raise FileError("The tokenizer's merges.txt is too large.", why, _RESTORE)
    lines = data.decode("utf-8").split("\n")
    if lines[-1] == "":
        lines.pop()
    pairs = [line.rstrip("\r").split(" ") for line in lines if not line.startswith("#version")]
    return vocab, tuple(_pair(pair) for pair in pairs)


def _pair(parts: Any) -> tuple[str, str]:
    left, right = parts
    if not (isinstance(left, str) and isinstance(right, str) and left and right):
        raise ValueError(f"{parts!r:.80} is no merge of two tokens")
    return left, right


def _check_merges(files: TokenizerFiles) -> None:
    """Refuse a vocabulary with tokens that no merge makes: merges.txt was cut short, and prompts
    would be read in other pieces than the text encoder learned, without a word.

    Tokens behind the special ones were added by somebody, and are found whole or not at all.
    """
    special = {*files.roles.values(), *files.added_ids}
    made = {left + right for left, right in files.merges} | special
    last = max((files.vocab[token] for token in special if token in files.vocab), default=-1)
    lost = [
        token
        for token, number in files.vocab.items()
        if number < last and len(token.removesuffix("</w>")) > 1 and token not in made
    ]
    if lost:
        why = f"It makes {len(lost):,} tokens of the vocabulary no more, such as {lost[0]!r:.40}."
        raise FileError("The tokenizer's list of merges is not whole.", why, _RESTORE)


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _marked(value: Any) -> Any:
    """A token of special_tokens_map.json in the spelling of tokenizer_config.json."""
    if not is_object(value):
        return value
    return {**value, "special": True, "__type": "AddedToken"}


def _listed_elsewhere(
    folder: Path, config: dict[str, Any], tokenizer_json: dict[str, Any]
) -> dict[int, Token]:
    """Added tokens of a folder from before they were listed in tokenizer_config.json."""
    listed: dict[int, Token] = {}
    named = {_content(config[role]) for role in _ROLES if config.get(role)}
    for content, number in _read_if_there(folder / "added_tokens.json").items():
        special = content in named
        listed[number] = {"content": content, "normalized": not special, "special": special}
    for entry in tokenizer_json.get("added_tokens", []):
        listed[entry["id"]] = _token({key: value for key, value in entry.items() if key != "id"})
    return listed


def _special(
    config: dict[str, Any], added: list[Token]
) -> tuple[tuple[Token, ...], dict[str, str]]:
    """Added tokens and then the special tokens not among them; and the token of each role."""
    roles = {role: _content(config.get(role, token)) for role, token in _ROLES.items()}
    present = {token["content"] for token in added}
    for token in added:
        token["special"] = token.get("special", False) or token["content"] in roles.values()
    for role, content in roles.items():
        if content not in present:
            value = config.get(role, content)
            flags = _token(value) if is_object(value) else {"content": content}
            added.append({**flags, "special": True})
    return tuple(added), roles


def _content(value: Any) -> str:
    content = _token(value)["content"] if is_object(value) else value
    if not isinstance(content, str) or not content:
        raise ValueError(f"{value!r:.80} is no token")
    return content


def _token(value: dict[str, Any]) -> Token:
    """The arguments of an AddedToken, checked."""
    token = {key: flag for key, flag in value.items() if key != "__type"}
    flags = {key: flag for key, flag in token.items() if key != "content"}
    if any(key not in _FLAGS or not isinstance(flag, bool) for key, flag in flags.items()):
        raise ValueError(f"{value!r:.80} is no added token")
    if not isinstance(token["content"], str) or not token["content"]:
        raise ValueError(f"{value!r:.80} is no added token")
    return token
