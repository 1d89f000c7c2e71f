"""The parts of the UNet: residual blocks, resampling, and one block per level on each way.

Shapes: B images, R rows (B, or several texts for each image), C channels, h w grid, T text tokens,
D text width, E time width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from sdcore.attention import Control, Site, Text
from sdcore.convolution import Convolution
from sdcore.unet.config import MID_TYPES, Level, UNetConfig
from sdcore.unet.spatial_transformer import SpatialTransformer

ACTIVATIONS = {"silu": F.silu, "swish": F.silu, "mish": F.mish, "gelu": F.gelu, "relu": F.relu}


def time_width(config: UNetConfig) -> int:
    """E, the width of the time embedding."""
    return 4 * config.block_out_channels[0]


class Conditions(NamedTuple):
    """What every block receives besides the picture, unchanged.

    There may be several texts for each image: R rows, text by text. Until a layer reads the text,
    the rows of an image are the same, and are computed once: x then has B rows.
    """

    time: Tensor  # (R, E)
    text: Text  # (R, T, D)
    text_mask: Tensor | None  # (R, 1, 1, T)
    control: Control | None
    recompute: bool = False  # for the backward pass, instead of keeping what layers computed

    def residual(self, block: nn.Module, x: Tensor) -> Tensor:
        """What a residual block makes of x, (B, C, h, w) or (R, C, h, w)."""
        return self._run(block, x, self.time[: len(x)])

    def attend(self, transformer: nn.Module, x: Tensor) -> Tensor:
        """What a spatial Transformer makes of x, (B, C, h, w) or (R, C, h, w): of R rows."""
        x = to_rows(x, len(self.time))
        return self._run(transformer, x, self.text, self.text_mask, self.control)

    def _run(self, layer: nn.Module, *inputs: object) -> Tensor:
        if self.recompute:  # Chen et al. 2016, arXiv:1604.06174
            return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))
        return layer(*inputs)


def to_rows(x: Tensor, rows: int) -> Tensor:
    """B rows (B, ...) once for each text of their image: (R, ...), text by text."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


class TimeEmbedding(nn.Module):
    """Two linear layers that turn waves into what residual blocks read: (B, ·) to (B, E)."""

    def __init__(self, waves: int, width: int, act_fn: str, condition: int | None = None) -> None:
        super().__init__()
        self.act = ACTIVATIONS[act_fn]
        self.linear_1 = nn.Linear(waves, width)
        # What else is told with the time, as waves of that width.
        self.cond_proj = None if condition is None else nn.Linear(condition, waves, bias=False)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            assert self.cond_proj is not None
            x = x + self.cond_proj(condition)
        return self.linear_2(self.act(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """Two convolutions around which the input flows, told the time: x (B, C, h, w)."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.act = ACTIVATIONS[config.act_fn]
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = Convolution(channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width(config), out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = Convolution(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(self.act(self.norm1(x)))
        y = y + self.time_emb_proj(self.act(time))[:, :, None, None]
        y = self.conv2(self.dropout(self.act(self.norm2(y))))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y


class Downsample(nn.Module):
    """Halve the grid, rounding up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double the grid, to exactly the size that the way down had there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class DownBlock(nn.Module):
    """One level on the way down: layers of which each makes a map that the way up will read."""

    def __init__(self, channels: int, level: Level, config: UNetConfig) -> None:
        super().__init__()
        inputs = [channels] + [level.channels] * (level.layers - 1)
        site = Site("down", level.number, name=f"down_blocks.{level.number}")
        self.attentions = _attentions(site, level, level.down_transformers, config)
        self.resnets = nn.ModuleList(ResidualBlock(c, level.channels, config) for c in inputs)
        self.downsamplers = None
        if not level.coarsest:
            self.downsamplers = nn.ModuleList([Downsample(level.channels)])

    def __len__(self) -> int:
        """How many layers it has: a residual block each, perhaps with attention; then halving."""
        return len(self.resnets) + (self.downsamplers is not None)

    def forward(self, x: Tensor, layer: int, conditions: Conditions) -> Tensor:
        """The map that a layer makes of the one before it."""
        if layer == len(self.resnets):
            assert self.downsamplers is not None
            return self.downsamplers[0](x)
        x = conditions.residual(self.resnets[layer], x)
        return x if self.attentions is None else conditions.attend(self.attentions[layer], x)


class MidBlock(nn.Module):
    """The work on the coarsest grid; without attention it is one residual block."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__()
        site = Site("mid", level.number, name="mid_block")
        attends = MID_TYPES[config.mid_block_type]
        transformers = (level.mid_transformers,) if attends else None
        self.attentions = _attentions(site, level, transformers, config)
        self.resnets = nn.ModuleList(
            ResidualBlock(level.channels, level.channels, config) for _ in range(1 + bool(attends))
        )

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        x = conditions.residual(self.resnets[0], x)
        if self.attentions is None:
            return x
        x = conditions.attend(self.attentions[0], x)
        return conditions.residual(self.resnets[1], x)


class UpBlock(nn.Module):
    """One level on the way up: layers of which each also reads a map of the way down."""

    def __init__(
        self, channels: int, kept_channels: list[int], level: Level, config: UNetConfig
    ) -> None:
        super().__init__()
        inputs = [channels] + [level.channels] * level.layers
        site = Site("up", level.number, name=f"up_blocks.{level.up_number}")
        self.attentions = _attentions(site, level, level.up_transformers, config)
        self.resnets = nn.ModuleList(
            ResidualBlock(c + kept, level.channels, config)
            for c, kept in zip(inputs, kept_channels, strict=True)
        )
        self.upsamplers = None
        if level.number > 0:
            self.upsamplers = nn.ModuleList([Upsample(level.channels)])

    def __len__(self) -> int:
        """How many layers it has: a residual block each, perhaps with attention."""
        return len(self.resnets)

    def forward(
        self,
        x: Tensor,
        layer: int,
        kept: Tensor,
        size: tuple[int, int] | None,
        conditions: Conditions,
    ) -> Tensor:
        """What a layer makes of the one before it and of a map of the way down.

        Args:
            size: (h, w) of the level above, to which the last layer doubles its grid.
        """
        x = torch.cat([x, to_rows(kept, len(x))], dim=1)
        x = conditions.residual(self.resnets[layer], x)
        if self.attentions is not None:
            x = conditions.attend(self.attentions[layer], x)
        if self.upsamplers is not None and layer + 1 == len(self):
            x = self.upsamplers[0](x, size)
        return x


def _attentions(
    site: Site, level: Level, transformers: tuple[int, ...] | None, config: UNetConfig
) -> nn.ModuleList | None:
    """The spatial Transformers of one block, one for each number of Transformer blocks given."""
    if transformers is None:
        return None
    return nn.ModuleList(
        SpatialTransformer(
            level.channels,
            level.heads,
            level.text_width,
            layers=layers,
            groups=config.norm_num_groups,
            linear_projection=config.use_linear_projection,
            site=replace(site, index=i, name=f"{site.name}.attentions.{i}"),
        )
        for i, layers in enumerate(transformers)
    )
