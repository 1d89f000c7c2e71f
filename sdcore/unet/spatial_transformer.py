"""The UNet's Transformer: decoder blocks over the latent grid, which read the text.

Shapes: B batch, N image tokens, T text tokens, D width, C channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.attention import (
    Control,
    CrossAttention,
    SelfAttention,
    Site,
    Text,
)


class GEGLU(nn.Module):
    """A linear layer whose one half gates the other (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gate = F.gelu(gate)
        # Where no gradient needs it, the gate's memory is used again: a third less to fill.
        return value * gate if gate.requires_grad else gate.mul_(value)


class FeedForward(nn.Module):
    """What a block does to each token alone: widen, gate, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 4 * width
        # The second place is empty: the published name of the last layer is net.2.
        self.net = nn.Sequential(GEGLU(width, inner), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SpatialBlock(nn.Module):
    """A decoder block as the UNet has it (known as BasicTransformerBlock).

    x (B, N, C), text (B, T, text_width) to (B, N, C). Other than in 2017, the norm comes before
    each layer (Xiong et al. 2020, arXiv:2002.04745), a gate is in the feed-forward part, and image
    tokens see all others, later ones too.
    """

    def __init__(
        self, width: int, heads: int, text_width: int, *, site: Site | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = SelfAttention(width, heads, site=_part(site, "self"))
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = CrossAttention(width, heads, text_width, site=_part(site, "cross"))
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self,
        x: Tensor,
        text: Text,
        text_mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        x = x + self.attn1(self.norm1(x), None, grid, control)
        x = x + self.attn2(self.norm2(x), text, text_mask, grid, control)
        return x + self.ff(self.norm3(x))


def _part(site: Site | None, kind: str) -> Site | None:
    """The site of a block's self- or cross-attention."""
    if site is None:
        return None
    layer = {"self": "attn1", "cross": "attn2"}[kind]
    return replace(site, kind=kind, name=f"{site.name}.{layer}")


class SpatialTransformer(nn.Module):
    """A stack of such blocks over the positions of a feature map (Rombach et al. 2022, 3.3).

    x (B, C, h, w), text (B, T, text_width) to (B, C, h, w). `linear_projection` applies the
    projections to tokens (SD 2, SDXL), otherwise they are 1x1 convolutions (SD 1).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        text_width: int,
        *,
        layers: int = 1,
        groups: int = 32,
        linear_projection: bool = False,
        site: Site | None = None,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = _projection(channels, linear_projection)
        self.transformer_blocks = nn.ModuleList(
            SpatialBlock(channels, heads, text_width, site=_block_site(site, block))
            for block in range(layers)
        )
        self.proj_out = _projection(channels, linear_projection)

    def forward(
        self,
        x: Tensor,
        text: Text,
        text_mask: Tensor | None = None,
        control: Control | None = None,
    ) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        tokens = self._to_tokens(self.norm(x))  #            (B, C, h, w) -> (B, N, C), N = h w
        for block in self.transformer_blocks:
            tokens = block(tokens, text, text_mask, grid, control)
        return x + self._to_map(tokens, grid)  #             (B, N, C) -> (B, C, h, w)

    def _to_tokens(self, x: Tensor) -> Tensor:
        if self.linear_projection:
            return self.proj_in(x.permute(0, 2, 3, 1).flatten(1, 2))
        return self.proj_in(x).permute(0, 2, 3, 1).flatten(1, 2)

    def _to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.linear_projection:
            return self.proj_out(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
        return self.proj_out(torch.unflatten(tokens, 1, grid).permute(0, 3, 1, 2))


def _projection(channels: int, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def _block_site(site: Site | None, block: int) -> Site | None:
    if site is None:
        return None
    return replace(site, block=block, name=f"{site.name}.transformer_blocks.{block}")
