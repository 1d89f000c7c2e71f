"""What the weight of a token does to the text encoder's states, as each tool does it.

Shapes: n chunks, L positions of a chunk, T = n L text tokens, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sdcore.prompt.chunks import Chunks, TokenizedText
from sdcore.prompt.encoder import Encoder

# All texts that one passage has in the course of a run, equally long, to the states (n, L, D) of
# each.
Weighing = Callable[[Sequence[Chunks], Encoder], list[Tensor]]


def plain_states(texts: Sequence[TokenizedText], encoder: Encoder) -> list[Tensor]:
    """The states (T, D) of texts, as they are."""
    return [encoder.states(text.tokens.ids).flatten(0, 1) for text in texts]


def weighted_states(
    texts: Sequence[TokenizedText], encoder: Encoder, weigh: Weighing
) -> list[Tensor]:
    """The states (T, D) of texts, with weights, and clauses mixed from their passages.

    Args:
        texts: all of a prompt, in the order of time, equally long.
    """
    passages = zip(*(text.passages for text in texts), strict=True)  # each in the order of time
    weighed = [weigh(passage, encoder) for passage in passages]
    by_text = zip(*weighed, strict=True)  # of each text its passages, (n, L, D)
    return [_mix(text, states, encoder) for text, states in zip(texts, by_text, strict=True)]


def _mix(text: TokenizedText, states: Sequence[Tensor], encoder: Encoder) -> Tensor:
    """The states (n, L, D) of a text's passages as one row (T, D)."""
    rows: list[Tensor] = []
    passages = iter(states)
    for clause in text.clauses:
        shared = [share * next(passages) for share in clause.shares]
        z = torch.stack(shared).sum(dim=0)
        if clause.weight != 1:
            e = encoder.empty_states()  #                                (1, L, D)
            z = e + clause.weight * (z - e)
        rows.append(z.flatten(0, 1))
    return torch.cat(rows)


def multiplied(texts: Sequence[Chunks], encoder: Encoder) -> list[Tensor]:
    """z w: the web UI's emphasis "No norm"."""
    return [_times(encoder.states(text.ids), text.weights) for text in texts]


def multiplied_with_mean(texts: Sequence[Chunks], encoder: Encoder) -> list[Tensor]:
    """z w, then scaled so that the mean of each chunk is what it was: the emphasis "Original".

    The web UI encodes all texts of a schedule at once, and takes the mean of all of them.
    """
    before = [encoder.states(text.ids) for text in texts]
    after = [_times(z, text.weights) for z, text in zip(before, texts, strict=True)]
    mean_before = torch.stack([z.mean(dim=(1, 2)) for z in before]).mean(dim=0)  # (n)
    mean_after = torch.stack([z.mean(dim=(1, 2)) for z in after]).mean(dim=0)
    if all(bool((text.weights == 1).all()) for text in texts):
        return before
    return [z * (mean_before / mean_after)[:, None, None] for z in after]


def from_empty(texts: Sequence[Chunks], encoder: Encoder) -> list[Tensor]:
    """e + w (z - e), where e is the empty prompt at the same position: ComfyUI."""
    return [_from_empty(encoder.states(text.ids), text.weights, encoder) for text in texts]


def masked_down(texts: Sequence[Chunks], encoder: Encoder) -> list[Tensor]:
    """As from the empty prompt; and below 1 mixed with the text in which these words are masked.

    The mix has the weight tan((1 - w) π/2), which is 0 for w = 1, 1 for a half, and beyond all
    bounds for 0: compel.
    """
    return [_masked_down(text, encoder) for text in texts]


def _masked_down(text: Chunks, encoder: Encoder) -> Tensor:
    total = _from_empty(encoder.states(text.ids), text.weights, encoder)
    shares = 1.0
    for weight, mask in _without(text):
        share = math.tan((1 - max(weight, 1e-5)) * math.pi / 2)
        total = total + share * _from_empty(encoder.states(text.ids, mask), text.weights, encoder)
        shares += share
    return total / shares


def _without(text: Chunks) -> Iterator[tuple[float, Tensor]]:
    """Each run of tokens of one weight below 1, and the mask (n, L) that hides it."""
    length = text.ids.shape[1]
    weights = text.weights_in_a_row()
    runs: list[tuple[float, int, int]] = []
    previous = 1.0
    for number, count in enumerate(text.lengths):
        for position in range(number * length + 1, number * length + 1 + count):
            if weights[position] == previous and runs and previous < 1:
                runs[-1] = (previous, runs[-1][1], position)
            elif weights[position] < 1:
                runs.append((weights[position], position, position))
            previous = weights[position]
    for weight, first, last in runs:
        mask = torch.ones_like(text.ids, dtype=torch.bool)
        mask.view(-1)[first : last + 1] = False
        mask[:, 0] = mask[:, -1] = True  # the ends of a chunk stay
        yield weight, mask


def _times(z: Tensor, weights: Tensor) -> Tensor:
    return z * weights.to(z)[:, :, None]


def _from_empty(z: Tensor, weights: Tensor, encoder: Encoder) -> Tensor:
    if bool((weights == 1).all()):
        return z
    e = encoder.empty_states()  #                     (1, L, D)
    w = weights.to(z)[:, :, None]  #                          (n, L, 1)
    return torch.where(w == 1, z, e + w * (z - e))
