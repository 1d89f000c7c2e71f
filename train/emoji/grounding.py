"""Grounding: an object's words are to be read where that object stands.

With the loss of the picture alone, nothing asks the UNet to read "cat" where the cat is: any place
may read any token and hand on what it found. Scenes know where their objects are, so training can
ask for it, after the token loss of Wang et al. 2024 (TokenCompose, arXiv:2312.03626):

    loss = mean over words of (1 - Σ_n P_n m_n / Σ_n P_n)²

where P_n is how much place n attends to the word, mean of all layers and heads, and m_n how much of
n the object covers. It is asked of the mean, which is the word's heatmap, and not of every layer:
the first layers cannot know yet where anything will stand, but they can leave the word to others.

Shapes: B images, T text tokens, G words, N image tokens, h w token grid, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from sdcore.attention import Attend, Site
from sdcore.control.heatmaps import marked_attention
from sdcore.text.tokenizer import Tokens

OBJECTS = 2  # G: the most that a scene holds


class Grounding:
    """A control that changes nothing and keeps the heatmaps of one pass of the UNet.

    Args:
        marks: (B, T, G), 1 where a token belongs to a word; a word without any counts for nothing.
        masks: (B, G, H, W), what the word's object covers, 0 to 1.
    """

    def __init__(self, marks: Tensor, masks: Tensor) -> None:
        self.marks, self.masks = marks, masks
        self._maps: list[Tensor] = []  # (B, G, h, w) of each cross-attention, on its own grid

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if site.kind == "cross":
            maps = marked_attention(q, k, self.marks, v.shape[-1], attend)  # (B, N, G)
            self._maps.append(maps.transpose(1, 2).unflatten(2, grid))
        return attend(q, k, v)

    def loss(self) -> Tensor:
        """Mean over the images' words; a scalar."""
        finest = max((maps.shape[-2:] for maps in self._maps), key=lambda grid: grid[0])
        alike = [interpolate(maps, finest, mode="bilinear") for maps in self._maps]
        heat = torch.stack(alike).mean(0)  # (B, G, h, w)
        there = self.marks.any(1)
        losses = word_loss(heat, adaptive_avg_pool2d(self.masks, (finest[0], finest[1])))
        return (losses * there).sum() / there.sum().clamp(min=1)


def word_loss(heat: Tensor, masks: Tensor) -> Tensor:
    """(1 - share of a word's attention that lies on its object)²: (B, G).

    A coarse grid may have no place that an object fills: the fullest counts as full.

    Args:
        heat: (B, G, h, w), attention that each place gives each word.
        masks: (B, G, h, w), share of each place that the object covers.
    """
    covered = masks / masks.amax((2, 3), keepdim=True).clamp(min=1e-6)
    inside = (heat * covered).sum((2, 3)) / heat.sum((2, 3)).clamp(min=1e-6)
    return (1 - inside).square()


def object_marks(
    tokens: Tokens, captions: Sequence[str], names: Sequence[tuple[str, ...]]
) -> Tensor:
    """Which tokens of each caption name its objects, (B, T, G); names come in the caption's order.

    Raises:
        ValueError: a caption does not say a name.
    """
    marks = torch.zeros(*tokens.ids.shape, OBJECTS)
    for row, caption, called, spans in zip(marks, captions, names, tokens.spans, strict=True):
        start = 0
        for column, name in enumerate(called):
            # No part of a word: "die" is not in "gradient". A Chinese name may be part of a piece.
            found = re.compile(f"(?<![a-z]){re.escape(name)}(?![a-z])").search(caption, start)
            if found is None:
                raise ValueError(f"{caption!r} does not say {name!r}")
            begin, start = found.span()
            for span in spans:
                if span.start < start and begin < span.end:
                    row[span.positions.start : span.positions.stop, column] = 1
    return marks
