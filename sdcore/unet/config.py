"""The UNet's settings, read from a diffusers config.json and turned into a plan of levels.

A setting that would change the network and that we do not have is refused by its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

from sdcore.checks import as_finite, as_int
from sdcore.errors import UsageError

CLASS_NAME = "UNet2DConditionModel"

# Settings of diffusers' UNet that we have only at these values; anything else is refused.
FIXED: dict[str, tuple[Any, ...]] = {
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Only read by diffusers for kinds of conditioning that are refused above.
WITHOUT_EFFECT = ("addition_embed_type_num_heads",)

SIZES = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "attention_head_dim",
    "conv_in_kernel",
    "conv_out_kernel",
)
OPTIONAL_SIZES = (  # None where the network has no such part
    "reverse_transformer_layers_per_block",
    "time_cond_proj_dim",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
SWITCHES = ("flip_sin_to_cos", "use_linear_projection", "upcast_attention")
RANGES = {"freq_shift": (-16, 16), "dropout": (0, 1), "norm_eps": (1e-12, 1)}
_LARGEST = 1 << 16  # of anything that is counted
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
DOWN_TYPES = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # -> does it attend
MID_TYPES = {None: None, "UNetMidBlock2D": False, "UNetMidBlock2DCrossAttn": True}
UP_TYPES = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


_PerResnet = list[tuple[int, ...]]  # for each level, a number for each of its residual blocks


@dataclass(frozen=True)
class Level:
    """One level of the UNet: the blocks that work on the same grid on the way down and up."""

    number: int  # how often the grid has been halved; its place on the way down
    up_number: int  # its place on the way up, which begins at the coarsest level
    channels: int
    layers: int  # residual blocks on the way down; one more on the way up
    heads: int
    text_width: int
    down_transformers: (
        tuple[int, ...] | None
    )  # blocks after each residual block; None: no attention
    up_transformers: tuple[int, ...] | None
    mid_transformers: int  # blocks of the middle, used at the coarsest level

    @property
    def coarsest(self) -> bool:
        return self.up_number == 0


@dataclass(frozen=True)
class UNetConfig:
    """The settings of a UNet, under the names of diffusers' config.json.

    A number for a setting that may be a list holds for every level.

    Attributes:
        attention_head_dim: the NUMBER of heads, per level. The name is a mistake that diffusers
            keeps for the sake of the files that carry it (huggingface/diffusers issue 2011); the
            width of a head is the level's channels divided by it.
        transformer_layers_per_block: Transformer blocks after each residual block: a number, one
            per level, or for a level one per residual block. In the last case the way up needs
            `reverse_transformer_layers_per_block`, coarsest level first.
        upcast_attention: kept in the file. Nothing to switch: every backend computes its scores
            in float32 whatever the type of its input.
        mid_block_type: `UNetMidBlock2D` does not attend, and None is no middle at all: small
            models distilled from Stable Diffusion.
        time_cond_proj_dim: waves by which the UNet itself is told the guidance scale: models
            distilled to consistency (Luo et al. 2023, arXiv:2310.04378).
        addition_embed_type: `text_time` for SDXL: the pooled text and six (refiner: five) numbers
            about the image are added to the time embedding.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    time_cond_proj_dim: int | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        for name in SIZES:
            _check_sizes(name, getattr(self, name))
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise _refusal(name, getattr(self, name), "It must be true or false.")
        for name, (least, most) in RANGES.items():
            if as_finite(getattr(self, name), least, most) is None:
                why = f"It must be a number from {least} to {most}."
                raise _refusal(name, getattr(self, name), why)
        sizes = self.sample_size if _is_sequence(self.sample_size) else (self.sample_size,) * 2
        if self.sample_size is not None and (
            len(sizes) != 2 or any(as_int(each, 1, _LARGEST) is None for each in sizes)
        ):
            why = "It must be the latents' side, or height and width, in whole numbers above 0."
            raise _refusal("sample_size", self.sample_size, why)
        _check_choice("act_fn", self.act_fn, ACTIVATIONS)
        _check_choice("mid_block_type", self.mid_block_type, tuple(MID_TYPES))
        for name in OPTIONAL_SIZES:
            if getattr(self, name) is not None:
                _check_sizes(name, getattr(self, name))
        _check_choice("addition_embed_type", self.addition_embed_type, (None, "text_time"))
        for name in self.down_block_types:
            _check_choice("down_block_types", name, tuple(DOWN_TYPES))
        for name in self.up_block_types:
            _check_choice("up_block_types", name, tuple(UP_TYPES))
        if self.addition_embed_type is not None:
            for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if getattr(self, name) is None:
                    raise _refusal(name, None, "addition_embed_type 'text_time' needs it.")
        for level in self.levels():
            _check_level(level, self.norm_num_groups)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> UNetConfig:
        """The config of a diffusers config.json.

        Raises:
            UsageError: a setting is unknown, or asks for something that this UNet does not have.
        """
        name = settings.get("_class_name", CLASS_NAME)
        if name != CLASS_NAME:
            raise _refusal("_class_name", name, f"This is not a {CLASS_NAME}.")
        known = {field.name for field in fields(cls)}
        ours: dict[str, Any] = {}
        for key, value in settings.items():
            if key in known:
                ours[key] = value
            elif key in FIXED:
                _check_choice(key, value, FIXED[key])
            elif key in WITHOUT_EFFECT:
                _check_sizes(key, value)
            elif not key.startswith("_"):
                near = difflib.get_close_matches(key, [*known, *FIXED], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise _refusal(key, value, f"There is no such setting{hint}.")
        return cls(**ours)

    def to_dict(self) -> dict[str, Any]:
        """A config.json that diffusers' UNet2DConditionModel opens."""
        return {"_class_name": CLASS_NAME, **{k: _thawed(v) for k, v in asdict(self).items()}}

    def levels(self) -> tuple[Level, ...]:
        """The plan of the UNet, finest level first."""
        count = len(self.block_out_channels)
        layers = _per_level("layers_per_block", self.layers_per_block, count)
        heads = _per_level("attention_head_dim", self.attention_head_dim, count)
        text_width = _per_level("cross_attention_dim", self.cross_attention_dim, count)
        down_types = _per_level("down_block_types", self.down_block_types, count)
        up_types = _per_level("up_block_types", self.up_block_types, count)[::-1]
        down, up = self._transformers(layers)
        return tuple(
            Level(
                number=i,
                up_number=count - 1 - i,
                channels=self.block_out_channels[i],
                layers=layers[i],
                heads=heads[i],
                text_width=text_width[i],
                down_transformers=down[i] if DOWN_TYPES[down_types[i]] else None,
                up_transformers=up[i] if UP_TYPES[up_types[i]] else None,
                mid_transformers=down[i][0],
            )
            for i in range(count)
        )

    def _transformers(self, layers: Sequence[int]) -> tuple[_PerResnet, _PerResnet]:
        """Transformer blocks after each residual block, per level: on the way down, and up."""
        name, count = "transformer_layers_per_block", len(layers)
        down = up = _per_level(name, self.transformer_layers_per_block, count)
        up_name = f"reverse_{name}"
        if self.reverse_transformer_layers_per_block is not None:
            up = _per_level(up_name, self.reverse_transformer_layers_per_block, count)[::-1]
        elif any(isinstance(entry, tuple) for entry in down):
            why = f"A list for one level needs {up_name} for the way up."
            raise _refusal(name, self.transformer_layers_per_block, why)
        return (
            [_per_layer(name, entry, n) for entry, n in zip(down, layers, strict=True)],
            [_per_layer(up_name, entry, n + 1) for entry, n in zip(up, layers, strict=True)],
        )


def _per_level(name: str, value: Any, count: int) -> tuple[Any, ...]:
    if not _is_sequence(value):
        return (value,) * count
    if len(value) != count:
        raise _refusal(name, value, f"block_out_channels has {count} levels.")
    return tuple(value)


def _per_layer(name: str, value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    if len(value) != count:
        raise _refusal(name, value, f"The level has {count} residual blocks.")
    return value


def _check_level(level: Level, groups: int) -> None:
    if level.channels % groups:
        why = f"block_out_channels {level.channels} is not a multiple of it."
        raise _refusal("norm_num_groups", groups, why)
    attends = level.down_transformers or level.up_transformers or level.coarsest
    if attends and level.channels % level.heads:
        why = f"It is the number of heads, and block_out_channels {level.channels} is no multiple."
        raise _refusal("attention_head_dim", level.heads, why)


def _check_sizes(name: str, value: Any) -> None:
    """A whole number above zero, or a list of such numbers (Transformer blocks may be zero)."""
    least = 0 if "transformer" in name else 1
    for entry in value if _is_sequence(value) else (value,):
        if _is_sequence(entry):
            _check_sizes(name, entry)
        elif as_int(entry, least, _LARGEST) is None:
            why = f"It must be whole numbers from {least} to {_LARGEST}."
            raise _refusal(name, value, why)


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if _frozen(value) in allowed:
        return
    each = value if _is_sequence(value) else ()
    if each and all(entry in allowed for entry in each):  # e.g. only_cross_attention per level
        return
    raise _refusal(name, value, f"This UNet has only {', '.join(map(repr, allowed))}.")


def _refusal(name: str, value: Any, why: str) -> UsageError:
    hint = "Use another checkpoint, or diffusers' own UNet for this one."
    return UsageError(f"The UNet's setting {name} = {value!r:.80} cannot be used.", why, hint)


def _frozen(value: Any) -> Any:
    """Lists, as JSON has them, to tuples, at any depth."""
    return tuple(_frozen(entry) for entry in value) if _is_sequence(value) else value


def _thawed(value: Any) -> Any:
    return [_thawed(entry) for entry in value] if _is_sequence(value) else value


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)
