"""The LoRAs of a ComfyUI graph: one a node, or several in a stack, as extensions have them."""

from __future__ import annotations

import re
from typing import Any

from sdcore.checks import as_finite
from sdcore.files.jsonfile import is_object
from sdcore.job.adapters import LoraSettings
from sdcore.metadata.comfy_graph import Graph, Node
from sdcore.metadata.recipe import base_name, number_of

_NOTHING = ("", "None", "none")
# A stack's inputs end in a number: lora_name_1, lora_01, model_weight_1, strength_01, ...
_NUMBERED = re.compile(r"(?:lora_name|lora)_0*(\d{1,3})")
_MODEL = ("model_weight", "model_str", "model_strength", "lora_wt", "strength", "lora_strength")
_CLIP = ("clip_weight", "clip_str", "clip_strength")
_SIMPLE = "simple"  # the stacker's mode in which one weight counts for both


def has_loras(node: Node) -> bool:
    """Whether a node adds LoRAs in one of the ways that are known here, perhaps none of them."""
    known = any(key == "lora_name" or _NUMBERED.fullmatch(key) for key in node.inputs)
    return known or "lora_stack" in node.inputs


def loras_of(graph: Graph, node: Node) -> list[LoraSettings]:
    """The LoRAs that a node adds to a model, in the order in which it does."""
    if "lora_name" in node.inputs:
        name = base_name(graph.text(node, "lora_name"))
        if name in _NOTHING:
            return []
        unet, clip = (
            ("lora_model_strength", "lora_clip_strength")
            if "lora_model_strength" in node.inputs
            else ("strength_model", "strength_clip")
        )
        if "strength" in node.inputs and unet not in node.inputs:
            unet = clip = "strength"
        weight = _weight(graph, node, unet, name)
        if node.kind.endswith("ModelOnly"):
            return [LoraSettings(name, weight, 0.0, "")]
        return [LoraSettings(name, weight, _weight(graph, node, clip, name), "")]
    return _stacked(graph, node)


def read_stacks(graph: Graph, node: Node) -> list[LoraSettings]:
    """The LoRAs of the stacks that are linked to a node; the last one of the chain comes first."""
    way = graph.chain(graph.link(node, "lora_stack"), "loras")
    found = [_stacked(graph, reached.node) for reached in reversed(way)]
    return [lora for stack in found for lora in stack]


def _stacked(graph: Graph, node: Node) -> list[LoraSettings]:
    found: list[LoraSettings] = []
    for key, value in node.inputs.items():
        numbered = _NUMBERED.fullmatch(key)
        if numbered is None:
            continue
        if is_object(value):
            found += _switched(graph, value)
            continue
        number = numbered[1]
        if not _is_on(node, number):
            continue
        name = base_name(graph.text(node, key))
        if name not in _NOTHING:
            simple = node.inputs.get("input_mode") == _SIMPLE
            unet = _numbered(graph, node, _MODEL if not simple else ("lora_wt",), number, name)
            text = None if simple else _numbered(graph, node, _CLIP, number, name)
            weight = 1.0 if unet is None else unet
            found.append(LoraSettings(name, weight, weight if text is None else text, ""))
    return found


def _is_on(node: Node, number: str) -> bool:
    off = node.inputs.get(f"switch_{number}", "On") in ("Off", False)
    count = as_finite(node.inputs.get("lora_count"))
    return not off and (count is None or int(number) <= count)


def _numbered(
    graph: Graph, node: Node, names: tuple[str, ...], number: str, lora: str
) -> float | None:
    for name in names:
        for key in (f"{name}_{number}", f"{name}_0{number}"):
            if key in node.inputs:
                return _weight(graph, node, key, lora)
    return None


def _switched(graph: Graph, value: dict[str, Any]) -> list[LoraSettings]:
    """{"on": true, "lora": "x.safetensors", "strength": 0.8, "strengthTwo": null}."""
    name = value.get("lora")
    if not value.get("on") or not isinstance(name, str) or base_name(name) in _NOTHING:
        return []
    entry, lora = Node("LoRA", value), base_name(name)
    unet = _weight(graph, entry, "strength", lora)
    two = value.get("strengthTwo") is not None
    return [
        LoraSettings(lora, unet, _weight(graph, entry, "strengthTwo", lora) if two else unet, "")
    ]


def _weight(graph: Graph, node: Node, key: str, name: str) -> float:
    number = as_finite(number_of(graph.value(node, key)), -100, 100)
    if number is None:
        graph.differs(f"{key} of LoRA {name!r:.60} is not known; 1 is used")
    return 1.0 if number is None else float(number)
