"""How LoRA files spell the layers of a model, and what their keys end in.

Underscored names cannot be split (`to_q`, `proj_in`), so nothing is parsed: the names of the
model's own layers are written in every spelling, and a file's name is looked up among them.

    kohya       lora_unet_mid_block_attentions_0_proj_in.lora_down.weight
    the same    lora_unet_middle_block_1_proj_in.lora_down.weight    (SDXL: LDM's words)
    LyCORIS     lycoris_mid_block_attentions_0_proj_in.lora_down.weight
    ComfyUI     diffusion_model.middle_block.1.proj_in.lora_up.weight
                text_encoders.clip_l.transformer.text_model.….lora_up.weight
    PEFT        base_model.model.mid_block.attentions.0.proj_in.lora_A.weight
    the same    base_model.model.unet.mid_block.….lora_A.default.weight   (its state_dict)
    diffusers   unet.mid_block.attentions.0.proj_in.lora_A.weight
    older       unet.mid_block.attentions.0.proj_in.lora.down.weight
    oldest      unet.….transformer_blocks.0.attn1.processor.to_q_lora.down.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING, NamedTuple, cast

from torch import Tensor, nn

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
    ".lora_B.bias": "bias",
    ".lora_up.bias": "bias",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    ".oft_blocks": "oft_blocks",
    ".oft_diag": "oft_blocks",
    ".rescale": "rescale",
    ".oft_R.weight": "oft_R",
    ".oft_R": "oft_R",
    ".boft_R": "boft_R",
    ".boft_s": "boft_s",
    ".ia3_l": "ia3_l",
    ".on_input": "on_input",
    **{f".{name}.weight": name for name in ("a1", "a2", "b1", "b2")},
}

# What a key ends in that belongs to a kind which sdcore does not have.
REFUSED = {
    ".bm.weight": "GLoRA with a core",
    ".lora_embedding_A": "LoRA on embeddings",
    ".lora_embedding_B": "LoRA on embeddings",
    ".lora_E": "AdaLoRA",
    ".lokr_t1": "LoKr with two cores",
    ".vera_lambda_b": "VeRA",
    ".lambda_layer": "T-LoRA",
    ".set_weight": "whole weights in place of the model's",
}

_ANY_ENDING, _ANY_REFUSED = tuple(ENDINGS), tuple(REFUSED)

# PEFT's state_dict has the adapter's name in its keys: lora_A.default.weight, oft_R.default.weight.
_NAMED_ADAPTER = re.compile(
    r"(.*\.(?:lora_[AB]|lora_down|lora_up|lora_magnitude_vector|hada_\w+?|lokr_\w+?|oft_R|boft_[Rs]|ia3_l))"
    r"\.(?!weight$|bias$)([\w.-]+?)(\.weight|\.bias)?"
)
COUNTERS = ("step", "global_step", "epoch", "iteration", "num_updates")  # what trainers leave
BUNDLED = "bundle_emb."  # learned words beside a LoRA, as OneTrainer writes them

_COMFY_TEXT = "text_encoders.clip_"
_XL_TEXT = ("lora_te2_", "text_encoder_2.", f"{_COMFY_TEXT}g.")
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
    "diffusion_model.blocks.": "a model without UNet",
    "diffusion_model.layers.": "a model without UNet",
    "lora_unet_blocks_": "a model without UNet",
    "lora_unet_layers_": "a model without UNet",
    "motion_modules": "AnimateDiff's motion modules",
    "text_encoders.t5": "a model with another text encoder",
}
_TEXT_READERS = ("attn2_to_k", "attn2.to_k", "attn2.processor.to_k")


def without_adapter(key: str) -> tuple[str, str | None]:
    """A key without the adapter's name that PEFT's state_dict has in it, and that name."""
    match = _NAMED_ADAPTER.fullmatch(key)
    return (key, None) if match is None else (match[1] + (match[3] or ""), match[2])


def split_key(key: str, stretched: Set[str] = frozenset()) -> tuple[str, str] | None:
    """A file's key to the name of a layer and that of a tensor; None: it is not of a LoRA.

    Args:
        stretched: layers of LyCORIS' IA3, whose tensor is called `weight`.
    """
    if key.endswith(".weight") and key.removesuffix(".weight") in stretched:
        return key.removesuffix(".weight"), "weight"
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


def weights_of(pipe: Model) -> dict[Place, nn.Module]:
    """Every layer with a weight: also normalisations and embeddings, which have full changes."""
    modules = _modules(parts_of(pipe))
    return {place: m for place, m in modules if isinstance(getattr(m, "weight", None), Tensor)}


def _modules(parts: Mapping[str, nn.Module]) -> Iterator[tuple[Place, nn.Module]]:
    for part, network in parts.items():
        modules = cast(Iterator[tuple[str, nn.Module]], network.named_modules())
        yield from ((Place(part, name), module) for name, module in modules)


def spellings(pipe: Model) -> dict[str, Place]:
    """Every name that a file may give to a layer of this pipeline."""
    parts = parts_of(pipe)
    names: dict[str, Place] = {}
    for place in weights_of(pipe):
        for name in _spell(place, alone="text_encoder_2" not in parts):
            assert names.setdefault(name, place) == place, f"{name} is {place} and {names[name]}"
    layers = set(names.values())
    for place, name in ldm_layers(pipe).items():
        if place in layers:
            underscored = name.replace(".", "_")
            for spelled in (f"lora_unet_{underscored}", f"lycoris_{underscored}"):
                names[spelled] = place
            names[f"diffusion_model.{name}"] = names[f"{UNET_PREFIX}{name}"] = place
    return names | _attention_spellings(parts, layers)


def ldm_layers(pipe: Model) -> dict[Place, str]:
    """The layers of the UNet as single files call them, without their prefix."""
    return {
        Place("unet", entry.parameters[0].removesuffix(".weight")): entry.name.removeprefix(
            UNET_PREFIX
        ).removesuffix(".weight")
        for entry in table({"unet": parts_of(pipe)["unet"]})["unet"]
        if entry.name.endswith(".weight")
    }


def _spell(place: Place, alone: bool) -> Iterator[str]:
    """`alone`: there is one text encoder, so that its layers need no prefix to be told apart."""
    part, layer = place
    dotted = [f"{part}.", f"base_model.model.{part}.", f"{part}.base_model.model."]
    if part == "unet" or alone:
        dotted += ["", "base_model.model."]
    dotted += {
        "unet": [],
        "text_encoder": [f"{_COMFY_TEXT}l.transformer.", f"{_COMFY_TEXT}h.transformer."],
        "text_encoder_2": [f"{_COMFY_TEXT}g.transformer."],
    }[part]
    underscored = {
        "unet": ["lora_unet_", "lycoris_"],
        "text_encoder": ["lora_te_", "lora_te1_", "lycoris_"] if alone else ["lora_te1_"],
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
        if name.endswith(_TEXT_READERS) and width not in (0, text_width):
            family = FAMILIES.get(width, "another family")
            return (
                f"It is for {family}, whose text has the width {width}; this model is "
                f"{pipe.kind.family}, width {text_width}."
            )
    second = next((name for name in widths if name.startswith(_XL_TEXT)), None)
    if second is not None and pipe.part("text_encoder_2") is None:
        return f"{second:.120} is in the second text encoder of SDXL; this model has one."
    return None
