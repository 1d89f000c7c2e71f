"""How LoRA files spell the layers of a model, and what their keys end in.

Underscored names cannot be split (`to_q`, `proj_in`), so nothing is parsed: the names of the
model's own layers are written in every spelling, and a file's name is looked up among them.

    kohya       lora_unet_mid_block_attentions_0_proj_in.lora_down.weight
    the same    lora_unet_middle_block_1_proj_in.lora_down.weight    (SDXL: LDM's words)
    PEFT        base_model.model.mid_block.attentions.0.proj_in.lora_A.weight
    diffusers   unet.mid_block.attentions.0.proj_in.lora_A.weight
    older       unet.mid_block.attentions.0.proj_in.lora.down.weight
    oldest      unet.….transformer_blocks.0.attn1.processor.to_q_lora.down.weight
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING, NamedTuple, cast

from torch import nn

from sdcore.adapters.lora_math import Hadamard, Kronecker
from sdcore.attention import CrossAttention, SelfAttention
from sdcore.checkpoint.kind import FAMILIES
from sdcore.checkpoint.ldm_names import UNET_PREFIX, table
from sdcore.checkpoint.parts import TEXT_ENCODERS
from sdcore.text.encoder import CLIPTextAttention

if TYPE_CHECKING:
    from sdcore.checkpoint.model import Model

CHANGED = ("unet", *TEXT_ENCODERS)  # the parts of a model that LoRAs change


class Place(NamedTuple):
    """One layer of a pipeline: which network, and the layer's published name in it."""

    part: str
    layer: str

    def __str__(self) -> str:
        return f"{self.part}.{self.layer}"


# What a key ends in -> the tensor's name in lora_math.py, or `alpha`. `vector` is PEFT's
# spelling of `magnitude`, always one length for each output.
ENDINGS = {
    ".alpha": "alpha",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".dora_scale": "magnitude",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_magnitude_vector": "vector",
    ".lora_magnitude_vector.weight": "vector",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    **{f".{name}": name for kind in (Hadamard, Kronecker) for form in kind.FORMS for name in form},
}

# What a key ends in that belongs to a kind which sdcore does not have.
REFUSED = {
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".oft_r": "OFT",
    ".oft_R.weight": "OFT",
    ".boft_R": "BOFT",
    ".on_input": "IA3",
    ".ia3_l": "IA3",
    ".a1.weight": "GLoRA",
    ".b1.weight": "GLoRA",
    ".diff": "full weight differences",
    ".diff_b": "full bias differences",
    ".w_norm": "trained normalisation layers",
    ".b_norm": "trained normalisation layers",
    ".lora_B.bias": "LoRA with a bias",
    ".lora_embedding_A": "LoRA on embeddings",
    ".lora_embedding_B": "LoRA on embeddings",
    ".lora_E": "AdaLoRA",
    ".lokr_t1": "LoKr with two cores",
    ".vera_lambda_b": "VeRA",
}

_ANY_ENDING, _ANY_REFUSED = tuple(ENDINGS), tuple(REFUSED)

_XL_TEXT = ("lora_te2_", "text_encoder_2.")
# Parts of a name that no model with a UNet and CLIP has.
_OTHER_MODELS = {
    "joint_blocks": "Stable Diffusion 3",
    "lora_te3_": "Stable Diffusion 3",
    "text_encoder_3.": "Stable Diffusion 3",
    "double_blocks": "Flux",
    "single_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "lora_prior_": "Stable Cascade",
    "lora_transformer_": "a model without UNet",
    "transformer.": "a model without UNet",
    "diffusion_model.": "another program or model",
}
_TEXT_READERS = ("attn2_to_k", "attn2.to_k", "attn2.processor.to_k")


def split_key(key: str) -> tuple[str, str] | None:
    """A file's key to the name of a layer and that of a tensor; None: it is not of a LoRA."""
    if not key.endswith(_ANY_ENDING):
        return None
    ending = next(ending for ending in ENDINGS if key.endswith(ending))
    return key.removesuffix(ending), ENDINGS[ending]


def refused_kind(key: str) -> str | None:
    """The kind that a key belongs to and that sdcore does not have; None for any other key."""
    if not key.endswith(_ANY_REFUSED):
        return None
    return next(kind for ending, kind in REFUSED.items() if key.endswith(ending))


def parts_of(pipe: Model) -> dict[str, nn.Module]:
    """The networks of a pipeline that LoRAs change, by their names in diffusers."""
    found = {part: pipe.part(part) for part in CHANGED}
    return {part: network for part, network in found.items() if network is not None}


def layers_of(pipe: Model) -> dict[Place, nn.Linear | nn.Conv2d]:
    """Every layer that a LoRA can change."""
    modules = _modules(parts_of(pipe))
    return {place: module for place, module in modules if isinstance(module, nn.Linear | nn.Conv2d)}


def _modules(parts: Mapping[str, nn.Module]) -> Iterator[tuple[Place, nn.Module]]:
    for part, network in parts.items():
        modules = cast(Iterator[tuple[str, nn.Module]], network.named_modules())
        yield from ((Place(part, name), module) for name, module in modules)


def spellings(pipe: Model) -> dict[str, Place]:
    """Every name that a file may give to a layer of this pipeline."""
    parts = parts_of(pipe)
    names: dict[str, Place] = {}
    for place in layers_of(pipe):
        for name in _spell(place, alone="text_encoder_2" not in parts):
            assert names.setdefault(name, place) == place, f"{name} is {place} and {names[name]}"
    layers = set(names.values())
    for entry in table({"unet": parts["unet"]})["unet"]:
        place = Place("unet", entry.parameters[0].removesuffix(".weight"))
        if place in layers:
            name = entry.name.removeprefix(UNET_PREFIX).removesuffix(".weight")
            names[f"lora_unet_{name.replace('.', '_')}"] = place
    return names | _attention_spellings(parts, layers)


def _spell(place: Place, alone: bool) -> Iterator[str]:
    """`alone`: there is one text encoder, so that its layers need no prefix to be told apart."""
    part, layer = place
    dotted = [f"{part}."]
    if part == "unet" or alone:
        dotted += ["", "base_model.model."]
    underscored = {
        "unet": ["lora_unet_"],
        "text_encoder": ["lora_te_", "lora_te1_"] if alone else ["lora_te1_"],
        "text_encoder_2": ["lora_te2_"],
    }[part]
    # transformers 5 writes CLIPTextModel's layers without the first word
    for name in dict.fromkeys((layer, layer.removeprefix("text_model."))):
        yield from (prefix + name for prefix in dotted)
        yield from (prefix + name.replace(".", "_") for prefix in underscored)


def _attention_spellings(parts: Mapping[str, nn.Module], layers: Set[Place]) -> dict[str, Place]:
    """diffusers' oldest names, in which every attention has to_q, to_k, to_v and to_out."""
    old: dict[Place, list[str]] = {}
    for (part, name), module in _modules(parts):
        if isinstance(module, SelfAttention | CrossAttention):
            for layer in ("to_q", "to_k", "to_v", "to_out.0"):
                spelled = f"{name}.processor.{layer.removesuffix('.0')}"
                old[Place(part, f"{name}.{layer}")] = [spelled, f"{name}.processor.{layer}"]
        elif isinstance(module, CLIPTextAttention):
            for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
                spelled = f"{name}.to_{layer.removesuffix('_proj')}"
                old[Place(part, f"{name}.{layer}")] = [spelled]
    prefixes = {part: [f"{part}."] for part in parts} | {"unet": ["unet.", ""]}
    return {
        prefix + name: place
        for place, spelled in old.items()
        if place in layers
        for prefix in prefixes[place.part]
        for name in spelled
    }


def made_for_another(widths: Mapping[str, int], pipe: Model) -> str | None:
    """Why a file belongs to another family than this pipeline; None where nothing tells.

    Args:
        widths: the file's layers, and the width of what each of them reads.
    """
    for name in widths:
        for mark, family in _OTHER_MODELS.items():
            if name.startswith(mark) or (mark[-1] not in "._" and mark in name):
                return f"{name:.120} is a layer of {family}, this model is {pipe.kind.family}."
    text_width = pipe.kind.text_width
    for name, width in widths.items():
        if name.endswith(_TEXT_READERS) and width != text_width:
            family = FAMILIES.get(width, "another family")
            return (
                f"It is for {family}, whose text has the width {width}; this model is "
                f"{pipe.kind.family}, width {text_width}."
            )
    second = next((name for name in widths if name.startswith(_XL_TEXT)), None)
    if second is not None and pipe.part("text_encoder_2") is None:
        return f"{second:.120} is in the second text encoder of SDXL; this model has one."
    return None
