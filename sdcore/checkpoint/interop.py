"""Our UNet and text encoder inside diffusers' own pipelines, in place of its modules.

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet = as_diffusers_unet(UNet.from_pretrained(folder, subfolder="unet"))
    pipe.text_encoder = as_transformers_text_encoder(CLIPTextEncoder.from_pretrained(...))

The adapters hold our modules and share their weights; they translate arguments and answers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from sdcore.errors import UsageError
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.unet.unet import AddedConditions, UNet


class _Adapter(nn.Module):
    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class DiffusersUNet(_Adapter):
    """Called as diffusers calls its UNet2DConditionModel."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        # The settings that we leave out stand at "none" in every UNet that we can be built from.
        self.config = FrozenDict({**unet.config.to_dict(), "time_cond_proj_dim": None})

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


def as_diffusers_unet(unet: UNet) -> DiffusersUNet:
    """A module for the `unet` of a diffusers pipeline."""
    return DiffusersUNet(unet)


def as_transformers_text_encoder(text_encoder: CLIPTextEncoder) -> TransformersTextEncoder:
    """A module for the `text_encoder` or `text_encoder_2` of a diffusers pipeline."""
    return TransformersTextEncoder(text_encoder)


def _refuse(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise UsageError(
                f"The argument {name!r} is not supported by sdcore's model.",
                "diffusers' pipeline gave it, and without it the picture would be another one.",
                "Leave out what needs it (IP-Adapter, ControlNet, attention processors).",
            )
