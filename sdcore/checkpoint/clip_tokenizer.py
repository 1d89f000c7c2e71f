"""CLIP's own tokenizer, which single-file checkpoints leave out because it is always the same."""

from __future__ import annotations

from pathlib import Path

from tokenizers import pre_tokenizers

from sdcore.text.tokenizer import WORD_END, Tokenizer
from sdcore.text.tokenizer_files import END, START

_MERGES = Path(__file__).parents[1] / "models" / "families" / "clip_tokenizer" / "merges.txt"
_LENGTH = 77


def clip_tokenizer(pad_id: int) -> Tokenizer:
    """The tokenizer that every Stable Diffusion was trained with.

    Args:
        pad_id: of the token that fills a prompt up: the end token's (OpenAI's CLIP) or 0, which is
            "!" (OpenCLIP).
    """
    lines = _MERGES.read_text(encoding="utf-8").splitlines()[1:]  # the first names the version
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    tokens = _vocabulary(merges)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return Tokenizer.from_vocab(vocabulary, merges, _LENGTH, pad_token=tokens[pad_id])


def _vocabulary(merges: list[tuple[str, str]]) -> list[str]:
    """CLIP's tokens by id: the bytes, the bytes that end a word, what each merge joins, marks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [left + right for left, right in merges]
    return [*letters, *(letter + WORD_END for letter in letters), *joined, START, END]
