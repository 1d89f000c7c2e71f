"""Our UNet and text encoder inside diffusers' own pipelines, in place of its modules.

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet = as_diffusers_unet(UNet.from_pretrained(folder, subfolder="unet"))
    pipe.text_encoder = as_transformers_text_encoder(CLIPTextEncoder.from_pretrained(...))

The adapters hold our modules and share their weights; they translate arguments and answers only. A
pipeline that has them is saved as one of diffusers: `pipe.save_pretrained` writes our networks
under the names of its classes, and anybody's diffusers opens the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from sdcore.attention_choice import use_attention
from sdcore.errors import NotHereError, UsageError
from sdcore.files.component import Component
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.unet.unet import AddedConditions, UNet

_TRACE = "Keep diffusers' own UNet in the pipeline, and see and steer it with sdcore.trace(pipe)."
_LORA = (
    "Apply it before: as_diffusers_unet(sdcore.apply_loras(model, ['style.safetensors']).unet), "
    "with as_transformers_text_encoder of its text encoder."
)
# What diffusers' pipelines ask of a UNet and ours does in another way.
_ELSEWHERE = {
    **dict.fromkeys(
        ("attn_processors", "set_attn_processor", "set_default_attn_processor"), _TRACE
    ),
    **dict.fromkeys(("enable_freeu", "disable_freeu", "fuse_qkv_projections"), _TRACE),
    **dict.fromkeys(("load_lora_adapter", "load_attn_procs", "add_adapter", "set_adapters"), _LORA),
}


class _Adapter(ModelMixin):
    """What diffusers asks of every module of a pipeline.

    Attributes:
        network: ours.
    """

    network: ClassVar[str]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        **_: Any,
    ) -> None:
        """Write our network's folder, which diffusers or transformers open."""
        if not safe_serialization:
            raise UsageError(
                "safe_serialization is False.",
                "sdcore writes no pickles.",
                "Leave it out, for safetensors.",
            )
        network = cast(Component, getattr(self, self.network))
        network.save_pretrained(save_directory, variant=variant)

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Any = None
    ) -> None:
        """For `pipe.enable_xformers_memory_efficient_attention()`."""
        use_attention(self, "xformers" if valid else "auto")

    def set_attention_slice(self, slice_size: Any) -> None:
        """For `pipe.enable_attention_slicing()`: attention in little memory."""
        use_attention(self, "auto" if slice_size is None else "chunked")

    def __getattr__(self, name: str) -> Any:
        if name in _ELSEWHERE:
            raise NotHereError(
                f"sdcore's model has no {name}.",
                "It is not diffusers' own module, and computes the same in another way.",
                _ELSEWHERE[name],
            )
        return super().__getattr__(name)


class DiffusersUNet(_Adapter):
    """Called as diffusers calls its UNet2DConditionModel."""

    network = "unet"

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self.config = FrozenDict(unet.config.to_dict())
        if unet.config.time_cond_proj_dim is not None:
            raise UsageError(
                "This UNet cannot be called by a pipeline of diffusers.",
                "It is told the guidance scale, which such a pipeline hands over as waves.",
                "Paint with TextToImage, or use diffusers' own UNet.",
            )

    @property
    def add_embedding(self) -> Any:
        """SDXL's pipeline asks its first layer for the length of the added conditions."""
        length = self.unet.config.projection_class_embeddings_input_dim
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=length))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        _refuse(others)
        added = None
        if self.unet.config.addition_embed_type is not None:
            conditions = dict(added_cond_kwargs or {})
            added = AddedConditions(conditions.pop("text_embeds"), conditions.pop("time_ids"))
            _refuse(conditions)
        else:
            _refuse(added_cond_kwargs or {})
        out = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            added=added,
            text_mask=encoder_attention_mask,
        )
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)


class TransformersTextEncoder(_Adapter):
    """Called as diffusers calls transformers' CLIPTextModel or CLIPTextModelWithProjection."""

    network = "text_encoder"

    def __init__(self, text_encoder: CLIPTextEncoder) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.config = SimpleNamespace(**text_encoder.config.to_dict())

    @property
    def text_model(self) -> nn.Module:
        """diffusers takes the final LayerNorm from here for its clip_skip."""
        return self.text_encoder.text_model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        _refuse(others)
        encoding = self.text_encoder(input_ids, attention_mask)
        states = encoding.hidden_states if output_hidden_states else None
        if self.text_encoder.config.with_projection:
            out = CLIPTextModelOutput(
                text_embeds=encoding.pooled,  # pyright: ignore[reportArgumentType]
                last_hidden_state=encoding.last_hidden_state,  # pyright: ignore[reportArgumentType]
                hidden_states=states,  # pyright: ignore[reportArgumentType]
            )
        else:
            out = BaseModelOutputWithPooling(
                last_hidden_state=encoding.last_hidden_state,  # pyright: ignore[reportArgumentType]
                pooler_output=encoding.pooled,  # pyright: ignore[reportArgumentType]
                hidden_states=states,  # pyright: ignore[reportArgumentType]
            )
        return cast(Any, out) if return_dict else cast(Any, out).to_tuple()


class _WithProjection(TransformersTextEncoder):
    """The same, under the other name."""


def _named(adapter: type[_Adapter], module: str, name: str) -> None:
    """diffusers writes a pipeline's model_index.json by the module and the name of a class."""
    adapter.__module__, adapter.__name__ = module, name


_named(DiffusersUNet, "diffusers", "UNet2DConditionModel")
_named(TransformersTextEncoder, "transformers", "CLIPTextModel")
_named(_WithProjection, "transformers", "CLIPTextModelWithProjection")


def as_diffusers_unet(unet: UNet) -> DiffusersUNet:
    """A module for the `unet` of a diffusers pipeline."""
    return DiffusersUNet(unet)


def as_transformers_text_encoder(text_encoder: CLIPTextEncoder) -> TransformersTextEncoder:
    """A module for the `text_encoder` or `text_encoder_2` of a diffusers pipeline."""
    cls = _WithProjection if text_encoder.config.with_projection else TransformersTextEncoder
    return cls(text_encoder)


_NO_EFFECT: tuple[dict[str, float], ...] = ({}, {"scale": 1.0})


def _refuse(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if name == "cross_attention_kwargs" and value in _NO_EFFECT:
            continue
        if value is not None and value is not False:
            raise UsageError(
                f"The argument {name!r} is not supported by sdcore's model.",
                "diffusers' pipeline gave it, and without it the picture would be another one.",
                _LORA
                if name == "cross_attention_kwargs" and "scale" in value
                else f"Leave out what needs it (IP-Adapter, ControlNet, processors). {_TRACE}",
            )
