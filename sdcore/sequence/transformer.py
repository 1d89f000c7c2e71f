"""The Transformer of 2017: an encoder that reads a text and a decoder that writes another.

An encoder block is self-attention and then a small network on each token alone. A decoder block
reads another sequence in between. The UNet's Transformer, unet/spatial_transformer.py, is a stack
of such decoder blocks whose tokens are the positions of the latent grid, and which read the text.

Shapes: B batch, N tokens (of the image or the target), T tokens of the text or source, D width,
V target words, C channels, h w latent grid. Masks: see attention.py. Sections and numbers in
brackets are those of "Attention Is All You Need" (Vaswani et al. 2017, arXiv:1706.03762).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from sdcore.attention import AttentionLayer
from sdcore.attention_inputs import causal_mask, padding_mask
from sdcore.checks import check_int
from sdcore.errors import UsageError
from sdcore.positions import SinusoidalPositions
from sdcore.text.config import LAYERS_LIMIT, SIZE_LIMIT
from sdcore.text.encoder import check_vocabulary, check_words

# --- positions ---------------------------------------------------------------------------------


# --- the encoder-decoder Transformer of 2017 ---------------------------------------------------

KeysValues = tuple[Tensor, Tensor]  # what can be read: keys and values, (B, T, D) each


class MultiHeadAttention(AttentionLayer):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_H) Wo  (3.2.2): x (B, N, D) to (B, N, D).

    What is read is handed over as keys and values: of the tokens themselves it is self-attention,
    of another sequence cross-attention, and a decoder can keep those of the words it has written.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
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
    """Sizes of an encoder-decoder Transformer; the paper's base model is 512, 8, 6.

    Raises:
        UsageError: a size below 1, or heads that do not divide the width.
    """

    source_words: int
    target_words: int
    width: int = 128
    heads: int = 4
    layers: int = 2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = LAYERS_LIMIT if name == "layers" else SIZE_LIMIT
            number = check_int(f"The setting {name}", value, 1, most, hint="Use 1 or more.")
            object.__setattr__(self, name, number)
        if self.width % self.heads:
            raise UsageError(
                f"The setting heads is {self.heads}.",
                f"It does not divide width = {self.width}.",
                "Use a number of heads that divides the width.",
            )


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
    the encoded text. `sdcore.sequence.decoding` writes texts with it. Dropout (5.4) is left out.
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
        check_vocabulary(source, self.config.source_words)
        mask = None if real is None else padding_mask(real, source)
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
        check_words(words, self.config.target_words, len(state.words[0][0]))
        written = state.words[0][0].shape[1]
        mask = causal_mask(words.shape[1], words.device, before=written)  #   (N, n + N)
        x = self.target_words(words) * math.sqrt(self.config.width)
        x = self.positions(x, written)
        kept: list[Tensor] = []
        for block, before, source in zip(self.decoder, state.words, state.source, strict=True):
            x, now = block(x, before, source, mask, state.source_mask)
            kept.append(now)
        logits = x @ self.target_words.weight.T  # one matrix reads and writes words (3.4)
        return logits, replace(state, words=tuple(kept))

    def forward(self, source: Tensor, target: Tensor, real: Tensor | None = None) -> Tensor:
        """source (B, T) and target (B, N) ids to logits (B, N, V): in training, one step."""
        return self.step(target, self.start(source, real))[0]


# --- the spatial Transformer of the UNet -------------------------------------------------------
