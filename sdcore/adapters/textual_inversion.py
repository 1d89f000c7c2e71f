"""Textual inversion: learned vectors in place of the words of a prompt.

    taught = apply_embeddings(pipe, [read_embedding("easynegative.safetensors")])
    taught("a red apple", negative_prompt="easynegative")

Gal et al. 2022 (arXiv:2208.01618). One word may stand for several vectors, each of which takes the
place of one token. A tokenizer gives them ids behind its vocabulary, and the text encoder looks
those up in a table of their own. The model that they are applied to stays as it is.

Shapes: n vectors of a word, D text width, B batch, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from sdcore.adapters.lora_names import COUNTERS
from sdcore.checkpoint.model import EmbeddingOnModel, Model
from sdcore.checkpoint.parts import TEXT_ENCODERS, TOKENIZER_OF
from sdcore.errors import FileError, UsageError, name_some
from sdcore.files.hashes import file_hash
from sdcore.files.header import open_header
from sdcore.files.weights import read_tensors
from sdcore.text.recurrent_encoder import TextEncoder
from sdcore.text.tokenizer import Piece, Tokenizer
from sdcore.torch_state import with_own_torch_state
from sdcore.views import view

ModelT = TypeVar("ModelT", bound=Model)

# Keys that hold vectors and no name: A1111's, its old one, and SDXL's, one for each text encoder.
_NAMELESS = ("emb_params", "*", "string_to_param.*", "clip_l", "clip_g")
# Older names of the last two, of diffusers' training script.
_OLDER = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
VECTORS_OF = dict(zip(TEXT_ENCODERS, ("clip_l", "clip_g"), strict=True))
_COMFY_SUFFIXES = (".safetensors", ".pt", ".bin")
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL's second text encoder"}
LONGEST_WORD = 200


@dataclass(frozen=True)
class Embedding:
    """A textual inversion file.

    Attributes:
        name: the file's, without its suffix.
        hash: SHA-256 of the file.
        token: the word in a prompt that stands for the vectors.
        vectors: (n, D) under `clip_l` and `clip_g` for SDXL's two text encoders; under "" where the
            file does not say which it is for.
    """

    path: Path
    name: str
    hash: str
    token: str
    vectors: dict[str, Tensor]

    def trigger(self, dialect: str) -> str:
        """What a prompt says for it: A1111 has the file's name, ComfyUI embedding:name."""
        if dialect.startswith("a1111"):
            return self.name
        return f"embedding:{self.name}" if dialect == "comfy" else self.token


def read_embedding(path: str | Path, *, token: str | None = None) -> Embedding:
    """Read a textual inversion file of diffusers or A1111, or one for SDXL's two text encoders.

    Args:
        token: the word that stands for it; None takes the one in the file, or the file's name.

    Raises:
        FileError: damaged, no textual inversion, or several in one file.
    """
    path = Path(path).expanduser()
    file = open_header(path).renamed(lambda key: _OLDER.get(key, key))
    file = file.only(lambda key: key not in COUNTERS)
    keys = list(file.shapes)
    pair = set(keys) <= {"clip_l", "clip_g"}
    if not keys or not (pair or len(keys) == 1):
        why = f"It has {len(keys)} keys: {name_some(keys) or 'none'}."
        hint = "An embedding has one key, or clip_l and clip_g. If it is a LoRA, use it as one."
        raise FileError(f"{path} is no single textual inversion.", why, hint)
    vectors: dict[str, Tensor] = {}
    for key, tensor in read_tensors(file, torch.device("cpu"), None).items():
        rows = tensor[None] if tensor.ndim == 1 else tensor
        if rows.ndim != 2 or not rows.numel() or key in file.integers:
            why = f"{key:.120} is {tuple(tensor.shape)}; it must be (n, D) real numbers."
            raise FileError(f"{path} holds no vectors.", why, "Take it from another source.")
        vectors[key if pair else ""] = rows
    if len({len(rows) for rows in vectors.values()}) > 1:
        why = " and ".join(f"{key} has {len(rows)}" for key, rows in vectors.items()) + "."
        hint = "Take it from another source."
        raise FileError(f"{path} has another number of vectors for each encoder.", why, hint)
    inside = file.metadata.get("name") if keys[0] in _NAMELESS else keys[0]
    word = path.stem if token is None and not inside else token or inside or ""
    if not word.strip() or len(word) > LONGEST_WORD or not word.isprintable():
        why = f"It is {word!r:.80}."
        hint = "Save it again under a word that can be typed."
        raise FileError(f"{path} cannot be called by its token.", why, hint)
    return Embedding(path, path.stem, file_hash(path), word.strip(), vectors)


def bundled_words(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Embedding, ...]:
    """The learned words in a LoRA file: `bundle_emb.TOKEN.clip_l`, `.clip_g`, `.emb_params`, or
    `.string_to_param.*`, as OneTrainer writes them. Raises FileError."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        _, token, kind = [*key.split(".", 2), "", ""][:3]
        word = token.strip() == token and token.isprintable() and 0 < len(token) <= LONGEST_WORD
        if not word or kind not in _NAMELESS or tensor.ndim != 2 or not tensor.numel():
            why = f"{key:.120} is {tuple(tensor.shape)}; it must be the (n, D) vectors of a word."
            raise FileError(f"{path} holds a word that cannot be.", why, "Take it from elsewhere.")
        part = kind if kind in VECTORS_OF.values() else ""
        if found.setdefault(token, {}).setdefault(part, tensor) is not tensor:
            why = f"{token!r:.80} is in it twice."
            raise FileError(f"{path} holds a word that cannot be.", why, "Take it from elsewhere.")
    digest = file_hash(path) if found else ""
    return tuple(Embedding(path, word, digest, word, vectors) for word, vectors in found.items())


@with_own_torch_state
def apply_embeddings(
    pipe: ModelT,
    embeddings: Sequence[Embedding],
    *,
    dialect: str = "plain",
    bundled: bool = False,
) -> ModelT:
    """A model whose prompts may use learned words; `pipe` itself stays as it is.

    Words that `pipe` was taught already stay known. `embeddings` of what comes back says which
    words it has; its tokenizers know them.

    Args:
        dialect: of the prompts; says how they call an embedding, see `Embedding.trigger`.
        bundled: they lie in the file of a LoRA, see `EmbeddingOnModel`.

    Raises:
        FileError: an embedding was made for another family of models.
        UsageError: a word has a meaning already.
    """
    readers = {part: pipe.part(part) for part in pipe.kind.text_encoders}
    words = [embedding.trigger(dialect) for embedding in embeddings]
    # diffusers finds its tokens inside other words too; names of files must stand alone
    alone = dialect.startswith("a1111") or dialect == "comfy"
    changed: dict[str, Any] = {}
    for part, encoder in readers.items():
        name = TOKENIZER_OF[part]
        tokenizer: Tokenizer = getattr(pipe, name)
        vectors = [_fit(embedding, part, encoder, list(readers)) for embedding in embeddings]
        first = encoder.text_model.embeddings.token_embedding.num_embeddings
        learned: dict[str, _Word] = {}
        for word, embedding, rows in zip(words, embeddings, vectors, strict=True):
            _check_word(word, embedding, tokenizer, learned, len(rows))
            learned[word] = known = _Word(range(first, first := first + len(rows)), alone)
            if dialect == "comfy":  # which takes the file's name whole as well
                learned |= {f"{word}{suffix}": known for suffix in _COMFY_SUFFIXES}
        if learned:
            changed[name] = _LearnedTokenizer(tokenizer, learned)
            changed[part] = _with_rows(encoder, torch.cat(vectors))
    applied = tuple(
        EmbeddingOnModel(embedding.path, embedding.name, embedding.hash, word, bundled)
        for embedding, word in zip(embeddings, words, strict=True)
    )
    return pipe.replace(**changed, embeddings=(*pipe.embeddings, *applied))


def unused_words(pipe: Model, *prompts: str) -> tuple[str, ...]:
    """The learned words of a model that none of these prompts says, so that they have no effect."""
    tokenizer = pipe.readers[0][0]
    said = {word for prompt in prompts for word in tokenizer.learned_in(prompt)}
    return tuple(each.word for each in pipe.embeddings if each.word not in said)


@dataclass(frozen=True)
class _Word:
    """The ids of a learned word; `alone`: it is not found inside other words."""

    ids: range
    alone: bool


class _LearnedTokenizer(Tokenizer):
    """A tokenizer with learned words: each is one word of a prompt and several ids."""

    def __init__(self, base: Tokenizer, learned: Mapping[str, _Word]) -> None:
        super().__init__(base._files)
        earlier = base.learned if isinstance(base, _LearnedTokenizer) else {}
        self.learned: dict[str, _Word] = {**earlier, **learned}
        add_tokens = cast(Any, self._bpe.add_tokens)  # pyright: ignore[reportUnknownMemberType]
        add_tokens(
            [
                AddedToken(word, single_word=known.alone, normalized=True)
                for word, known in self.learned.items()
            ]
        )
        self._rows = {self._id(word): known.ids for word, known in self.learned.items()}
        self._words_of: dict[int, str] = {}
        for word, known in self.learned.items():
            for number in known.ids:
                self._words_of.setdefault(number, word)  # the first, where it has several

    def pieces(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for piece in super().pieces(text):
            row = self._rows.get(piece.id, range(piece.id, piece.id + 1))
            pieces += [replace(piece, id=number, joined=number > row.start) for number in row]
        return pieces

    def words(self, text: str, pieces: Sequence[Piece]) -> Iterator[tuple[str, int, int, range]]:
        found, rest = list[tuple[str, int, int, range]](), text
        for first, piece in enumerate(pieces):
            if piece.id in self._words_of and not piece.joined:
                last = first + 1
                while last < len(pieces) and pieces[last].joined:
                    last += 1
                start, end = piece.start, piece.end
                found.append((text[start:end], start, end, range(first, last)))
                rest = rest[:start] + " " * (end - start) + rest[end:]
        yield from sorted([*found, *super().words(rest, pieces)], key=lambda word: word[1])

    def learned_in(self, text: str) -> set[str]:
        """The learned words that a text says, also beyond what fits into the prompt."""
        return {self._words_of[p.id] for p in self.pieces(text) if p.id in self._words_of}

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        groups = groupby((int(number) for number in ids), self._words_of.get)
        texts = [word or Tokenizer.decode(self, group) for word, group in groups]
        return " ".join(text for text in texts if text)

    def save_pretrained(self, folder: str | Path) -> None:
        raise _cannot_save("tokenizer")


class _LearnedEmbedding(nn.Module):
    """A token embedding and, for ids behind its own, learned rows: ids (B, T) to (B, T, D)."""

    def __init__(self, base: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(rows, requires_grad=False)
        register = cast(Any, self.register_state_dict_pre_hook)  # pyright: ignore[reportUnknownMemberType]
        register(_refuse_saving)

    @property
    def num_embeddings(self) -> int:
        return self.base.num_embeddings + len(self.rows)

    def forward(self, ids: Tensor) -> Tensor:
        known = self.base.num_embeddings
        learned = ids >= known
        old = self.base(ids.masked_fill(learned, 0))
        new = self.rows[(ids - known).clamp_min(0)]
        return torch.where(learned[..., None], new, old)


def _with_rows(encoder: TextEncoder, rows: Tensor) -> TextEncoder:
    """A view of a text encoder with more rows (n, D) in its table, behind those that are there."""
    table: Any = encoder.text_model.embeddings.token_embedding
    if isinstance(table, _LearnedEmbedding):
        rows, table = torch.cat([table.rows, rows.to(table.rows)]), table.base
    learned = _LearnedEmbedding(table, rows.to(table.weight))
    return view(encoder, {"text_model.embeddings.token_embedding": learned})


def _refuse_saving(module: nn.Module, *_: Any) -> None:
    raise _cannot_save("text encoder")


def _cannot_save(what: str) -> UsageError:
    return UsageError(
        f"The {what} of a model with embeddings cannot be saved.",
        "The file would be of another model than the folder says.",
        "Save the model that the embeddings were applied to.",
    )


def _fit(embedding: Embedding, part: str, encoder: Any, parts: list[str]) -> Tensor:
    """An embedding's vectors for one text encoder, or FileError."""
    made_for, width = embedding.vectors, encoder.config.hidden_size
    rows = made_for.get(VECTORS_OF[part])
    if "" in made_for and len(parts) == 1:
        rows = made_for[""]
    pair = len(made_for) == 2
    other = (pair and parts == ["text_encoder"]) or rows is None or rows.shape[1] != width
    if not other and rows is not None:
        return rows
    widths = {key: made_for[key].shape[1] for key in sorted(made_for, reverse=True)}
    names = "SDXL" if pair else _FAMILIES.get(next(iter(widths.values())), "another model")
    shown = " and ".join(f"{key} {width}".strip() for key, width in widths.items())
    mine = "one text encoder" if len(parts) == 1 else " and ".join(parts)
    why = f"Its vectors are for {names}, {shown} wide; this model has {mine}, {part} {width} wide."
    hint = "Use an embedding that was trained on this family of models."
    raise FileError(f"{embedding.path} was made for another model.", why, hint)


def _check_word(
    word: str, embedding: Embedding, tokenizer: Tokenizer, taken: Iterable[str], vectors: int
) -> None:
    """UsageError where a word has a meaning already, or its vectors fit into no prompt."""
    earlier = tokenizer.learned if isinstance(tokenizer, _LearnedTokenizer) else {}
    others = [other for other in (*earlier, *taken) if other.lower() == word.lower()]
    if others or len(tokenizer.pieces(word)) <= 1:
        why = "The tokenizer knows it."
        if others:
            why = f"Another embedding is called {others[0]!r:.80}."
        hint = "Choose another token, or another name for the file where prompts call it by that."
        raise UsageError(f"{embedding.path}: the word {word!r:.80} is taken.", why, hint)
    if vectors > tokenizer.max_length - 2:
        why = f"It has {vectors} vectors, a prompt has room for {tokenizer.max_length - 2}."
        raise UsageError(f"{embedding.path} is too long for this model.", why, "Use another one.")
