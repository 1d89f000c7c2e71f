"""The names of single-file checkpoints: one table, read in both directions.

Single files keep the names of the first programs (latent-diffusion, OpenCLIP); parameters here have
those of diffusers and transformers. The numbers are the same, but for three things: OpenCLIP stacks
the weights of query, key and value into one tensor and keeps its projection transposed, and the
autoencoder's attention is written as 1x1 convolutions. Facts checked against diffusers 0.42's
loaders/single_file_utils.py and scripts/convert_diffusers_to_original_stable_diffusion.py.

    here      down_blocks.0.resnets.1.conv1.weight
    in files  model.diffusion_model.input_blocks.2.0.in_layers.2.weight

The templates below name modules; every width and depth comes from the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdcore.image.autoencoder_config import AutoencoderConfig
from sdcore.text.config import CLIPTextConfig
from sdcore.unet.config import UNetConfig

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    name: name
    for name in (
        *("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"),
        *("quant_conv", "post_quant_conv"),
    )
}
_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}  # the rest of a block has one name in both
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    **{
        f"self_attn.{part}_proj.{kind}": f"attn.in_proj_{kind}"
        for part in "qkv"
        for kind in ("weight", "bias")
    },
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a single file, and the parameters of one model that it holds.

    name:       in the file.
    parameters: ours; more than one where the file stacks them along the first axis.
    form:       how the file turns it: transposed, or a matrix as a 1x1 convolution.
    """

    name: str
    parameters: tuple[str, ...]
    form: Literal["same", "transposed", "convolution"] = "same"

    def to_file(self, parameters: Sequence[Tensor]) -> Tensor:
        """The tensor of the file."""
        whole = torch.cat(list(parameters)) if len(parameters) > 1 else parameters[0]
        if self.form == "transposed":
            return whole.T
        return whole[:, :, None, None] if self.form == "convolution" else whole

    def from_file(self, tensor: Tensor) -> list[Tensor]:
        """The parameters, each with memory of its own; exactly undoes `to_file`."""
        if self.form == "transposed":
            return [tensor.T.contiguous()]
        if self.form == "convolution" and tensor.ndim == 4:
            return [tensor[:, :, 0, 0]]
        if len(self.parameters) == 1:
            return [tensor]
        return [part.clone() for part in tensor.chunk(len(self.parameters))]


def table(
    models: Mapping[str, nn.Module],
    parts: Collection[str] | None = None,
    published_text: Collection[str] = (),
) -> dict[str, list[Entry]]:
    """Component -> the tensors that a single file holds for it.

    Args:
        models: under diffusers' names: unet, vae, text_encoder, text_encoder_2. On the meta device
            is enough.
        parts: all components of the model that the file is of, where `models` are not all.
        published_text: text encoders of OpenCLIP's that the file has under transformers' names.
    """
    every = models if parts is None else parts
    return {
        part: _entries(part, model, every, part in published_text) for part, model in models.items()
    }


def text_prefix(part: str, parts: Iterable[str]) -> str:
    """What the names of a text encoder begin with in a file of these components."""
    parts = list(parts)
    if "text_encoder_2" not in parts:
        return "cond_stage_model."
    embedder = 1 if part == "text_encoder_2" and "text_encoder" in parts else 0
    return f"conditioner.embedders.{embedder}."


def is_open_clip(config: CLIPTextConfig) -> bool:
    """Whether this is one of OpenCLIP's encoders, which files keep under OpenCLIP's names.

    OpenAI's own were trained with the approximate GELU, the ones of OpenCLIP in use (ViT-H, bigG)
    with the exact one.
    """
    return config.hidden_act == "gelu"


def _entries(part: str, model: Any, parts: Iterable[str], published: bool) -> list[Entry]:
    if part == "unet":
        prefix, modules = UNET_PREFIX, _unet_modules(model.config)
    elif part == "vae":
        prefix, modules = VAE_PREFIX, _vae_modules(model.config)
    else:
        prefix, modules = text_prefix(part, parts), _text_modules(model.config, published)
    grouped: dict[str, list[str]] = {}
    matrices: set[str] = set()
    for name, value in model.state_dict().items():
        theirs = prefix + _rename(name, modules)
        grouped.setdefault(theirs, []).append(name)
        if value.ndim == 2:
            matrices.add(theirs)
    return [
        Entry(theirs, tuple(ours), _form(theirs, theirs in matrices))
        for theirs, ours in grouped.items()
    ]


def _form(name: str, matrix: bool) -> Literal["same", "transposed", "convolution"]:
    if name.endswith(".text_projection"):
        return "transposed"  # of OpenCLIP; transformers' ends in .weight
    return "convolution" if matrix and name.startswith(VAE_PREFIX) else "same"


def _rename(name: str, modules: Mapping[str, str]) -> str:
    """`name` with its longest beginning that is in the table replaced."""
    end = len(name)
    while name[:end] not in modules:
        end = name.rfind(".", 0, end)
        assert end > 0, f"{name} is not in the table"
    return modules[name[:end]] + name[end:]


def _nested(ours: str, theirs: str, inner: Mapping[str, str]) -> dict[str, str]:
    """A module and the modules inside it."""
    return {ours: theirs} | {f"{ours}.{a}": f"{theirs}.{b}" for a, b in inner.items()}


def _unet_modules(config: UNetConfig) -> dict[str, str]:
    """Ours -> theirs: LDM numbers all residual blocks and resamplings of a way in one row."""
    modules = dict(_UNET)
    for i in (0, 2):
        modules |= _nested(f"mid_block.resnets.{i // 2}", f"middle_block.{i}", _UNET_RESNET)
    levels = config.levels()
    numbers = count(1)
    for level in levels:
        ours = f"down_blocks.{level.number}"
        for i in range(level.layers):
            theirs = f"input_blocks.{next(numbers)}"
            modules |= _nested(f"{ours}.resnets.{i}", f"{theirs}.0", _UNET_RESNET)
            modules[f"{ours}.attentions.{i}"] = f"{theirs}.1"
        if not level.coarsest:
            modules[f"{ours}.downsamplers.0.conv"] = f"input_blocks.{next(numbers)}.0.op"
    numbers = count()
    for level in reversed(levels):
        ours, theirs = f"up_blocks.{level.up_number}", ""
        for i in range(level.layers + 1):
            theirs = f"output_blocks.{next(numbers)}"
            modules |= _nested(f"{ours}.resnets.{i}", f"{theirs}.0", _UNET_RESNET)
            modules[f"{ours}.attentions.{i}"] = f"{theirs}.1"
        place = 1 if level.up_transformers is None else 2  # after the last block's attention
        modules[f"{ours}.upsamplers.0.conv"] = f"{theirs}.{place}.conv"
    return modules


def _vae_modules(config: AutoencoderConfig) -> dict[str, str]:
    """Ours -> theirs: LDM counts the decoder's levels from the finest, ours from the coarsest."""
    modules = dict(_VAE)
    levels, layers = len(config.block_out_channels), config.layers_per_block
    for level in range(levels):
        ours, theirs = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        for i in range(layers):
            modules |= _nested(f"{ours}.resnets.{i}", f"{theirs}.block.{i}", _VAE_RESNET)
        modules[f"{ours}.downsamplers.0.conv"] = f"{theirs}.downsample.conv"
        ours, theirs = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        for i in range(layers + 1):
            modules |= _nested(f"{ours}.resnets.{i}", f"{theirs}.block.{i}", _VAE_RESNET)
        modules[f"{ours}.upsamplers.0.conv"] = f"{theirs}.upsample.conv"
    for way in ("encoder", "decoder"):
        for i in (0, 1):
            ours, theirs = f"{way}.mid_block.resnets.{i}", f"{way}.mid.block_{i + 1}"
            modules |= _nested(ours, theirs, _VAE_RESNET)
        ours, theirs = f"{way}.mid_block.attentions.0", f"{way}.mid.attn_1"
        modules |= _nested(ours, theirs, _VAE_ATTENTION)
        modules[f"{way}.conv_norm_out"] = f"{way}.norm_out"
    return modules


def _text_modules(config: CLIPTextConfig, published: bool) -> dict[str, str]:
    if published or not is_open_clip(config):
        return {
            "text_model": "transformer.text_model",
            "text_projection": "transformer.text_projection",
        }
    modules = {ours: f"model.{theirs}" for ours, theirs in _OPEN_CLIP.items()}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"text_model.encoder.layers.{i}", f"model.transformer.resblocks.{i}"
        modules |= _nested(ours, theirs, _OPEN_CLIP_LAYER)
    return modules
