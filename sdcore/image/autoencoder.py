"""Between pictures and latents: diffusers' AutoencoderKL, with the scaling that UNets expect.

The only network here that is not our own. Rombach et al. 2022 (arXiv 2112.10752).

Shapes: B batch, C latent channels, H W pixels, h w latent grid (H = factor · h).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from sdcore.errors import NonFiniteError, UsageError, warn
from sdcore.files.component import Component
from sdcore.views import view

_SETTINGS = tuple(inspect.signature(AutoencoderKL.__init__).parameters)[1:]

# Attention layers of checkpoints written before 2023 (every Stable Diffusion 1.x folder).
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class AutoencoderConfig:
    """The settings of diffusers' AutoencoderKL, under its own names; unknown ones are refused."""

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in self.settings:
            if name not in _SETTINGS:
                near = get_close_matches(name, _SETTINGS, n=1)
                raise UsageError(
                    f"Unknown autoencoder setting {name!r}.",
                    "diffusers' AutoencoderKL of the installed version does not have it.",
                    f"Did you mean {near[0]!r}?" if near else "Use a Stable Diffusion VAE.",
                )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> AutoencoderConfig:
        """From a diffusers config.json."""
        name = settings.get("_class_name", "AutoencoderKL")
        if name != "AutoencoderKL":
            raise UsageError(
                f"The autoencoder is a {name!r}, which is not supported.",
                "Stable Diffusion 1.x, 2.x and XL use AutoencoderKL.",
                "Use a folder with an AutoencoderKL.",
            )
        return cls({k: v for k, v in settings.items() if not k.startswith("_")})

    def to_dict(self) -> dict[str, Any]:
        return {"_class_name": "AutoencoderKL", **self.settings}


class Autoencoder(Component):
    """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w) and back.

    `kl` is the same weights as diffusers' own module, for use in diffusers' pipelines.
    """

    Config = AutoencoderConfig
    WEIGHTS_NAME: ClassVar[str] = "diffusion_pytorch_model"
    PUBLISHED_CLASSES = ("AutoencoderKL",)

    kl: AutoencoderKL

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        kl = AutoencoderKL(**config.settings)
        self.__dict__["kl"] = kl  # not a child: parameters keep diffusers' names, without a prefix
        self.encoder, self.decoder = kl.encoder, kl.decoder
        self.quant_conv, self.post_quant_conv = kl.quant_conv, kl.post_quant_conv

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
        return 2 ** (len(self.kl.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return self.kl.config["latent_channels"]

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
        moments = self._run(_encode_tiles if tiled else _encode_whole, image, "encoder")
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
        return self._run(_decode_tiles if tiled else _decode_whole, latents, "decoder").float()

    def _run(
        self, call: Callable[[AutoencoderKL, Tensor], Tensor], x: Tensor, stage: str
    ) -> Tensor:
        """`call` in the weights' type, and in float32 where half precision overflows."""
        dtype = next(self.parameters()).dtype
        if dtype == torch.float16 and self.config.settings.get("force_upcast"):
            dtype = torch.float32  # the config says that float16 overflows
            out = call(self._in_float32(), x.float())
        else:
            out = call(self.kl, x.to(dtype))
        if torch.isfinite(out).all():
            return out
        if dtype in (torch.float16, torch.bfloat16) and torch.isfinite(x).all():
            warn(f"The autoencoder's {stage} overflows in {dtype}; it is run again in float32.")
            dtype = torch.float32
            out = call(self._in_float32(), x.float())
            if torch.isfinite(out).all():
                return out
        cause = "given to it" if not torch.isfinite(x).all() else "that it computed"
        raise NonFiniteError(
            f"The autoencoder's {stage} gave NaN or infinity.",
            f"They were in the numbers {cause}, in {dtype}.",
            "Check the latents or the picture, and the VAE's file.",
        )

    def _in_float32(self) -> AutoencoderKL:
        """The same with weights of another type, for one call: this network keeps its own."""
        tensors = dict([*self.kl.named_parameters(), *self.kl.named_buffers()])
        return view(self.kl, {name: tensor.float() for name, tensor in tensors.items()})

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale from the VAE's latents to the UNet's, (1, C or 1, 1, 1)."""
        config = self.kl.config
        numbers = partial(torch.tensor, dtype=torch.float32, device=like.device)
        scale, shift = numbers(config["scaling_factor"]), numbers(config["shift_factor"] or 0.0)
        if config["latents_mean"] is not None and config["latents_std"] is not None:
            shift = numbers(config["latents_mean"])
            scale = scale / numbers(config["latents_std"])
        return shift.reshape(1, -1, 1, 1).to(like), scale.reshape(1, -1, 1, 1).to(like)


def _encode_whole(kl: AutoencoderKL, image: Tensor) -> Tensor:
    return kl._encode(image)  # pyright: ignore[reportPrivateUsage]


def _encode_tiles(kl: AutoencoderKL, image: Tensor) -> Tensor:
    return kl._tiled_encode(image)  # pyright: ignore[reportPrivateUsage]


def _decode_whole(kl: AutoencoderKL, latents: Tensor) -> Tensor:
    if kl.post_quant_conv is not None:
        latents = kl.post_quant_conv(latents)
    return kl.decoder(latents)


def _decode_tiles(kl: AutoencoderKL, latents: Tensor) -> Tensor:
    return kl.tiled_decode(latents, return_dict=False)[0]  # pyright: ignore[reportIndexIssue]


def _draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)


def _bad_shape(what: str, tensor: Tensor, wanted: str) -> UsageError:
    return UsageError(
        f"The autoencoder cannot take {what} of shape {tuple(tensor.shape)}.",
        f"It takes {wanted}.",
        "Resize or crop first.",
    )
