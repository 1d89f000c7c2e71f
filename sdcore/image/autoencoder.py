"""Between pictures and latents: Stable Diffusion's AutoencoderKL, with the scaling of UNets.

Rombach et al. 2022 (arXiv:2112.10752). Parameters have diffusers' names; the numbers are its own to
the bit.

Shapes: B batch, C latent channels, H W pixels, h w latent grid (H = factor · h).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdcore.errors import NonFiniteError, UsageError, warn
from sdcore.files.component import Component
from sdcore.image.autoencoder_config import AutoencoderConfig
from sdcore.image.autoencoder_layers import Decoder, Encoder
from sdcore.image.tiles import in_tiles
from sdcore.views import view

# Attention layers of checkpoints written before 2023 (every Stable Diffusion 1.x folder).
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Autoencoder(Component):
    """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w) and back."""

    Config = AutoencoderConfig
    WEIGHTS_NAME: ClassVar[str] = "diffusion_pytorch_model"
    PUBLISHED_CLASSES = ("AutoencoderKL",)

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        own, both = config.latent_channels, 2 * config.latent_channels  # of a mean, and a variance
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(both, both, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(own, own, 1) if config.use_post_quant_conv else None

    @staticmethod
    def published_name(key: str) -> str:
        """Today's name for a weight of an old file."""
        if ".attentions." not in key:
            return key
        module, _, kind = key.rpartition(".")
        parent, _, last = module.rpartition(".")
        return f"{parent}.{_OLD_NAMES.get(last, last)}.{kind}"

    @property
    def factor(self) -> int:
        """How many pixels a latent position is wide and high."""
        return self.config.factor

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def encode(
        self,
        image: Tensor,
        generators: Sequence[torch.Generator] | None = None,
        tiled: bool = False,
    ) -> Tensor:
        """Scaled latents, float32, of pictures (B, 3, H, W) in [-1, 1]: (B, C, h, w).

        Args:
            generators: CPU generators, one for each picture, each sample from a picture's
                posterior; k times as many give k samples of each picture in turn, (k B, C, h, w).
                None takes the mean.
            tiled: overlapping tiles one after the other, blended; needs little memory at any size.
        """
        odd = image.ndim == 4 and any(size % self.factor for size in image.shape[2:])
        if image.ndim != 4 or image.shape[1] != 3 or odd:
            raise _bad_shape("pictures", image, f"(B, 3, H, W), H and W multiples of {self.factor}")
        moments = self._run(_encode, image, "encoder", tiled)
        mean, log_variance = moments.float().chunk(2, dim=1)
        if generators is not None:
            assert len(generators) % len(image) == 0, "as many generators for each picture"
            noise = [_draw(mean.shape[1:], generator) for generator in generators]
            deviation = (0.5 * log_variance.clamp(-30.0, 20.0)).exp()
            samples = len(generators) // len(image)
            mean, deviation = (x.repeat_interleave(samples, dim=0) for x in (mean, deviation))
            mean = mean + deviation * torch.stack(noise).to(mean.device)
        shift, scale = self._statistics(mean)
        return (mean - shift) * scale

    def decode(self, latents: Tensor, tiled: bool = False) -> Tensor:
        """Pictures (B, 3, H, W), float32, about [-1, 1], of scaled latents (B, C, h, w).

        Args:
            tiled: as for `encode`.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise _bad_shape("latents", latents, f"(B, {self.latent_channels}, h, w)")
        shift, scale = self._statistics(latents)
        latents = latents / scale + shift
        return self._run(_decode, latents, "decoder", tiled).float()

    def _run(
        self,
        call: Callable[[Autoencoder, Tensor, bool], Tensor],
        x: Tensor,
        stage: str,
        tiled: bool,
    ) -> Tensor:
        """`call` in the weights' type, and in float32 where half precision overflows."""
        dtype = next(self.parameters()).dtype
        if dtype == torch.float16 and self.config.force_upcast:
            dtype = torch.float32  # the config says that float16 overflows
            out = call(self._in_float32(), x.float(), tiled)
        else:
            out = call(self, x.to(dtype), tiled)
        if torch.isfinite(out).all():
            return out
        if dtype in (torch.float16, torch.bfloat16) and torch.isfinite(x).all():
            warn(f"The autoencoder's {stage} overflows in {dtype}; it is run again in float32.")
            dtype = torch.float32
            out = call(self._in_float32(), x.float(), tiled)
            if torch.isfinite(out).all():
                return out
        cause = "given to it" if not torch.isfinite(x).all() else "that it computed"
        raise NonFiniteError(
            f"The autoencoder's {stage} gave NaN or infinity.",
            f"They were in the numbers {cause}, in {dtype}.",
            "Check the latents or the picture, and the VAE's file.",
        )

    def _in_float32(self) -> Autoencoder:
        """The same with weights of another type, for one call: this network keeps its own."""
        return view(self, {name: tensor.float() for name, tensor in self.named_parameters()})

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale from the VAE's latents to the UNet's, (1, C or 1, 1, 1)."""
        config = self.config
        numbers = partial(torch.tensor, dtype=torch.float32, device=like.device)
        scale, shift = numbers(config.scaling_factor), numbers(config.shift_factor or 0.0)
        if config.latents_mean is not None and config.latents_std is not None:
            shift = numbers(config.latents_mean)
            scale = scale / numbers(config.latents_std)
        return shift.reshape(1, -1, 1, 1).to(like), scale.reshape(1, -1, 1, 1).to(like)


def _encode(model: Autoencoder, image: Tensor, tiled: bool) -> Tensor:
    """Mean and log variance (B, 2 C, h, w) of pictures (B, 3, H, W)."""

    def whole(image: Tensor) -> Tensor:
        moments = model.encoder(image)
        return moments if model.quant_conv is None else model.quant_conv(moments)

    side = model.config.side
    return in_tiles(whole, image, side, side // model.factor) if tiled else whole(image)


def _decode(model: Autoencoder, latents: Tensor, tiled: bool) -> Tensor:
    """Pictures (B, 3, H, W) of latents (B, C, h, w) that are not scaled."""

    def whole(latents: Tensor) -> Tensor:
        if model.post_quant_conv is not None:
            latents = model.post_quant_conv(latents)
        return model.decoder(latents)

    side = model.config.side
    return in_tiles(whole, latents, side // model.factor, side) if tiled else whole(latents)


def _draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)


def _bad_shape(what: str, tensor: Tensor, wanted: str) -> UsageError:
    return UsageError(
        f"The autoencoder cannot take {what} of shape {tuple(tensor.shape)}.",
        f"It takes {wanted}.",
        "Resize or crop first.",
    )
