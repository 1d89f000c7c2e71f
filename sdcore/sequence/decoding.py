"""Writing a text word by word with an encoder-decoder, recurrent or Transformer: greedy and beam.

Shapes: B sources, K beams, R = B K rows, T source tokens, n words so far, V target words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdcore.checks import as_finite, check_int, shown
from sdcore.errors import UsageError

MOST_BEAMS = 1000  # each is a row of the state, and of the logits


class EncoderDecoder(Protocol):
    """A network that reads a source once and then writes, such as `Transformer`.

    Its state goes from one word to the next. It has a row for each text that is written, and
    `pick(rows)` gives the state of some of them.
    """

    def start(self, source: Tensor, real: Tensor | None = None) -> Any: ...

    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]: ...


@torch.no_grad()
def greedy(
    model: EncoderDecoder,
    source: Tensor,
    real: Tensor | None = None,
    *,
    first: int,
    last: int | None,
    most: int,
) -> Tensor:
    """Write the most probable next word, again and again: sources (B, T) to ids (B, n), n <= most.

    Args:
        real: (B, T), False at padding of the source.
        first, last: ids that begin and end a text; after its end a row holds `last` alone. With
            None no word ends it, and every row has `most`.
        most: words after which a text is broken off.
    """
    _check(first, last, most, 1)
    state = model.start(source, real)
    word = source.new_full((len(source), 1), first)  #               (B, 1)
    ended = torch.zeros_like(word, dtype=torch.bool)
    words: list[Tensor] = []
    for _ in range(most):
        logits, state = model.step(word, state)  #                   (B, 1, V)
        word = logits.argmax(dim=-1)
        if last is not None:
            _check_end(last, logits)
            word = word.masked_fill(ended, last)
            ended = ended | (word == last)
        words.append(word)
        if ended.all():
            break
    return torch.cat(words, dim=1)


@dataclass(frozen=True)
class Beams:
    """Texts found by `beam_search`, the best first.

    words: (B, K, n) ids, without the first mark; after its end a row holds `last` alone.
    scores: (B, K) the logarithm of each text's probability, divided by the length penalty.
    """

    words: Tensor
    scores: Tensor


@torch.no_grad()
def beam_search(
    model: EncoderDecoder,
    source: Tensor,
    real: Tensor | None = None,
    *,
    first: int,
    last: int,
    most: int,
    beams: int = 4,
    length_penalty: float = 0.6,
) -> Beams:
    """Keep the `beams` most probable beginnings of a text, not the single best one, and extend all.

    Beginnings are kept by their probability; those that are left at the end are put in order by it
    too, its logarithm divided by ((5 + length) / 6) ** length_penalty (Wu et al. 2016,
    arXiv:1609.08144, equation 14), or else short texts would always win. 4 and 0.6 are the paper's
    (Vaswani et al. 2017, 6.1). One beam is `greedy`.

    Args:
        real, first, last, most: as for `greedy`.
    """
    _check(first, last, most, beams)
    if as_finite(length_penalty, -10, 10) is None:
        raise UsageError(
            f"length_penalty is {shown(length_penalty)}.",
            "It must be a number from -10 to 10.",
            "Use 0.6, or 0 for none.",
        )
    batch = len(source)
    rows = torch.arange(batch, device=source.device).repeat_interleave(beams)  # (R,)
    state = model.start(source, real).pick(rows)
    words = source.new_full((batch * beams, 1), first)  #                        (R, n)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    # All beams of a source begin alike: only one of them may be extended at first.
    scores = torch.full((batch, beams), -torch.inf, device=source.device)
    scores[:, 0] = 0
    for _ in range(most):
        logits, state = model.step(words[:, -1:], state)
        _check_end(last, logits)
        chances = logits[:, -1].float().log_softmax(dim=-1)  #                   (R, V)
        chances[ended] = -torch.inf  # an ended text goes on as it is, at no cost
        chances[ended, last] = 0.0
        extended = (scores.flatten()[:, None] + chances).view(batch, beams * chances.shape[1])
        scores, best = extended.topk(beams, dim=-1)
        beam, word = best // chances.shape[1], best % chances.shape[1]
        rows = (torch.arange(batch, device=source.device)[:, None] * beams + beam).flatten()
        words = torch.cat([words[rows], word.view(-1, 1)], dim=1)
        ended = ended[rows] | (words[:, -1] == last)
        state = state.pick(rows)
        if ended.all():
            break
    words = words[:, 1:].view(batch, beams, words.shape[1] - 1)
    # The length counts the end mark, which is a word like others to the model.
    length = ((words != last).sum(dim=-1) + 1).clamp(max=words.shape[-1])
    scores = scores / ((5 + length) / 6) ** length_penalty
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    return Beams(words.gather(1, order[..., None].expand_as(words)), scores)


def _check(first: int, last: int | None, most: int, beams: int) -> None:
    check_int("most", most, 1, hint="Use 1 or more.")
    check_int("beams", beams, 1, MOST_BEAMS, hint="4 are usual.")
    marks = {"first": first} if last is None else {"first": first, "last": last}
    for name, mark in marks.items():
        check_int(name, mark, 0, hint="Use the id of the mark in the vocabulary.")


def _check_end(last: int, logits: Tensor) -> None:
    """UsageError where the end is a word that the model never writes."""
    check_int("last", last, 0, logits.shape[-1] - 1, hint="Use the id of the mark.")
