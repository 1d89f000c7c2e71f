"""From attention to Transformers: the encoder-decoder of 2017, and the UNet's spatial one.

An encoder block lets tokens look at one another, then thinks about each token alone. A decoder
block reads another sequence in between. The UNet's Transformer is a stack of such decoder blocks
whose tokens are the positions of the latent grid and whose other sequence is the text.

Shapes: B batch, N tokens (of the image or the target), T tokens of the text or source, D width,
V target words, C channels, h w latent grid. Masks: see attention.py. Sections and numbers in
brackets are those of "Attention Is All You Need" (Vaswani et al. 2017, arXiv:1706.03762).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.attention import (
    AttentionLayer,
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

    Used for places in a sentence and for times of the diffusion alike (3.5; there sines and
    cosines take turns, here each kind stands together, which only numbers the D places anew).

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
    """Add to each token the wave pattern of its place: x (B, N, D) to (B, N, D); any length.

    `first` is the place of the first token given, where those before it are already written.
    """

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        place = torch.arange(first, first + x.shape[1], device=x.device)
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


# --- the encoder-decoder Transformer of 2017 ---------------------------------------------------

KeysValues = tuple[Tensor, Tensor]  # what can be read: keys and values, (B, T, D) each


class MultiHeadAttention(AttentionLayer):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_H) Wo  (3.2.2): x (B, N, D) to (B, N, D).

    What is read is handed over as keys and values: of the tokens themselves it is self-attention,
    of another sequence cross-attention, and a decoder can keep those of the words it has written.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(heads)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        return self.to_k(tokens), self.to_v(tokens)

    def forward(self, x: Tensor, read: KeysValues, mask: Tensor | None = None) -> Tensor:
        return self.to_out(self.attend(self.to_q(x), *read, mask))


def feed_forward(width: int) -> nn.Module:
    """FFN(x) = max(0, x W1 + b1) W2 + b2  (2), on each token alone, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))


class EncoderBlock(nn.Module):
    """Tokens look at one another, then each is transformed alone (3.1): x (B, T, D) to (B, T, D).

    Around each of the two stands LayerNorm(x + Sublayer(x)).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        read = self.self_attention.keys_values(x)
        x = self.norm1(x + self.self_attention(x, read, mask))
        return self.norm2(x + self.feed_forward(x))


class DecoderBlock(nn.Module):
    """Words look at those before them, read the source, then each is transformed alone (3.1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        before: KeysValues,
        source: KeysValues,
        mask: Tensor,
        source_mask: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Words x (B, N, D) to (B, N, D), and keys and values of all words up to now.

        Args:
            before: of the n words already written, (B, n, D).
            source: of the encoded source, (B, T, D).
            mask: (N, n + N), which words each may read.
        """
        keys, values = self.self_attention.keys_values(x)
        words = torch.cat([before[0], keys], dim=1), torch.cat([before[1], values], dim=1)
        x = self.norm1(x + self.self_attention(x, words, mask))
        x = self.norm2(x + self.cross_attention(x, source, source_mask))
        return self.norm3(x + self.feed_forward(x)), words


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of an encoder-decoder Transformer; the paper's base model is 512, 8, 6."""

    source_words: int
    target_words: int
    width: int = 128
    heads: int = 4
    layers: int = 2


@dataclass(frozen=True)
class TransformerState:
    """What the decoder keeps from one word to the next; one entry for each of its blocks.

    source: keys and values of the encoded source, (B, T, D); words: of the n words written so far,
    (B, n, D). No word's keys and values are ever computed twice.
    """

    source: tuple[KeysValues, ...]
    words: tuple[KeysValues, ...]
    source_mask: Tensor | None  # (B, 1, 1, T)

    def pick(self, rows: Tensor) -> TransformerState:
        """The state of some rows of the batch, in their order; a row may come more than once."""
        mask = None if self.source_mask is None else self.source_mask[rows]
        kept = [tuple((k[rows], v[rows]) for k, v in each) for each in (self.source, self.words)]
        return TransformerState(kept[0], kept[1], mask)


class Transformer(nn.Module):
    """The encoder-decoder Transformer: no recurrence, so all words of a text are read at once.

    The encoder reads the whole source; the decoder predicts each next target word from the words
    before it and from the encoded source, exactly as the UNet predicts from its image tokens and
    the encoded text. `sdcore.decoding` writes texts with it. Dropout (5.4) is left out.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.source_words = nn.Embedding(c.source_words, c.width)
        self.target_words = nn.Embedding(c.target_words, c.width)
        self.positions = SinusoidalPositions()
        self.encoder = nn.ModuleList(EncoderBlock(c.width, c.heads) for _ in range(c.layers))
        self.decoder = nn.ModuleList(DecoderBlock(c.width, c.heads) for _ in range(c.layers))
        for name, parameter in self.named_parameters():
            if name.endswith("_words.weight"):
                nn.init.normal_(parameter, std=c.width**-0.5)  # times √D: as large as the waves
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(self, source: Tensor, real: Tensor | None = None) -> Tensor:
        """source (B, T) ids to (B, T, D); `real` (B, T) is False at padding."""
        mask = None if real is None else padding_mask(real)
        x = self.positions(self.source_words(source) * math.sqrt(self.config.width))  # 3.4, 3.5
        for block in self.encoder:
            x = block(x, mask)
        return x

    def start(self, source: Tensor, real: Tensor | None = None) -> TransformerState:
        """Read a source (B, T) to write its target: no words yet."""
        text = self.encode(source, real)
        nothing = text[:, :0]  #                                              (B, 0, D)
        blocks = cast("list[DecoderBlock]", list(self.decoder))
        return TransformerState(
            source=tuple(block.cross_attention.keys_values(text) for block in blocks),
            words=((nothing, nothing),) * len(blocks),
            source_mask=None if real is None else padding_mask(real),
        )

    def step(self, words: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """Words (B, N) that follow those of the state to logits (B, N, V) of what comes next."""
        written = state.words[0][0].shape[1]
        mask = causal_mask(written + words.shape[1], words.device)[written:]  # (N, n + N)
        x = self.target_words(words) * math.sqrt(self.config.width)
        x = self.positions(x, written)
        kept = []
        for block, before, source in zip(self.decoder, state.words, state.source, strict=True):
            x, now = block(x, before, source, mask, state.source_mask)
            kept.append(now)
        logits = x @ self.target_words.weight.T  # one matrix reads and writes words (3.4)
        return logits, replace(state, words=tuple(kept))

    def forward(self, source: Tensor, target: Tensor, real: Tensor | None = None) -> Tensor:
        """source (B, T) and target (B, N) ids to logits (B, N, V): in training, one step."""
        return self.step(target, self.start(source, real))[0]


# --- the spatial Transformer of the UNet -------------------------------------------------------


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
        text: Tensor,
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
        text: Tensor,
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
        return self.proj_out(tokens.unflatten(1, grid).permute(0, 3, 1, 2))


def _projection(channels: int, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def _block_site(site: Site | None, block: int) -> Site | None:
    if site is None:
        return None
    return replace(site, block=block, name=f"{site.name}.transformer_blocks.{block}")
