"""The parts of the autoencoder: residual blocks, one attention, and one block for each level.

The names of parameters are diffusers'.

Shapes: B batch, C channels, h w grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.convolution import Convolution
from sdcore.image.autoencoder_config import AutoencoderConfig

_EPSILON = 1e-6  # of every GroupNorm here


class ResidualBlock(nn.Module):
    """Two convolutions around which the input flows: x (B, C, h, w)."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, _EPSILON)
        self.conv1 = Convolution(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, _EPSILON)
        self.conv2 = Convolution(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y


class Attention(nn.Module):
    """Every place of the grid reads every other one, with one head as wide as the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPSILON)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)  #             (B, h w, C)
        q, k, v = (part(tokens)[:, None] for part in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return out.transpose(1, 2).reshape(x.shape) + x


class MidBlock(nn.Module):
    """The work on the coarsest grid."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        groups = config.norm_num_groups
        attentions = [Attention(channels, groups)] if config.mid_block_add_attention else []
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """Halve the grid; padded at the right and below alone, as it was trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """One level of the encoder."""

    def __init__(self, channels: int, out_channels: int, config: AutoencoderConfig, last: bool):
        super().__init__()
        inputs = [channels] + [out_channels] * (config.layers_per_block - 1)
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(ResidualBlock(c, out_channels, groups) for c in inputs)
        self.downsamplers = None if last else nn.ModuleList([Downsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *(self.downsamplers or ())):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """One level of the decoder; it has one residual block more than the encoder's."""

    def __init__(self, channels: int, out_channels: int, config: AutoencoderConfig, last: bool):
        super().__init__()
        inputs = [channels] + [out_channels] * config.layers_per_block
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(ResidualBlock(c, out_channels, groups) for c in inputs)
        self.upsamplers = None if last else nn.ModuleList([Upsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *(self.upsamplers or ())):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) to mean and log variance of latents, (B, 2 C, h, w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = Convolution(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, config, last=i + 1 == len(widths))
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = MidBlock(widths[-1], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], _EPSILON)
        self.conv_out = Convolution(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (B, C, h, w) to pictures (B, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = Convolution(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, config, last=i + 1 == len(widths))
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = MidBlock(widths[0], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], _EPSILON)
        self.conv_out = Convolution(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
