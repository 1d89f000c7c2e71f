"""The UNet: from noisy latents, a time and a text to a prediction of the noise.

It halves the latent grid level by level, keeping what it saw on the way down, works on the
coarsest grid, and doubles the grid again, reading at each level what was kept. At every level
that attends, a spatial Transformer lets each position of the grid read the text.

Shapes: B batch, C channels, h w grid, T text tokens, D text width, E time width, Dp pooled width.
Parameter names are those of diffusers' UNet2DConditionModel. Ronneberger et al. 2015
(arXiv:1505.04597), Ho et al. 2020 (arXiv:2006.11239), Rombach et al. 2022 (arXiv:2112.10752).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.attention import Control, Site
from sdcore.errors import UsageError
from sdcore.transformer import SpatialTransformer, sinusoid
from sdcore.unet_config import Level, UNetConfig

ACTIVATIONS = {"silu": F.silu, "swish": F.silu, "mish": F.mish, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class AddedConditions:
    """What SDXL is told besides the text: pooled_text (B, Dp) and time_ids (B, 6 or 5).

    The six numbers are original height and width, crop top and left, target height and width; the
    refiner's five end in an aesthetic score instead of a target size (arXiv:2307.01952).
    """

    pooled_text: Tensor
    time_ids: Tensor


class Conditions(NamedTuple):
    """What every block receives beside the picture, unchanged."""

    time: Tensor  # (B, E)
    text: Tensor  # (B, T, D)
    text_mask: Tensor | None  # (B, 1, 1, T)
    control: Control | None


class TimeEmbedding(nn.Module):
    """Two linear layers that turn waves into what residual blocks read: (B, ·) to (B, E)."""

    def __init__(self, waves: int, width: int, act_fn: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[act_fn]
        self.linear_1 = nn.Linear(waves, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """Two convolutions around which the input flows, told the time: x (B, C, h, w)."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.act = ACTIVATIONS[config.act_fn]
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width(config), out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
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
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class DownBlock(nn.Module):
    """One level on the way down; returns x and every map that the way up will read."""

    def __init__(self, channels: int, level: Level, config: UNetConfig) -> None:
        super().__init__()
        inputs = [channels] + [level.channels] * (level.layers - 1)
        self.attentions = _attentions("down", level, level.down_transformers, config)
        self.resnets = nn.ModuleList(ResidualBlock(c, level.channels, config) for c in inputs)
        self.downsamplers = _resamplers(Downsample, level)

    def forward(self, x: Tensor, given: Conditions) -> tuple[Tensor, list[Tensor]]:
        kept = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, given.time)
            if self.attentions is not None:
                x = self.attentions[i](x, given.text, given.text_mask, given.control)
            kept.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            kept.append(x)
        return x, kept


class MidBlock(nn.Module):
    """The work on the coarsest grid."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__()
        self.attentions = _attentions("mid", level, level.down_transformers[:1], config)
        self.resnets = nn.ModuleList(
            ResidualBlock(level.channels, level.channels, config) for _ in range(2)
        )

    def forward(self, x: Tensor, given: Conditions) -> Tensor:
        assert self.attentions is not None
        x = self.resnets[0](x, given.time)
        x = self.attentions[0](x, given.text, given.text_mask, given.control)
        return self.resnets[1](x, given.time)


class UpBlock(nn.Module):
    """One level on the way up; each residual block also reads one map of the way down."""

    def __init__(
        self, channels: int, kept_channels: list[int], level: Level, config: UNetConfig
    ) -> None:
        super().__init__()
        inputs = [channels] + [level.channels] * level.layers
        self.attentions = _attentions("up", level, level.up_transformers, config)
        self.resnets = nn.ModuleList(
            ResidualBlock(c + kept, level.channels, config)
            for c, kept in zip(inputs, kept_channels, strict=True)
        )
        self.upsamplers = None if level.number == 0 else nn.ModuleList([Upsample(level.channels)])

    def forward(
        self, x: Tensor, kept: list[Tensor], size: tuple[int, int] | None, given: Conditions
    ) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, kept[i]], dim=1), given.time)
            if self.attentions is not None:
                x = self.attentions[i](x, given.text, given.text_mask, given.control)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, size)
        return x


class UNet(nn.Module):
    """Predicts what noise latents hold at a time, given a text.

    Args:
        config: sizes and kinds; `UNetConfig.from_dict` reads a diffusers config.json.
    """

    Config = UNetConfig
    WEIGHTS_NAME = "diffusion_pytorch_model"

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels = config.levels()
        channels = config.block_out_channels[0]
        self.time_embedding = TimeEmbedding(channels, time_width(config), config.act_fn)
        if config.addition_embed_type == "text_time":
            waves = config.projection_class_embeddings_input_dim
            assert waves is not None
            self.add_embedding = TimeEmbedding(waves, time_width(config), config.act_fn)

        self.conv_in = _same_conv(config.in_channels, channels, config.conv_in_kernel)
        kept_channels = [channels]  # of the maps that the way down hands to the way up

        self.down_blocks = nn.ModuleList()
        for level in levels:
            self.down_blocks.append(DownBlock(channels, level, config))
            channels = level.channels
            kept_channels += [channels] * (level.layers if level.last else level.layers + 1)

        self.mid_block = MidBlock(levels[-1], config)

        self.up_blocks = nn.ModuleList()
        for level in reversed(levels):
            kept = [kept_channels.pop() for _ in range(level.layers + 1)]
            self.up_blocks.append(UpBlock(channels, kept, level, config))
            channels = level.channels

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels, config.norm_eps)
        self.conv_out = _same_conv(channels, config.out_channels, config.conv_out_kernel)

    def forward(
        self,
        latents: Tensor,
        time: Tensor | float,
        text: Tensor,
        control: Control | None = None,
        *,
        added: AddedConditions | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """One prediction.

        Args:
            latents: (B, in_channels, h, w); any h and w.
            time: the training time step, 0 (no noise) to 999: a number or (B,).
            text: (B, T, cross_attention_dim).
            control: called at every attention layer, see `sdcore.attention.Control`.
            added: the further conditions of SDXL; required there, refused elsewhere.
            text_mask: (B, T), False where a token is not to be read; None reads all.

        Returns:
            (B, out_channels, h, w): epsilon, v or x0, as the model was trained to predict.
        """
        self._check(latents, text, added)
        given = Conditions(
            time=self.embed_time(time, latents, added),
            text=text,
            text_mask=None if text_mask is None else text_mask.bool()[:, None, None, :],
            control=control,
        )

        x = self.conv_in(latents)
        kept = [x]
        for block in self.down_blocks:
            x, more = block(x, given)
            kept += more

        x = self.mid_block(x, given)

        for block in self.up_blocks:
            mine = [kept.pop() for _ in block.resnets]
            size = (kept[-1].shape[2], kept[-1].shape[3]) if kept else None
            x = block(x, mine, size, given)

        return self.conv_out(ACTIVATIONS[self.config.act_fn](self.conv_norm_out(x)))

    def embed_time(self, time: Tensor | float, latents: Tensor, added: AddedConditions | None):
        """The time, and for SDXL the added conditions, as one vector per image: (B, E)."""
        c, batch = self.config, latents.shape[0]
        time = torch.as_tensor(time, dtype=torch.float32, device=latents.device).expand(batch)
        embedding = self.time_embedding(self._waves(time, c.block_out_channels[0]).to(latents))
        if added is None:
            return embedding
        assert c.addition_time_embed_dim is not None
        numbers = added.time_ids.to(latents.device).flatten()
        waves = self._waves(numbers, c.addition_time_embed_dim).reshape(batch, -1)
        about = torch.cat([added.pooled_text.to(latents), waves.to(latents)], dim=-1)
        return embedding + self.add_embedding(about)

    def _waves(self, numbers: Tensor, width: int) -> Tensor:
        c = self.config
        return sinusoid(numbers, width, cosine_first=c.flip_sin_to_cos, shift=c.freq_shift)

    def _check(self, latents: Tensor, text: Tensor, added: AddedConditions | None) -> None:
        c = self.config
        if latents.ndim != 4 or latents.shape[1] != c.in_channels:
            why = f"this UNet reads (B, {c.in_channels}, h, w)"
            raise UsageError(f"latents of shape {tuple(latents.shape)}", why, "check in_channels")
        if text.ndim != 3 or text.shape[0] != latents.shape[0]:
            why = f"it must be (B, T, D) with the latents' B = {latents.shape[0]}"
            raise UsageError(f"text of shape {tuple(text.shape)}", why, "repeat it for each image")
        if (added is not None) != (c.addition_embed_type is not None):
            what = "added conditions " + ("missing" if added is None else "given")
            why = f"this UNet has addition_embed_type = {c.addition_embed_type!r}"
            raise UsageError(what, why, "SDXL needs AddedConditions, SD 1 and 2 take none")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        variant: str | None = None,
    ) -> UNet:
        """The UNet of a diffusers folder; every key and shape must fit (see sdcore.checkpoint)."""
        from sdcore.checkpoint import load_component

        return load_component(
            cls, folder, subfolder=subfolder, dtype=dtype, device=device, variant=variant
        )

    def save_pretrained(
        self, folder: str | Path, *, variant: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write config.json and safetensors that diffusers' UNet2DConditionModel opens."""
        from sdcore.checkpoint import save_component

        save_component(self, folder, variant=variant, dtype=dtype)


def time_width(config: UNetConfig) -> int:
    """E, the width of the time embedding."""
    return 4 * config.block_out_channels[0]


def _attentions(
    place: str, level: Level, transformers: tuple[int, ...], config: UNetConfig
) -> nn.ModuleList | None:
    """The spatial Transformers of one block, one after each residual block, or None."""
    attends = {"down": level.down_attends, "mid": True, "up": level.up_attends}[place]
    if not attends:
        return None
    number = level.number
    if place == "up":
        number = len(config.block_out_channels) - 1 - number  # the way up counts from the coarsest
    block = "mid_block" if place == "mid" else f"{place}_blocks.{number}"
    return nn.ModuleList(
        SpatialTransformer(
            level.channels,
            level.heads,
            level.text_width,
            layers=layers,
            groups=config.norm_num_groups,
            linear_projection=config.use_linear_projection,
            site=Site(place, level.number, i, name=f"{block}.attentions.{i}"),
        )
        for i, layers in enumerate(transformers)
    )


def _resamplers(kind: type[Downsample], level: Level) -> nn.ModuleList | None:
    return None if level.last else nn.ModuleList([kind(level.channels)])


def _same_conv(channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, kernel, padding=(kernel - 1) // 2)
