"""Answers to the exercises of docs/book: the right one of each page, wrong ones by their hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def _shapes(h, w, b, factor=8):
    return {
        "ids": (b, 32),
        "text": (b, 32, 256),
        "latents": (b, 4, h // factor, w // factor),
        "pixels": (b, 3, h, w),
    }


def _sizes(height, width, factor=8, channels=4):
    h, w = height // factor, width // factor
    return (channels, h, w), (height * width) ** 2, (h * w) ** 2


def _logit(share):
    return math.log(share / (1 - share))


def _key(q, others, share, score=None):
    d = len(q)
    if score is None:
        score = torch.logit(torch.tensor(share).double()) + (others @ q / d**0.5).logsumexp(0)
    return score * d**0.5 * q / (q @ q)


def _heads(length, noun, large=100.0, shift=-1):
    scores = torch.zeros(2, length, length)
    for t in range(length):
        scores[0, t, min(max(t + shift, 0), length - 1)] = large
    scores[1, :, noun] = large
    return scores


def _noun_row(length, noun):
    scores = _heads(length, noun)
    scores[1] = scores[1].T.clone()
    return scores


def _step(q, k, v, kept, scale=None):
    if kept is not None:
        k, v = torch.cat([kept[0], k]), torch.cat([kept[1], v])
    scale = q.shape[1] ** -0.5 if scale is None else scale
    return (scale * q @ k.T).softmax(1) @ v, (k, v)


def _step_with_queries(q, k, v, kept):
    out, kept = _step(q, q, v, kept)
    return out, kept


def _online(q, blocks, rescale=True, divide=True):
    top, total, out = torch.full((len(q), 1), -torch.inf).double(), 0, 0
    for k, v in blocks:
        scores = q @ k.T
        now = torch.maximum(top, scores.amax(1, keepdim=True))
        old = (top - now).exp() if rescale else 1
        weights = (scores - now).exp()
        total, out, top = old * total + weights.sum(1, keepdim=True), old * out + weights @ v, now
    return out / total if divide else out


def _each(q, blocks):
    return torch.stack([(q @ k.T).softmax(1) @ v for k, v in blocks]).mean(0)


def _place(weights, grid, token):
    return divmod(int(weights[:, token].argmax()), grid[1])


def _teach(W, word, key):
    return W + torch.outer(key - W @ word, word) / (word @ word)


def _flipped(axis, kinds=("cross",)):
    def control(site, grid, q, k, v, attend):
        if site.kind in kinds:
            q = q.unflatten(2, grid).flip(axis).flatten(2, 3)
        return attend(q, k, v)

    return control


RIGHT: dict[int, Callable[..., Any]] = {
    1: _shapes,
    2: lambda x, clean, sigma, then: x + (then - sigma) * (x - clean) / sigma,
    3: _sizes,
    4: lambda steps, keep: _logit(keep ** (1 / steps)),
    5: _key,
    6: _heads,
    7: lambda positions, mask: not positions and not mask,
    8: _step,
    9: _online,
    10: _place,
    11: lambda tokens, h, w: tokens.unflatten(1, (h, w)).permute(0, 3, 1, 2),
    12: lambda: ["down.2.0", "mid.2.0", "up.2.0"],
    13: _teach,
    14: _flipped(3),
}

WRONG: dict[int, dict[str, Callable[..., Any]]] = {
    1: {
        "turned": lambda h, w, b: _shapes(w, h, b),
        "one": lambda h, w, b: _shapes(h, w, 1),
        "four": lambda h, w, b: _shapes(h, w, b, 4),
    },
    2: {
        "away": lambda x, clean, sigma, then: x - (then - sigma) * (x - clean) / sigma,
        "undivided": lambda x, clean, sigma, then: x + (then - sigma) * (x - clean),
        "jump": lambda x, clean, sigma, then: clean,
    },
    3: {
        "turned": lambda h, w: _sizes(w, h),
        "colors": lambda h, w: _sizes(h, w, channels=3),
        "four": lambda h, w: _sizes(h, w, factor=4),
    },
    4: {
        "once": lambda steps, keep: _logit(keep),
        "gate": lambda steps, keep: keep ** (1 / steps),
        "one_less": lambda steps, keep: _logit(keep ** (1 / (steps - 1))),
    },
    5: {
        "unscaled": lambda q, others, share: _key(q, others, share) / len(q) ** 0.5,
        "others": lambda q, others, share: _key(
            q, others, share, torch.logit(torch.tensor(share).double())
        ),
        "length": lambda q, others, share: _key(q, others, share) * (q @ q),
    },
    6: {
        "right": lambda length, noun: _heads(length, noun, shift=1),
        "soft": lambda length, noun: _heads(length, noun, large=1.0),
        "row": _noun_row,
    },
    7: {
        "positions": lambda positions, mask: not positions,
        "mask": lambda positions, mask: not mask,
        "either": lambda positions, mask: not positions or not mask,
    },
    8: {
        "forgets": lambda q, k, v, kept: (v, (k, v)),
        "query": _step_with_queries,
        "unscaled": lambda q, k, v, kept: _step(q, k, v, kept, scale=1.0),
    },
    9: {
        "rescale": lambda q, blocks: _online(q, blocks, rescale=False),
        "total": lambda q, blocks: _online(q, blocks, divide=False),
        "each": _each,
    },
    10: {
        "turned": lambda weights, grid, token: _place(weights, grid, token)[::-1],
        "height": lambda weights, grid, token: _place(weights, grid[::-1], token),
        "row": lambda weights, grid, token: divmod(int(weights[token].argmax()), grid[1]),
    },
    11: {
        "mixed": lambda tokens, h, w: tokens.reshape(len(tokens), -1, h, w),
        "last": lambda tokens, h, w: tokens.unflatten(1, (h, w)),
        "columns": lambda tokens, h, w: tokens.unflatten(1, (w, h)).permute(0, 3, 2, 1),
    },
    12: {
        "unknown": lambda: ["down.2.0", "mid.2.0", "up.9.0"],
        "few": lambda: ["mid.2.0"],
        "visible": lambda: ["down.2.0", "mid.2.0", "up.1.0"],
    },
    13: {
        "length": lambda W, word, key: W + torch.outer(key - W @ word, word),
        "turned": lambda W, word, key: W + torch.outer(word, key - W @ word) / (word @ word),
        "forgets": lambda W, word, key: torch.outer(key, word) / (word @ word),
    },
    14: {
        "self": _flipped(3, ("cross", "self")),
        "nothing": lambda site, grid, q, k, v, attend: attend(q, k, v),
        "rows": _flipped(2),
    },
}
