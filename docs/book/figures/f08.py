"""Page 8: a tiny Transformer that writes backwards: its beams as a tree, and what it reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from docs.book.book import Measured, left_by, term
from docs.book.drawing import FAINT, Svg
from sdcore import Transformer, beam_search

LETTERS, LENGTH = "<>abcdef", 4


def network() -> Transformer:
    """That of the page's code."""
    return left_by(8)["network"]


def measure(language: str) -> Measured:
    source = torch.tensor([[2, 3, 4, 5]])
    found = beam_search(
        network(), source, first=0, last=1, most=LENGTH + 1, beams=3, length_penalty=0.0
    )
    best = found.words[0, 0]
    weights = _read(source, best[None])  # (LENGTH, LENGTH)
    sheet = Svg(840, 300)
    sheet.text(12, 16, term("figure.tree", language), size=14, bold=True)
    _tree(sheet, source)
    written = [LETTERS[i] for i in best[:LENGTH]]
    read = [LETTERS[i] for i in source[0]]
    sheet.text(700, 250, term("figure.source", language), "middle", 12, FAINT)
    sheet.text(606, 150, term("figure.written", language), "middle", 12, FAINT, upright=True)
    sheet.matrix(weights, 640, 100, 34, rows=written, columns=read, numbers=True, size=16)
    stands = [read.index(letter) for letter in written]
    right = sum(int(row.argmax()) == place for row, place in zip(weights, stands, strict=True))
    return Measured(
        sheet,
        {
            "best": "".join(LETTERS[i] for i in best).rstrip(">"),
            "right": str(right),
            "count": str(LENGTH),
        },
        {
            "8.brute": torch.equal(_brute_force(source), best),
            "8.reads": right >= LENGTH - 1,
        },
    )


def _chances(source: Tensor, target: Tensor) -> Tensor:
    """Logarithms (R, n, V) of the chances of each next letter after targets (R, n)."""
    begun = torch.cat([torch.zeros(len(target), 1).long(), target], 1)
    return network()(source.expand(len(target), -1), begun).log_softmax(-1)


def _brute_force(source: Tensor) -> Tensor:
    """The most probable of all texts that end, padded with the end mark."""
    size, best = LENGTH + 1, (-math.inf, torch.zeros(0))
    for length in range(size):
        texts = list(itertools.product(range(2, 8), repeat=length))
        target = torch.tensor([[*text, *[1] * (size - length)] for text in texts])
        chances = _chances(source, target)[:, : length + 1]
        scores = chances.gather(2, target[:, : length + 1, None])[..., 0].sum(1)
        if float(scores.max()) > best[0]:
            best = float(scores.max()), target[int(scores.argmax())]
    return best[1]


def _read(source: Tensor, target: Tensor) -> Tensor:
    """What each written letter read of the source, mean over heads: (LENGTH, LENGTH)."""
    seen: dict[str, Tensor] = {}
    attention = network().decoder[0].cross_attention
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, out)
        )
        for name in ("to_q", "to_k")
    ]
    _chances(source, target[:, :LENGTH])
    for hook in hooks:
        hook.remove()
    q, k = (
        seen[name].unflatten(2, (attention.heads, -1)).transpose(1, 2) for name in ("to_q", "to_k")
    )
    weights = (q @ k.mT / q.shape[3] ** 0.5).softmax(-1).mean(1)[0]
    return weights[:LENGTH]


def next_chances(source: Tensor, text: str) -> Tensor:
    """Logarithms (V,) of the chances of each next letter."""
    ids = torch.tensor([[LETTERS.index(letter) for letter in text]]).long().view(1, -1)
    return _chances(source, ids)[0, -1]


def beams(source: Tensor, count: int) -> Iterator[list[tuple[float, str]]]:
    """The (log-probability, text) that are kept at each length, best first."""
    kept: list[tuple[float, str]] = [(0.0, "")]
    yield kept
    for _ in range(LENGTH + 1):
        grown = [each for each in kept if each[1].endswith(">")]
        for score, text in kept:
            if not text.endswith(">"):
                chances = next_chances(source, text).tolist()
                grown += [(score + c, text + LETTERS[i]) for i, c in enumerate(chances) if i]
        kept = sorted(grown, reverse=True)[:count]
        yield kept


def _tree(sheet: Svg, source: Tensor) -> None:
    """Three beginnings at each length, joined to those that they go on from."""
    sheet.text(24, 150, "<", "middle", 16)
    placed = {"": (30.0, 150.0)}
    for length, kept in enumerate([*beams(source, 3)][1:]):
        now = {}
        for row, (score, text) in enumerate(kept):
            x, y = 130.0 + 100 * length, 70.0 + 80 * row
            before = text[:-1] if text[:-1] in placed else text
            from_x, from_y = placed[before]
            sheet.line((from_x + 8, from_y), (x - 26, y))
            sheet.text(x, y - 9, text, "middle", 15, bold=row == 0)
            sheet.text(x, y + 10, f"{score:.1f}".replace("-0.0", "0.0"), "middle", 11, FAINT)
            now[text] = (x + 22, y)
        placed = now
