"""The settings of the autoencoder, as a diffusers config.json has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeGuard

from sdcore.checks import as_finite, as_int
from sdcore.errors import UsageError
from sdcore.files.jsonfile import is_list

CLASS_NAME = "AutoencoderKL"
_KINDS = {  # settings that choose a kind of layer -> the kinds that Stable Diffusion's have
    "act_fn": ("silu", "swish"),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}
_COUNTS = ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
_SWITCHES = (
    "force_upcast",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
)
_LARGEST = 1e6  # of a scale, a shift or a mean


@dataclass(frozen=True)
class AutoencoderConfig:
    """The settings of an autoencoder, under the names of diffusers' config.json.

    Attributes:
        sample_size: pixels of the pictures that it was trained on, and of a tile.
        scaling_factor: latents times this have a standard deviation of about one.
        shift_factor: what is taken from latents before that.
        latents_mean, latents_std: the same for each channel, in the place of a shift.
        force_upcast: float16 overflows in it.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if is_list(value):  # as JSON has them
                object.__setattr__(self, field.name, tuple(value))
        for name in _COUNTS:
            if as_int(getattr(self, name), 1) is None:
                raise _refusal(name, getattr(self, name), "It must be a whole number above 0.")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise _refusal(name, getattr(self, name), "It must be true or false.")
        self._check_levels()
        self._check_numbers()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> AutoencoderConfig:
        """The config of a diffusers config.json.

        Raises:
            UsageError: a setting is unknown or cannot be used, or this is another autoencoder.
        """
        name = settings.get("_class_name", CLASS_NAME)
        if name != CLASS_NAME:
            raise UsageError(
                f"The autoencoder is a {name!r:.80}, which is not supported.",
                "Stable Diffusion 1.x, 2.x and XL use AutoencoderKL.",
                "Use a folder with an AutoencoderKL.",
            )
        ours = {key: value for key, value in settings.items() if not key.startswith("_")}
        known = [field.name for field in fields(cls)]
        for key in ours:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                raise UsageError(
                    f"Unknown autoencoder setting {key!r:.80}.",
                    "Stable Diffusion's AutoencoderKL does not have it.",
                    f"Did you mean {near[0]!r}?" if near else "Use a Stable Diffusion VAE.",
                )
        return cls(**ours)

    def to_dict(self) -> dict[str, Any]:
        """A config.json that diffusers' AutoencoderKL opens."""
        listed = {k: list(v) if _is_tuple(v) else v for k, v in asdict(self).items()}
        return {"_class_name": CLASS_NAME, **listed}

    @property
    def factor(self) -> int:
        """How many pixels a latent position is wide and high."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def side(self) -> int:
        """Pixels of the side of the pictures that it was trained on, and of a tile's."""
        return self.sample_size if isinstance(self.sample_size, int) else self.sample_size[0]

    def _check_levels(self) -> None:
        for name, known in _KINDS.items():
            value = getattr(self, name)
            for kind in value if _is_tuple(value) else (value,):
                if kind not in known:
                    raise _refusal(name, value, f"Stable Diffusion's have {' or '.join(known)}.")
        channels = self.block_out_channels
        if not channels or any(as_int(each, 1) is None for each in channels):
            raise _refusal("block_out_channels", channels, "They must be whole numbers above 0.")
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != len(channels):
                why = f"block_out_channels has {len(channels)} levels."
                raise _refusal(name, getattr(self, name), why)
        if any(each % self.norm_num_groups for each in channels):
            why = f"block_out_channels {channels} are no multiples of it."
            raise _refusal("norm_num_groups", self.norm_num_groups, why)
        sizes = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,)
        if not sizes or any(as_int(each, self.factor) is None for each in sizes):
            why = f"It must be a whole number of pixels, at least {self.factor}."
            raise _refusal("sample_size", self.sample_size, why)

    def _check_numbers(self) -> None:
        if not (scale := as_finite(self.scaling_factor, 0, _LARGEST)):
            why = f"It must be a number above 0 and at most {_LARGEST:g}."
            raise _refusal("scaling_factor", self.scaling_factor, why)
        object.__setattr__(self, "scaling_factor", float(scale))
        shift = self.shift_factor
        if shift is not None and as_finite(shift, -_LARGEST, _LARGEST) is None:
            raise _refusal("shift_factor", shift, f"It must be a number within {_LARGEST:g} of 0.")
        for name, least in (("latents_mean", -_LARGEST), ("latents_std", 1e-6)):
            values = getattr(self, name)
            if values is None:
                continue
            if not _is_tuple(values) or len(values) != self.latent_channels:
                why = f"It must be a list of {self.latent_channels} numbers, one for each channel."
                raise _refusal(name, values, why)
            if any(as_finite(each, least, _LARGEST) is None for each in values):
                raise _refusal(name, values, f"It must hold numbers from {least:g} to 1e6.")


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def _refusal(name: str, value: Any, why: str) -> UsageError:
    hint = "Correct the VAE's config.json, or use a Stable Diffusion VAE."
    return UsageError(
        f"The autoencoder's setting {name} = {value!r:.80} cannot be used.", why, hint
    )
