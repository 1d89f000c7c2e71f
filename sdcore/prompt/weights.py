"""What the weight of a token does to the text encoder's states, as each tool does it.

Shapes: n chunks, L positions of a chunk, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sdcore.prompt.chunks import Chunks

# ids (n, L), mask (n, L) or None -> (n, L, D)
States = Callable[[Tensor, Tensor | None], Tensor]

# All texts that one prompt reads in the course of a run, equally long, and the empty prompt (L,),
# to the states (n, L, D) of each.
Weighing = Callable[[Sequence[Chunks], Tensor, States], list[Tensor]]


def unweighted(texts: Sequence[Chunks], empty: Tensor, states: States) -> list[Tensor]:
    """The states as they are."""
    return [states(text.ids, None) for text in texts]


def multiplied(texts: Sequence[Chunks], empty: Tensor, states: States) -> list[Tensor]:
    """z w: the web UI's emphasis "No norm"."""
    return [_times(states(text.ids, None), text.weights) for text in texts]


def multiplied_with_mean(texts: Sequence[Chunks], empty: Tensor, states: States) -> list[Tensor]:
    """z w, then scaled so that the mean of each chunk is what it was: the emphasis "Original".

    The web UI encodes all texts of a schedule at once, and takes the mean of all of them.
    """
    before = [states(text.ids, None) for text in texts]
    after = [_times(z, text.weights) for z, text in zip(before, texts, strict=True)]
    mean_before = torch.stack([z.mean(dim=(1, 2)) for z in before]).mean(dim=0)  # (n)
    mean_after = torch.stack([z.mean(dim=(1, 2)) for z in after]).mean(dim=0)
    if all(bool((text.weights == 1).all()) for text in texts):
        return before
    return [z * (mean_before / mean_after)[:, None, None] for z in after]


def from_empty(texts: Sequence[Chunks], empty: Tensor, states: States) -> list[Tensor]:
    """e + w (z - e), where e is the empty prompt at the same position: ComfyUI."""
    return [_from_empty(states(text.ids, None), text.weights, empty, states) for text in texts]


def masked_down(texts: Sequence[Chunks], empty: Tensor, states: States) -> list[Tensor]:
    """As from the empty prompt; and below 1 mixed with the text in which these words are masked.

    The mix has the weight tan((1 - w) π/2), which is 0 for w = 1, 1 for a half, and beyond all
    bounds for 0: compel.
    """
    return [_masked_down(text, empty, states) for text in texts]


def _masked_down(text: Chunks, empty: Tensor, states: States) -> Tensor:
    total = _from_empty(states(text.ids, None), text.weights, empty, states)
    shares = 1.0
    for weight, mask in _without(text):
        share = math.tan((1 - max(weight, 1e-5)) * math.pi / 2)
        total = total + share * _from_empty(states(text.ids, mask), text.weights, empty, states)
        shares += share
    return total / shares


def _without(text: Chunks) -> Iterator[tuple[float, Tensor]]:
    """Each run of tokens of one weight below 1, and the mask (n, L) that hides it."""
    length = text.ids.shape[1]
    weights = text.weights.flatten().tolist()
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


def _from_empty(z: Tensor, weights: Tensor, empty: Tensor, states: States) -> Tensor:
    if bool((weights == 1).all()):
        return z
    e = states(empty[None], None)  #                          (1, L, D)
    w = weights.to(z)[:, :, None]  #                          (n, L, 1)
    return torch.where(w == 1, z, e + w * (z - e))
