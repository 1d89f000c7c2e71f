"""Grounding: an object's words are to be read where that object stands.

With the loss of the picture alone, nothing asks the UNet to read "cat" where the cat is: any place
may read any token and hand on what it found. Scenes know where their objects are, so training can
ask for it, after the token loss of Wang et al. 2024 (TokenCompose, arXiv:2312.03626):

    loss = mean over layers and words of (1 - Σ_n P_n m_n / Σ_n P_n)²

where P_n is how much place n attends to the word and m_n how much of n the object covers. It says
where a word is read, not how much.

Shapes: B images, T text tokens, G words, N image tokens, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sdcore.attention import Attend, Site
from sdcore.heatmap import marked_attention
from sdcore.tokenizer import Tokenizer

OBJECTS = 2  # G: the most that a scene holds


class Grounding:
    """A control that changes nothing and collects the loss of every cross-attention.

    Args:
        marks: (B, T, G), 1 where a token belongs to a word; a word without any counts for nothing.
        masks: (B, G, H, W), what the word's object covers, 0 to 1.
    """

    def __init__(self, marks: Tensor, masks: Tensor) -> None:
        self.marks, self.masks = marks, masks
        self._losses: list[Tensor] = []

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if site.kind == "cross":
            maps = marked_attention(q, k, self.marks, v.shape[-1], attend)  # (B, N, G)
            self._losses.append(word_loss(maps, adaptive_avg_pool2d(self.masks, grid)))
        return attend(q, k, v)

    def loss(self) -> Tensor:
        """Mean over the layers that attended, the words and the images that have any; a scalar."""
        losses = torch.stack(self._losses).mean(0)  # (B, G)
        there = self.marks.any(1)
        return (losses * there).sum() / there.sum().clamp(min=1)


def word_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """(1 - share of a word's attention that lies on its object)²: (B, G).

    A coarse grid may have no place that an object fills: the fullest counts as full.

    Args:
        maps: (B, N, G), attention that each place gives each word.
        masks: (B, G, h, w), share of each place that the object covers.
    """
    covered = masks.flatten(2).transpose(1, 2)  # (B, N, G)
    covered = covered / covered.amax(1, keepdim=True).clamp(min=1e-6)
    inside = (maps * covered).sum(1) / maps.sum(1).clamp(min=1e-6)
    return (1 - inside).square()


def object_marks(tokenizer: Tokenizer, caption: str, names: tuple[str, ...]) -> Tensor:
    """(T, G): which tokens of a caption name each object; names come in the caption's order."""
    marks, pieces, start = torch.zeros(tokenizer.max_length, OBJECTS), tokenizer.pieces(caption), 0
    for column, name in enumerate(names):
        start = caption.find(name, start)
        if start < 0:
            raise ValueError(f"{caption!r} does not say {name!r}")
        end = start + len(name)
        for position, piece in enumerate(pieces[: tokenizer.max_length - 2], start=1):
            if piece.start < end and start < piece.end:
                marks[position, column] = 1
        start = end
    return marks
