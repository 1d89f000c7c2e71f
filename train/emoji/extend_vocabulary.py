"""A trained text encoder with the vocabulary of other scenes: it goes on knowing what it knew.

    python -m train.emoji.extend_vocabulary

Learns the vocabulary of the captions of `data`. A token that the old vocabulary has keeps its
vector; a new one begins in the direction of the mean of the old tokens that spelled it, as long as
the vectors of known words are. Bytes are seldom seen and stay short: names that began as their mean
lay six times closer together than names that had been learned, and were hardly told apart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import END, START, WORD_END, Tokenizer
from sdcore.text.tokenizer_files import read_tokenizer_files
from sdcore.training.command import main
from train.emoji.data import own_words
from train.emoji.data.captions import chinese_words
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings
from train.emoji.data.vocabulary import learn_vocabulary

_SHORT = len("a" + WORD_END)  # what is longer was learned as a part of words, not as a single byte
CAPTIONS = 40_000  # from which the vocabulary is learned
OFTEN = 200  # a word of newcomers counts for so many, so that each is whole


class VocabularySettings(SceneSettings):
    start_from: str = "sdcore/models/emoji"  # holds tokenizer/ and text_encoder/
    vocabulary: int = 8192  # at most so many tokens
    max_tokens: int = 32
    own_words: bool = True  # those that newcomers say around the names, too
    seed: int = 0
    folder: str = "runs/emoji/vocabulary"  # gets tokenizer/ and text_encoder/


def extend(settings: VocabularySettings) -> None:
    settings = settings.with_data()
    assert isinstance(settings.data, DataSettings)
    source, folder = Path(settings.start_from), Path(settings.folder)
    known = read_tokenizer_files(source / "tokenizer").vocab
    old = CLIPTextEncoder.from_pretrained(source / "text_encoder")
    scenes = Scenes(settings.data.model_copy(update={"chinese_share": 0.0}))
    captions = [scenes.scene(settings.seed, index).caption for index in range(CAPTIONS)]
    texts = captions + chinese_texts(settings.data, settings.own_words)
    if settings.own_words:
        texts += own_words.english_words() * OFTEN
    vocabulary, merges = learn_vocabulary(texts, settings.vocabulary)
    tokenizer = Tokenizer.from_vocab(vocabulary, merges, max_length=settings.max_tokens)
    extended = with_vocabulary(old, known, vocabulary)
    tokenizer.save_pretrained(folder / "tokenizer")
    extended.save_pretrained(folder / "text_encoder")
    print(f"{len(known)} tokens before, {len(vocabulary)} now: {folder}")


def chinese_texts(settings: DataSettings, own: bool = False) -> list[str]:
    """The Chinese words, and all letters, so often that each is whole before two are joined.

    Else a merge could join the end of one letter and the beginning of the next, across two words.
    """
    words = chinese_words(settings.words, settings.chinese_styles().values())
    if own:
        words = list(dict.fromkeys([*words, *own_words.chinese_words()]))
    return words + sorted(set("".join(words))) * len(words)


def with_vocabulary(
    old: CLIPTextEncoder, known: dict[str, int], vocabulary: dict[str, int]
) -> CLIPTextEncoder:
    """The text encoder `old` of the vocabulary `known` (token -> id), for another vocabulary."""
    config = replace(
        old.config,
        vocab_size=len(vocabulary),
        pad_token_id=vocabulary[END],
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
    )
    new, state = CLIPTextEncoder(config), old.state_dict()
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    old_vectors = state[name]
    words = [i for token, i in known.items() if token in vocabulary and len(token) > _SHORT]
    length = old_vectors[words].norm(dim=-1).mean()

    def vector(token: str) -> Tensor:
        if token in known:
            return old_vectors[known[token]]
        return F.normalize(old_vectors[_spelling(token, known)].mean(0), dim=0) * length

    state[name] = torch.stack([vector(token) for token in vocabulary])
    new.load_state_dict(state)
    return new


def _spelling(token: str, known: dict[str, int]) -> list[int]:
    """The ids of `known` that spell a token of another vocabulary, the longest pieces first."""
    if token in known:
        return [known[token]]
    stem = token.removesuffix(WORD_END)
    pieces = [*stem] if token == stem else [*stem[:-1], stem[-1] + WORD_END]
    ids: list[int] = []
    while pieces:
        count = next(n for n in range(len(pieces), 0, -1) if "".join(pieces[:n]) in known)
        ids.append(known["".join(pieces[:count])])
        pieces = pieces[count:]
    return ids  # it comes to an end, since every single byte is a token


if __name__ == "__main__":
    main(extend, VocabularySettings, "configs/train/emoji_vocabulary.yaml", __doc__)
