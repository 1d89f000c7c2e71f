"""From attention to Transformers: the encoder-decoder of the lesson, and the UNet's spatial one.

An encoder block lets tokens look at one another, then thinks about each token alone. A decoder
block reads another sequence in between. The UNet's Transformer is a stack of decoder blocks whose
tokens are the positions of the latent grid and whose other sequence is the text.

Shapes: B batch, N tokens (of the image or the target), T tokens of the text or source, D width,
C channels, h w latent grid. Masks: see attention.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.attention import (
    Control,
    CrossAttention,
    SelfAttention,
    Site,
    causal_mask,
    padding_mask,
)
from sdcore.errors import UsageError

# --- positions ---------------------------------------------------------------------------------


def sinusoid(
    position: Tensor, width: int, *, cosine_first: bool = False, shift: float = 0.0
) -> Tensor:
    """Turn numbers into waves of geometrically spaced lengths: (n,) to (n, width), float32.

    Used for places in a sentence and for times of the diffusion alike (Vaswani et al. 2017, 3.5).

    Args:
        position: (n,) positions or times; fractions are fine.
        width: length of each vector; an odd one ends in a zero.
        cosine_first: cosines before sines (`flip_sin_to_cos`).
        shift: 1 makes the longest wave exactly 10000, 0 a little shorter (`freq_shift`).
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=position.device)
    frequencies = torch.exp(-math.log(10000) * exponents / (half - shift))
    angles = position.float()[:, None] * frequencies  # (n, half)
    waves = (angles.cos(), angles.sin()) if cosine_first else (angles.sin(), angles.cos())
    return F.pad(torch.cat(waves, dim=-1), (0, width % 2))


class SinusoidalPositions(nn.Module):
    """Add to each token the wave pattern of its place: x (B, N, D) to (B, N, D); any length."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        return x + sinusoid(place, x.shape[2]).to(x.dtype)


class LearnedPositions(nn.Module):
    """Add to each token a trained vector for its place: x (B, N, D), N at most `length`."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.weight):
            raise UsageError(
                f"a sequence of {x.shape[1]} tokens",
                f"learned positions exist for {len(self.weight)} tokens",
                "shorten the sequence, or use sinusoidal positions",
            )
        return x + self.weight[: x.shape[1]]


# --- blocks ------------------------------------------------------------------------------------


class GEGLU(nn.Module):
    """A linear layer whose one half gates the other (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """What a block does to each token alone: widen, gate, narrow."""

    def __init__(self, width: int, *, widen: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        inner = widen * width
        self.net = nn.Sequential(GEGLU(width, inner), nn.Dropout(dropout), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class EncoderBlock(nn.Module):
    """Tokens look at one another, then each is transformed alone: x (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = SelfAttention(width, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.ff = FeedForward(width, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x), mask)
        return x + self.ff(self.norm2(x))


class DecoderBlock(nn.Module):
    """Tokens look at one another, read the text, then each is transformed alone.

    x (B, N, D), text (B, T, text_width) to (B, N, D). With a causal `mask` this is the decoder of
    a translator, with none the block of the UNet (where it is known as BasicTransformerBlock).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        text_width: int,
        *,
        dropout: float = 0.0,
        site: Site | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = SelfAttention(width, heads, dropout=dropout, site=_part(site, "self"))
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = CrossAttention(
            width, heads, text_width, dropout=dropout, site=_part(site, "cross")
        )
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        x = x + self.attn1(self.norm1(x), mask, grid, control)
        x = x + self.attn2(self.norm2(x), text, text_mask, grid, control)
        return x + self.ff(self.norm3(x))


def _part(site: Site | None, kind: str) -> Site | None:
    """The site of a block's self- or cross-attention."""
    if site is None:
        return None
    layer = {"self": "attn1", "cross": "attn2"}[kind]
    return replace(site, kind=kind, name=f"{site.name}.{layer}")


# --- the encoder-decoder Transformer of the lesson ---------------------------------------------


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a small encoder-decoder Transformer; positions `sinusoidal` or `learned`."""

    source_words: int
    target_words: int
    width: int = 128
    heads: int = 4
    layers: int = 2
    dropout: float = 0.0
    positions: str = "sinusoidal"
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.positions not in ("sinusoidal", "learned"):
            raise UsageError(
                f"positions={self.positions!r}", "there is no such kind", "sinusoidal or learned"
            )


class Transformer(nn.Module):
    """The encoder-decoder Transformer (Vaswani et al. 2017), with norms before, not after.

    The encoder reads the whole source; the decoder predicts each next target word from the words
    before it and from the encoded source, exactly as the UNet predicts from its image tokens and
    the encoded text.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config
        self.source_words = nn.Embedding(c.source_words, c.width)
        self.target_words = nn.Embedding(c.target_words, c.width)
        self.source_positions = self._positions(c)
        self.target_positions = self._positions(c)
        self.encoder = nn.ModuleList(
            EncoderBlock(c.width, c.heads, dropout=c.dropout) for _ in range(c.layers)
        )
        self.encoder_norm = nn.LayerNorm(c.width)
        self.decoder = nn.ModuleList(
            DecoderBlock(c.width, c.heads, c.width, dropout=c.dropout) for _ in range(c.layers)
        )
        self.decoder_norm = nn.LayerNorm(c.width)
        self.to_words = nn.Linear(c.width, c.target_words)

    @staticmethod
    def _positions(config: TransformerConfig) -> nn.Module:
        if config.positions == "sinusoidal":
            return SinusoidalPositions()
        return LearnedPositions(config.max_tokens, config.width)

    def encode(self, source: Tensor, real: Tensor | None = None) -> Tensor:
        """source (B, T) ids to (B, T, D); `real` (B, T) is False at padding."""
        mask = None if real is None else padding_mask(real)
        x = self.source_positions(self.source_words(source))
        for block in self.encoder:
            x = block(x, mask)
        return self.encoder_norm(x)

    def decode(self, target: Tensor, text: Tensor, real: Tensor | None = None) -> Tensor:
        """target (B, N) ids and the encoded source (B, T, D) to logits (B, N, target_words)."""
        mask = causal_mask(target.shape[1], target.device)
        text_mask = None if real is None else padding_mask(real)
        x = self.target_positions(self.target_words(target))
        for block in self.decoder:
            x = block(x, text, mask, text_mask)
        return self.to_words(self.decoder_norm(x))

    def forward(self, source: Tensor, target: Tensor, real: Tensor | None = None) -> Tensor:
        return self.decode(target, self.encode(source, real), real)


# --- the spatial Transformer of the UNet -------------------------------------------------------


class SpatialTransformer(nn.Module):
    """A stack of decoder blocks over the positions of a feature map (Rombach et al. 2022, 3.3).

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
            DecoderBlock(channels, heads, text_width, site=_block_site(site, block))
            for block in range(layers)
        )
        self.proj_out = _projection(channels, linear_projection)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        control: Control | None = None,
    ) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        tokens = self._to_tokens(self.norm(x))  #            (B, C, h, w) -> (B, N, C), N = h w
        for block in self.transformer_blocks:
            tokens = block(tokens, text, None, text_mask, grid, control)
        return x + self._to_map(tokens, grid)  #             (B, N, C) -> (B, C, h, w)

    def _to_tokens(self, x: Tensor) -> Tensor:
        if self.linear_projection:
            return self.proj_in(x.permute(0, 2, 3, 1).flatten(1, 2))
        return self.proj_in(x).permute(0, 2, 3, 1).flatten(1, 2)

    def _to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.linear_projection:
            return self.proj_out(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
        return self.proj_out(tokens.unflatten(1, grid).permute(0, 3, 1, 2))


def _projection(channels: int, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def _block_site(site: Site | None, block: int) -> Site | None:
    if site is None:
        return None
    return replace(site, block=block, name=f"{site.name}.transformer_blocks.{block}")
