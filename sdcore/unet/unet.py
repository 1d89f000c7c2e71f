"""The UNet: from noisy latents, a time and a text to a prediction of the noise.

It halves the latent grid level by level, keeping what it saw on the way down, works on the
coarsest grid, and doubles the grid again, reading at each level what was kept. At every level
that attends, a spatial Transformer lets each position of the grid read the text.

Shapes: B images, R rows (B, or several texts for each image), C channels, h w grid, T text tokens,
D text width, E time width, Dp pooled width, H heads, N image tokens, d head width.
Parameter names are those of diffusers' UNet2DConditionModel. Ronneberger et al. 2015
(arXiv:1505.04597), Ho et al. 2020 (arXiv:2006.11239), Rombach et al. 2022 (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.attention import Control, CrossAttention, FrozenText, KnownText, Site, Text, join_heads
from sdcore.attention_inputs import padding_mask
from sdcore.convolution import Convolution
from sdcore.errors import UsageError
from sdcore.files.component import Component
from sdcore.positions import sinusoid
from sdcore.unet.blocks import (
    ACTIVATIONS,
    Conditions,
    DownBlock,
    MidBlock,
    TimeEmbedding,
    UpBlock,
    time_width,
    to_rows,
)
from sdcore.unet.config import UNetConfig


@dataclass(frozen=True)
class AddedConditions:
    """What SDXL is told besides the text: pooled_text (B, Dp) and time_ids (B, 6 or 5).

    The six numbers are original height and width, crop top and left, target height and width; the
    refiner's five end in an aesthetic score instead of a target size (arXiv:2307.01952).
    """

    pooled_text: Tensor
    time_ids: Tensor


@dataclass
class DeepFeatures:
    """What the deep layers gave at one step, for the steps after it (Ma et al. 2023, DeepCache,
    arXiv 2312.00858).

    The UNet is a U: the i-th layer of the way down makes a map that the i-th layer of the way up
    reads, counted from the outside. The outer ones run at every step, those within at some.

    Attributes:
        outer: how many layers of each way run at every step, 1 or more.
        x: (R, C, h, w), what the outer layers of the way up begin with; None until a step has run
            whole, which sets it.
    """

    outer: int
    x: Tensor | None = None


class UNet(Component):
    """Predicts what noise latents hold at a time, given a text.

    Args:
        config: sizes and kinds; `UNetConfig.from_dict` reads a diffusers config.json.

    Attributes:
        gradient_checkpointing: compute again in the backward pass what blocks computed, instead of
            keeping it: less memory, a third more time.
    """

    Config = UNetConfig
    WEIGHTS_NAME: ClassVar[str] = "diffusion_pytorch_model"
    PUBLISHED_CLASSES = ("UNet2DConditionModel",)

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = config.levels()
        self.gradient_checkpointing = False
        channels = config.block_out_channels[0]
        self.time_embedding = TimeEmbedding(
            channels, time_width(config), config.act_fn, config.time_cond_proj_dim
        )
        if config.addition_embed_type == "text_time":
            waves = config.projection_class_embeddings_input_dim
            assert waves is not None
            self.add_embedding = TimeEmbedding(waves, time_width(config), config.act_fn)

        self.conv_in = _same_conv(config.in_channels, channels, config.conv_in_kernel)
        kept_channels = [channels]  # of the maps that the way down hands to the way up

        self.down_blocks = nn.ModuleList()
        for level in self.levels:
            self.down_blocks.append(DownBlock(channels, level, config))
            channels = level.channels
            kept_channels += [channels] * (level.layers + (not level.coarsest))

        has_middle = config.mid_block_type is not None
        self.mid_block = MidBlock(self.levels[-1], config) if has_middle else None

        self.up_blocks = nn.ModuleList()
        for level in reversed(self.levels):
            kept = [kept_channels.pop() for _ in range(level.layers + 1)]
            self.up_blocks.append(UpBlock(channels, kept, level, config))
            channels = level.channels

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels, config.norm_eps)
        self.conv_out = _same_conv(channels, config.out_channels, config.conv_out_kernel)

    def forward(
        self,
        latents: Tensor,
        time: Tensor | float,
        text: Text,
        control: Control | None = None,
        *,
        added: AddedConditions | None = None,
        text_mask: Tensor | None = None,
        guidance_scale: float | None = None,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """One prediction for each image; or several, where there are several texts for each.

        What comes before the first layer that attends is then computed once for each image.

        Args:
            latents: (B, in_channels, h, w); any h and w.
            time: the training time step, 0 (no noise) to 999: a number or (B,).
            text: (R, T, cross_attention_dim), R = B or a multiple of it: text by text, as many rows
                of each as there are images; or what `read` or `freeze` made of it.
            control: called at every attention layer, see `sdcore.attention.Control`.
            added: the further conditions of SDXL; required there, refused elsewhere.
            text_mask: (R, T), False where a token is not to be read; None reads all.
            guidance_scale: for models that are told it (`time_cond_proj_dim`); refused elsewhere.
            deep: use what its deep layers gave, if they ran; else run whole and keep it there.

        Returns:
            (R, out_channels, h, w): epsilon, v or x0, as the model was trained to predict.
        """
        rows = self._check(latents, time, text, text_mask, added)
        if added is not None:  # which differ by row, and the time embedding with them
            latents = to_rows(latents, rows)
        conditions = Conditions(
            time=to_rows(self.embed_time(time, latents, added, guidance_scale), rows),
            text=text,
            text_mask=None if text_mask is None else padding_mask(text_mask),
            control=control,
            recompute=self.gradient_checkpointing and torch.is_grad_enabled(),
        )
        down, up = _layers(self.down_blocks), _layers(self.up_blocks)
        if deep is not None and deep.x is not None:
            down = down[: deep.outer - 1]

        x = self.conv_in(latents)
        kept = [x]  # the maps that the way up will read
        for block, layer in down:
            x = block(x, layer, conditions)
            kept.append(x)

        if deep is not None and deep.x is not None:
            x = deep.x
        elif self.mid_block is not None:
            x = self.mid_block(x, conditions)

        for block, layer in up[-len(kept) :]:
            if deep is not None and len(kept) == deep.outer:
                deep.x = x
            mine = kept.pop()
            size = (kept[-1].shape[2], kept[-1].shape[3]) if kept else None
            x = block(x, layer, mine, size, conditions)

        x = to_rows(x, rows)  # of a UNet that reads no text
        return self.conv_out(ACTIVATIONS[self.config.act_fn](self.conv_norm_out(x)))

    def read(self, text: Tensor) -> KnownText:
        """A text (B, T, cross_attention_dim) as the layers know it, for many steps with one text.

        The numbers are the same; the gradient is that of this call.
        """
        layers = (module for module in self.modules() if isinstance(module, CrossAttention))
        by_site: dict[Site, tuple[Tensor, Tensor]] = {}
        for layer in layers:
            assert layer.site is not None
            by_site[layer.site] = layer.read(text)
        return KnownText(text, by_site)

    def freeze(self, attended: Mapping[Site, Tensor]) -> FrozenText:
        """What attention gave at every layer that reads the text (B, H, N, d), for later steps."""
        layers = (module for module in self.modules() if isinstance(module, CrossAttention))
        by_site: dict[Site, Tensor] = {}
        for layer in layers:
            assert layer.site is not None
            by_site[layer.site] = layer.to_out(join_heads(attended[layer.site]))
        return FrozenText(by_site)

    def embed_time(
        self,
        time: Tensor | float,
        latents: Tensor,
        added: AddedConditions | None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The time, and for SDXL the added conditions, as one vector per image: (B, E)."""
        c, batch = self.config, latents.shape[0]
        time = torch.as_tensor(time, dtype=torch.float32, device=latents.device).reshape(-1)
        time = to_rows(time, batch)
        waves = self._waves(time, c.block_out_channels[0]).to(latents)
        told = None if guidance_scale is None else self._guidance_waves(guidance_scale, latents)
        embedding = self.time_embedding(waves, told)
        if added is None:
            return embedding
        assert c.addition_time_embed_dim is not None
        numbers = added.time_ids.to(latents.device).flatten()
        waves = self._waves(numbers, c.addition_time_embed_dim).reshape(batch, -1)
        about = torch.cat([added.pooled_text.to(latents), waves.to(latents)], dim=-1)
        return embedding + self.add_embedding(about)

    def _guidance_waves(self, scale: float, latents: Tensor) -> Tensor:
        """The guidance scale as waves (B, time_cond_proj_dim), counted from no guidance on."""
        width = self.config.time_cond_proj_dim
        if width is None:
            raise UsageError(
                "This UNet is not told the guidance scale.",
                "Its setting time_cond_proj_dim is None.",
                "Leave guidance_scale out.",
            )
        # Of numbers in the thousands the last digits of the frequencies matter, so they are taken
        # in the order in which the models were trained.
        exponents = torch.arange(width // 2, dtype=torch.float32)
        frequencies = torch.exp(exponents * -(torch.tensor(10000.0).log() / (width // 2 - 1)))
        angles = torch.tensor(scale - 1, dtype=torch.float32) * 1000.0 * frequencies
        waves = F.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))
        return waves.to(latents).expand(len(latents), width)

    def _waves(self, numbers: Tensor, width: int) -> Tensor:
        c = self.config
        return sinusoid(numbers, width, cosine_first=c.flip_sin_to_cos, shift=c.freq_shift)

    def _check(
        self,
        latents: Tensor,
        time: Tensor | float,
        text: Text,
        text_mask: Tensor | None,
        added: AddedConditions | None,
    ) -> int:
        """R, the number of rows. UsageError where shapes do not fit one another or the UNet."""
        c, batch = self.config, len(latents)
        if latents.ndim != 4 or latents.shape[1] != c.in_channels:
            raise _shape_error("latents", latents, f"(B, in_channels={c.in_channels}, h, w)")
        rows = batch
        if not isinstance(text, FrozenText):
            text = text.text if isinstance(text, KnownText) else text
            rows, text_width = len(text), self.levels[-1].text_width
            fits = rows == batch or (rows and batch and rows % batch == 0)
            if text.ndim != 3 or text.shape[2] != text_width or not fits:
                raise _shape_error("text", text, f"(B={batch}, T, D={text_width}), or several each")
            if text_mask is not None and text_mask.shape != text.shape[:2]:
                raise _shape_error("text_mask", text_mask, f"(B, T) = {tuple(text.shape[:2])}")
        if isinstance(time, Tensor) and time.shape not in ((), (1,), (batch,)):
            raise _shape_error("time", time, f"() or (B={batch},)")
        if (added is not None) != (c.addition_embed_type is not None):
            what = f"The added conditions are {'missing' if added is None else 'given'}."
            why = f"This UNet has addition_embed_type = {c.addition_embed_type!r}."
            raise UsageError(what, why, "SDXL needs AddedConditions, SD 1 and 2 take none.")
        if added is not None:
            assert c.addition_time_embed_dim and c.projection_class_embeddings_input_dim
            pooled, numbers = added.pooled_text, added.time_ids
            waves = c.projection_class_embeddings_input_dim - pooled.shape[-1]
            if numbers.shape != (rows, waves // c.addition_time_embed_dim):
                expected = f"(B={rows}, {waves // c.addition_time_embed_dim})"
                raise _shape_error("time_ids", numbers, f"{expected} with this pooled_text")
        return rows


def _layers(blocks: nn.ModuleList) -> list[tuple[nn.Module, int]]:
    """The layers of one way, each as its block and its place there, in their order."""
    own = cast("Iterable[DownBlock | UpBlock]", blocks)
    return [(block, layer) for block in own for layer in range(len(block))]


def _same_conv(channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return Convolution(channels, out_channels, kernel, padding=(kernel - 1) // 2)


def _shape_error(name: str, tensor: Tensor, expected: str) -> UsageError:
    what = f"{name} has the shape {tuple(tensor.shape)}."
    return UsageError(what, f"This UNet reads {expected}.", "Check sizes and the UNet's config.")
