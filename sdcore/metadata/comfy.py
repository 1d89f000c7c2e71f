"""A recipe from ComfyUI's `prompt` text: a graph of nodes as JSON.

    {"3": {"class_type": "KSampler", "inputs": {"seed": 7, "positive": ["6", 0], ...}}, "6": ...}

A value is given, or it is a link [node, output]. From the sampler the links are followed back to
the prompts, the model, the LoRAs and the size. What lies on the way and is not known is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sdcore.checks import as_finite, as_int
from sdcore.diffusion.sampler_names import from_comfy
from sdcore.files.jsonfile import is_list, is_object, parse_json_object
from sdcore.job.adapters import LoraSettings
from sdcore.job.job import Job
from sdcore.metadata.recipe import (
    COMFY,
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST_STEPS,
    Recipe,
    base_name,
    decimal,
    size_of,
    whole_number,
)

_MOST_NODES = 5000
_MOST_OUTPUTS = 20
_SAMPLERS = ("KSampler", "KSamplerAdvanced")
_OUTPUTS = ("SaveImage", "PreviewImage")
# Nodes that hand on what they get, without changing the picture.
_SILENT = (
    "Reroute",
    "CLIPSetLastLayer",
    "VAEDecode",
    "VAEDecodeTiled",
    "SaveImage",
    "PreviewImage",
)
_EMPTY_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")
_CHECKPOINTS = {
    "CheckpointLoaderSimple": "ckpt_name",
    "CheckpointLoader": "ckpt_name",
    "UNETLoader": "unet_name",
    "DiffusersLoader": "model_path",
}
# The input that is followed through a node of another kind.
_PASSED_ON = {
    "model": ("model",),
    "clip": ("clip",),
    "conditioning": ("conditioning", "conditioning_1", "conditioning_to", "positive"),
    "latent": ("samples", "latent_image", "latent", "pixels", "image", "images"),
}


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: dict[str, Any]


@dataclass
class _Graph:
    """The nodes, and what was met on the way that cannot be the same."""

    nodes: dict[str, _Node]
    differences: list[str] = field(default_factory=list[str])

    def differs(self, why: str) -> None:
        if why not in self.differences:
            self.differences.append(why)

    def linked(self, node: _Node, name: str) -> _Node | None:
        """The node that an input is linked to."""
        link = node.inputs.get(name)
        if is_list(link) and len(link) == 2 and isinstance(link[0], (str, int)):
            return self.nodes.get(str(link[0]))
        return None

    def value(self, node: _Node, name: str) -> Any:
        """An input's value; through a link, the only plain value of the node behind it."""
        value = node.inputs.get(name)
        if not isinstance(value, list):
            return value
        linked = self.linked(node, name)
        plain = (
            [v for v in linked.inputs.values() if isinstance(v, (str, int, float))]
            if linked
            else []
        )
        if len(plain) == 1:
            return plain[0]
        kind = linked.kind if linked else "no node"
        self.differs(f"{name!r:.60} comes from {kind!r:.60}, which is not followed")
        return None

    def chain(self, node: _Node | None, what: str) -> list[_Node]:
        """This node and those behind it, each by the input that carries `what`."""
        found: list[_Node] = []
        seen: set[int] = set()
        while node is not None:
            if id(node) in seen:
                raise ValueError(f"its nodes are linked in a circle at {node.kind!r:.60}")
            seen.add(id(node))
            found.append(node)
            links = (self.linked(node, name) for name in _PASSED_ON[what])
            node = next((link for link in links if link is not None), None)
        return found


def recipe_of_graph(text: str) -> Recipe:
    """What the graph says, in our words.

    Raises:
        ValueError: no such graph, links in a circle, or no sampler; the reason in one line.
    """
    graph = _Graph(_read_nodes(text))
    sampler = _find_sampler(graph)
    model, loras = _read_model(graph, sampler)
    width, height = _read_latents(graph, sampler)
    prompt, clip_skip = _read_prompt(graph, sampler, "positive")
    negative, _ = _read_prompt(graph, sampler, "negative")
    found = from_comfy(_text(graph, sampler, "sampler_name"), _text(graph, sampler, "scheduler"))
    for why in found.differences:
        graph.differs(why)
    rescales = [n for n in graph.chain(sampler, "model") if n.kind == "RescaleCFG"]
    rescale = decimal(graph.value(rescales[0], "multiplier"), 1) if rescales else None
    return Recipe(
        origin=COMFY,
        job=Job(
            prompt=prompt,
            negative_prompt=negative or None,
            seed=_seed(graph, sampler),
            steps=_whole(graph, sampler, "steps", MOST_STEPS) or None,
            guidance_scale=decimal(graph.value(sampler, "cfg"), 1000),
            guidance_rescale=rescale,
            scheduler=found.name,
            size=size_of(width, height),
            dialect="comfy",
            clip_skip=clip_skip,
            loras=loras,
        ),
        model=model,
        differences=tuple(graph.differences),
    )


def _read_nodes(text: str) -> dict[str, _Node]:
    data = parse_json_object(text.encode("utf-8", "surrogatepass"))
    if len(data) > _MOST_NODES:
        raise ValueError(f"it has {len(data)} nodes, more than {_MOST_NODES}")
    nodes: dict[str, _Node] = {}
    for number, node in data.items():
        kind, inputs = (node.get("class_type"), node.get("inputs")) if is_object(node) else (0, 0)
        if not isinstance(kind, str) or not is_object(inputs):
            raise ValueError(f"its node {number!r:.60} is not one of ComfyUI's")
        nodes[number] = _Node(kind, inputs)
    return nodes


def _find_sampler(graph: _Graph) -> _Node:
    """The sampler behind the picture, and of several in a row the first."""
    outputs = [node for node in graph.nodes.values() if node.kind in _OUTPUTS]
    starts = outputs or [node for node in graph.nodes.values() if node.kind in _SAMPLERS]
    for start in starts[:_MOST_OUTPUTS]:
        way = graph.chain(start, "latent")
        samplers = [node for node in way if node.kind in _SAMPLERS]
        if samplers:
            first = samplers[-1]
            if len(samplers) > 1:
                graph.differs(f"{len(samplers) - 1} more passes followed the first")
            for node in way[: way.index(first)]:
                if node.kind not in (*_SAMPLERS, *_SILENT):
                    graph.differs(f"node {node.kind!r:.60} is not run")
            if len(outputs) > 1:
                graph.differs(f"the graph has {len(outputs)} outputs; the first one is followed")
            return first
    kinds = sorted({node.kind for node in graph.nodes.values()})
    raise ValueError(
        f"none of {', '.join(_SAMPLERS)} is behind its picture, of nodes {kinds!s:.200}"
    )


def _read_model(graph: _Graph, sampler: _Node) -> tuple[str | None, tuple[LoraSettings, ...]]:
    """The checkpoint's name and the LoRAs in the order in which they are applied."""
    name: str | None = None
    loras: list[LoraSettings] = []
    for node in graph.chain(sampler, "model")[1:]:
        if node.kind in _CHECKPOINTS:
            name = base_name(_text(graph, node, _CHECKPOINTS[node.kind])) or None
        elif node.kind in ("LoraLoader", "LoraLoaderModelOnly"):
            loras.append(_read_lora(graph, node))
        elif node.kind not in (*_SILENT, "RescaleCFG"):
            graph.differs(f"node {node.kind!r:.60} changed the model and is not run")
    return name, tuple(reversed(loras))


def _read_lora(graph: _Graph, node: _Node) -> LoraSettings:
    name = base_name(_text(graph, node, "lora_name"))
    unet = _lora_weight(graph, node, "strength_model", name)
    if node.kind == "LoraLoaderModelOnly":
        return LoraSettings(name, unet, 0.0, "")
    return LoraSettings(name, unet, _lora_weight(graph, node, "strength_clip", name), "")


def _lora_weight(graph: _Graph, node: _Node, key: str, name: str) -> float:
    weight = graph.value(node, key)
    number = as_finite(weight, -100, 100)
    if number is None:
        graph.differs(f"{key} of LoRA {name!r:.60} is not known; 1 is used")
    return 1.0 if number is None else float(number)


def _read_latents(graph: _Graph, sampler: _Node) -> tuple[int | None, int | None]:
    way = graph.chain(graph.linked(sampler, "latent_image"), "latent")
    empty = way[-1] if way and way[-1].kind in _EMPTY_LATENTS else None
    for node in way[:-1] if empty else way:
        if node.kind not in _SILENT:
            graph.differs(f"node {node.kind!r:.60} before the sampler is not run")
    if empty is None:
        graph.differs("it began from a picture, which the file does not hold")
        return None, None
    if graph.value(empty, "batch_size") not in (1, None):
        graph.differs(
            "it was painted in a batch, whose noise was drawn in one; only its first can match"
        )
    width = _whole(graph, empty, "width", LARGEST_SIDE)
    return width, _whole(graph, empty, "height", LARGEST_SIDE)


def _read_prompt(graph: _Graph, sampler: _Node, name: str) -> tuple[str, int]:
    """The text behind one input of the sampler, and the layers left out."""
    way = graph.chain(graph.linked(sampler, name), "conditioning")
    if not way:
        raise ValueError(f"its sampler has no {name} prompt")
    for node in way[:-1]:
        graph.differs(f"node {node.kind!r:.60} changed the {name} prompt and is not run")
    if any(node.kind == "ConditioningZeroOut" for node in way):
        return "", 0
    encode = way[-1]
    if encode.kind not in ("CLIPTextEncode", "CLIPTextEncodeSDXL"):
        raise ValueError(
            f"its {name} prompt comes from node {encode.kind!r:.60}, which is not known"
        )
    text = _text(graph, encode, "text" if encode.kind == "CLIPTextEncode" else "text_g")
    if encode.kind == "CLIPTextEncodeSDXL":
        graph.differs("SDXL's size conditioning of its own is not used")
        if _text(graph, encode, "text_l") != text:
            graph.differs(f"the two text encoders read different {name} prompts; text_g is used")
    skips = [n for n in graph.chain(encode, "clip") if n.kind == "CLIPSetLastLayer"]
    layer = graph.value(skips[0], "stop_at_clip_layer") if skips else -1
    last = as_int(layer, -24, -1)
    return text, 0 if last is None else -last - 1


def _seed(graph: _Graph, sampler: _Node) -> int | None:
    if sampler.kind == "KSampler":
        if graph.value(sampler, "denoise") not in (1, None):
            graph.differs("it denoised only in part")
        return _whole(graph, sampler, "seed", LARGEST_SEED)
    begin, end = graph.value(sampler, "start_at_step"), graph.value(sampler, "end_at_step")
    steps = graph.value(sampler, "steps")
    last = as_int(steps)
    every_step = last is not None and as_int(end, last) is not None and begin in (0, None)
    if not every_step or graph.value(sampler, "add_noise") not in ("enable", None):
        graph.differs("the sampler ran only some of the steps; all are run")
    return _whole(graph, sampler, "noise_seed", LARGEST_SEED)


def _whole(graph: _Graph, node: _Node, name: str, most: int) -> int | None:
    value = graph.value(node, name)
    number = whole_number(value, most)
    if number is None:
        graph.differs(f"{name} {value!r:.60} cannot be used")
    return number


def _text(graph: _Graph, node: _Node, name: str) -> str:
    value = graph.value(node, name)
    return value if isinstance(value, str) else ""
