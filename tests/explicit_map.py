"""The controls once more, with the attention map P written out: what sdcore never computes.

P (B, H, N, T) is formed, changed as the papers say, and only then multiplied with the values.

Shapes as in sdcore.attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdcore.attention import BACKENDS, _LayerAttend


def attention_map(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """P (B, H, N, T)."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if mask is None:
        return scores.softmax(dim=-1)
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).nan_to_num(0.0)


def region_map(
    q: Tensor, k: Tensor, masks: Tensor, slices: list[slice], mask: Tensor | None = None
) -> Tensor:
    """P of a picture whose places read different parts of the text; masks (R, h, w)."""
    out = torch.zeros(*q.shape[:3], k.shape[2], dtype=q.dtype)
    for one, part in zip(masks.to(q.dtype), slices, strict=True):
        own = attention_map(q, k[:, :, part], None if mask is None else mask[..., part])
        out[..., part] = one.flatten()[:, None] * own
    return out


def edited_map(p: Tensor, prompts: int, moved: Tensor, own: Tensor) -> Tensor:
    """P of a source and its edits: rows of the source as they are; moved (E, T, T), own (E, T)."""
    count = len(p) // prompts
    rows = [p[:count]]
    for edit in range(prompts - 1):
        mine = p[(edit + 1) * count : (edit + 2) * count]
        rows.append(p[:count] @ moved[edit].to(p) + mine * own[edit].to(p))
    return torch.cat(rows)


def injected_map(p: Tensor, prompts: int) -> Tensor:
    """P of a source, for the source and all its edits."""
    return p[: len(p) // prompts].repeat(prompts, 1, 1, 1)


def heat(p: Tensor, marks: Tensor) -> Tensor:
    """Maps of marked columns, mean over heads: (B, N, G)."""
    marks = marks.repeat_interleave(len(p) // len(marks), dim=0).to(p)
    return (p @ marks[:, None]).mean(dim=1)


def make_attend(backend: str, mask: Tensor | None = None) -> _LayerAttend:
    """What a layer hands to its control."""
    return _LayerAttend(BACKENDS[backend], mask)
