"""Prompt text to token ids, and which tokens each word became.

Shapes: B prompts, T token positions.

CLIP's byte-pair encoding (Radford et al. 2021; Sennrich et al. 2016, arXiv:1508.07909) on the
`tokenizers` library directly: the same ids as transformers 5's CLIPTokenizer from the same folder,
without its import, which takes 0.8 s where `tokenizers` takes 0.02 s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from sdcore.checks import has_type
from sdcore.errors import FileError, UsageError, warn
from sdcore.files.atomic import replace_files, text_writer
from sdcore.files.folder import component_folder
from sdcore.text.tokenizer_files import END, START, TokenizerFiles, read_tokenizer_files
from sdcore.torch_state import own_torch_state

WORD_END = "</w>"
# What CLIP's merges may join: letters, or one digit, or other signs, or an English ending.
_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# What a person calls a word: letters, marks and digits, joined by - or ' ; or a run of other signs.
_WORDS = r"[\p{L}\p{M}\p{N}_]+(?:['\u2019-][\p{L}\p{M}\p{N}_]+)*|[^\s\p{L}\p{M}\p{N}_]+"
# Chinese letters and Japanese kana, which are written without spaces between words; for a [...].
UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_SHOWN_CUT = 500
_RESTORE = "Take vocabulary, merges and added tokens from the same tokenizer."


@dataclass(frozen=True)
class Piece:
    """One token of a text: its id, and the letters text[start:end] that it stands for.

    joined: it must stay beside the piece before it, as the vectors of one learned word do.
    """

    id: int
    start: int
    end: int
    joined: bool = False


@dataclass(frozen=True)
class Span:
    """One word of a prompt: where it stands there, and the token positions that it became.

    `word` is prompt[start:end] without the marks that a dialect of prompts takes out of it. Both
    count in the prompt as the user wrote it. `positions` is shorter, or empty, where the prompt was
    cut; a word that is divided between two chunks has one span in each.
    """

    word: str
    start: int
    end: int
    positions: range


@dataclass(frozen=True)
class Tokens:
    """Prompts as the text encoder reads them.

    ids:     (B, T) int64: start, the prompt's tokens, end, padding; a long prompt is several of
             these chunks in a row.
    weights: (B, T) float32, how much each token counts; 1 everywhere for a plain prompt.
    spans:   for each prompt, its words in order.
    cut:     for each prompt, the text that did not fit; "" where all of it did.
    """

    ids: Tensor
    weights: Tensor
    spans: tuple[tuple[Span, ...], ...]
    cut: tuple[str, ...]


class Tokenizer:
    """CLIP's tokenizer: `tokenizer(prompt or prompts) -> Tokens`, padded to `max_length`."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._files = files
        self.max_length = files.max_length
        self._bpe = _build(files)
        self._words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        self.start_id, self.end_id, self.pad_id = (
            self._id(files.roles[role]) for role in ("bos_token", "eos_token", "pad_token")
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, subfolder: str | None = None) -> Tokenizer:
        """Read a tokenizer folder: vocab.json and merges.txt, or tokenizer.json.

        Raises:
            FileError: a file is missing or damaged, or describes another kind of tokenizer.
        """
        return cls(read_tokenizer_files(component_folder(folder, subfolder)))

    @classmethod
    def from_vocab(
        cls,
        vocab: dict[str, int],
        merges: Iterable[tuple[str, str]],
        max_length: int = 32,
        pad_token: str = END,
    ) -> Tokenizer:
        """A tokenizer of your own vocabulary.

        Args:
            vocab: token -> id; holds the start and end tokens, and pieces whose last byte of a
                word is marked `</w>`.
            merges: pairs of tokens to be joined, the most important first.
            max_length: T, with the start and end tokens.

        Raises:
            UsageError: a special token or a part of a merge is missing in the vocabulary.
        """
        roles = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
        added = tuple({"content": token, "special": True} for token in (START, END, pad_token))
        pairs = tuple((left, right) for left, right in merges)
        try:
            return cls(TokenizerFiles(dict(vocab), pairs, max_length, roles, added, {}))
        except FileError as error:
            raise UsageError("The vocabulary cannot be used.", error.why, error.hint) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.

        Transformers' CLIPTokenizer, new and old, reads them and gives the same ids.
        """
        files = self._files
        merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in files.merges)
        texts = {
            "vocab.json": json.dumps(files.vocab, ensure_ascii=False) + "\n",
            "merges.txt": merges,
            "tokenizer_config.json": _pretty(self._config()),
            "special_tokens_map.json": _pretty(files.roles),
        }
        replace_files(Path(folder), {name: text_writer(text) for name, text in texts.items()})

    def __call__(self, prompts: str | Sequence[str]) -> Tokens:
        """Encode one prompt or several, each to `max_length` positions.

        Warns:
            UserWarning: a prompt is too long; the warning shows the text that was cut.

        Raises:
            UsageError: no prompt, something that is not text, or broken Unicode.
        """
        if not has_type(prompts, Iterable):
            raise UsageError("The prompt is not text.", f"It is {prompts!r:.80}.", "Give a string.")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise UsageError(
                "There is no prompt.", "The list of prompts is empty.", 'Give one; "" is a prompt.'
            )
        rows = [self._encode(text) for text in texts]
        for cut in (row[2] for row in rows if row[2]):
            warn(describe_cut(cut, self.max_length - 2))
        with own_torch_state():
            ids = torch.tensor([row[0] for row in rows])  #  (B, T)
            weights = torch.ones(ids.shape)
        return Tokens(ids, weights, *zip(*((r[1], r[2]) for r in rows), strict=True))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of token ids, without start, end and padding; for messages, not for encoding."""
        text: str = self._bpe.decode([int(number) for number in ids], skip_special_tokens=True)
        return text.replace(WORD_END, " ").strip()

    def __len__(self) -> int:
        return self._bpe.get_vocab_size()

    def _config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        added = {
            str(number): {flag: getattr(token, flag) for flag in flags}
            for number, token in self._bpe.get_added_tokens_decoder().items()
        }
        return {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.max_length,
            "add_prefix_space": False,
            "do_lower_case": True,
            **self._files.roles,
            "added_tokens_decoder": added,
        }

    def _encode(self, text: str) -> tuple[list[int], tuple[Span, ...], str]:
        """One prompt: its ids, padded; its words; and the text that was cut."""
        pieces = self.pieces(text)
        room = self.max_length - 2
        kept = [piece.id for piece in pieces[:room]]
        cut = text[pieces[room].start :] if len(pieces) > room else ""
        spans: list[Span] = []
        for word, start, end, found in self.words(text, pieces):
            # position 0 is the start token
            positions = range(min(found.start, len(kept)) + 1, min(found.stop, len(kept)) + 1)
            spans.append(Span(word, start, end, positions))
        return self.row(kept), tuple(spans), cut

    def pieces(self, text: str) -> list[Piece]:
        """All tokens of a text, however long, without start and end.

        Raises:
            UsageError: it is no text, or broken Unicode.
        """
        if not has_type(text, str):
            why = f"It is of type {type(text).__name__}."
            raise UsageError("A prompt must be text.", why, "Give a str or a list of str.")
        try:
            encoding = self._bpe.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            hint = "The prompt was read with the wrong encoding; read it as UTF-8."
            raise UsageError("A prompt is not valid Unicode.", f"{error}.", hint) from error
        offsets = encoding.offsets
        return [Piece(id, *offset) for id, offset in zip(encoding.ids, offsets, strict=True)]

    def learned_in(self, text: str) -> set[str]:
        """The words of a text that textual inversion taught; see `sdcore.adapters`."""
        return set()

    def words(self, text: str, pieces: Sequence[Piece]) -> Iterator[tuple[str, int, int, range]]:
        """Each word of a text, where it starts and ends, and the pieces that overlap it.

        Chinese and Japanese are written without spaces: there, a word ends where a piece and a
        letter end. Words and pieces both come in the order of the text, so one pass finds them all.
        """
        first = 0
        for word, (start, end) in self._words.pre_tokenize_str(text):
            while first < len(pieces) and pieces[first].end <= start:
                first += 1
            last = first
            while last < len(pieces) and pieces[last].start < end:
                last += 1
            if not _UNSPACED.search(word):
                yield word, start, end, range(first, last)
                continue
            begin = first
            for after in range(first + 1, last + 1):
                cut = pieces[after].start if after < last else end
                within = pieces[after - 1].end > cut
                if after < last and (within or not _UNSPACED.search(text[cut - 1 : cut + 1])):
                    continue
                yield text[start:cut], start, cut, range(begin, after)
                start, begin = cut, after

    def id_of(self, token: str) -> int | None:
        """The id of a token in the spelling of the vocabulary, such as ",</w>"."""
        return self._bpe.token_to_id(token)

    def token(self, id: int) -> str:
        """The token of an id, in the spelling of the vocabulary."""
        return self._bpe.id_to_token(id) or ""

    def readable(self, id: int) -> str:
        """The letters of a token; a part of a letter as its bytes, such as <e4b8>.

        The vocabulary writes each byte as a sign of its own, so that 一 stands there as ä¸Ģ.
        """
        token = self.token(id).removesuffix(WORD_END)
        if not all(sign in _BYTES for sign in token):
            return token
        data = bytes(_BYTES[sign] for sign in token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return f"<{data.hex()}>"

    def row(self, ids: Sequence[int]) -> list[int]:
        """`max_length` ids: start, these, end, padding."""
        padding = [self.pad_id] * (self.max_length - 2 - len(ids))
        return [self.start_id, *ids, self.end_id, *padding]

    def _id(self, token: str) -> int:
        number = self._bpe.token_to_id(token)
        assert number is not None, token  # the files were checked for it
        return number


def _byte_signs() -> dict[str, int]:
    """Which sign of the vocabulary stands for which byte: itself where it can be seen, else one
    from 256 on, in order (Radford et al. 2019, GPT-2).
    """
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_signs()


def describe_cut(cut: str, room: int) -> str:
    """The warning for text that did not fit into `room` tokens."""
    shown = cut if len(cut) <= _SHOWN_CUT else f"{cut[:_SHOWN_CUT]}... ({len(cut)} letters)"
    return f"the prompt is longer than {room} tokens; this part was cut: {shown!r}"


def _build(files: TokenizerFiles) -> tokenizers.Tokenizer:
    """The byte-pair encoder, put together as transformers' CLIPTokenizer does."""
    try:
        bpe = models.BPE(
            vocab=files.vocab,
            merges=list(files.merges),
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
            unk_token=files.roles["unk_token"],
        )
    except Exception as error:  # tokenizers raises nothing more special
        raise FileError("The tokenizer's merges do not fit.", f"{error}.", _RESTORE) from error
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    add_tokens = cast(Any, tokenizer.add_tokens)  # pyright: ignore[reportUnknownMemberType]
    add_tokens([AddedToken(**token) for token in files.added])
    for token, number in files.added_ids.items():
        if tokenizer.token_to_id(token) != number:
            why = f"{token!r:.80} should be {number} but follows as {tokenizer.token_to_id(token)}."
            raise FileError("The ids of the tokenizer's added tokens do not fit.", why, _RESTORE)
    return tokenizer


def _pretty(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
