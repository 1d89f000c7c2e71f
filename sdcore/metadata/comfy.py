"""A recipe from ComfyUI's `prompt` or `workflow` text: a graph of nodes as JSON.

    {"3": {"class_type": "KSampler", "inputs": {"seed": 7, "positive": ["6", 0], ...}}, "6": ...}

From the picture the links are followed back to the sampler, and from it to the prompts, the model,
the LoRAs and the size. What lies on the way and is not known is named. Nodes of extensions are
known by what they take: whatever has steps, cfg and a sampler's name is a sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdcore.checks import as_int
from sdcore.diffusion.sampler_names import from_comfy
from sdcore.files.jsonfile import is_list
from sdcore.job.adapters import LoraSettings
from sdcore.job.job import Job
from sdcore.metadata.comfy_graph import ROLES, Graph, Node, Reached, read_graph
from sdcore.metadata.comfy_loras import has_loras, loras_of, read_stacks
from sdcore.metadata.comfy_sampling import (
    SAMPLERS,
    Sampling,
    decimal_of,
    is_sampler,
    read_sampling,
)
from sdcore.metadata.recipe import (
    COMFY,
    LARGEST_SIDE,
    Recipe,
    base_name,
    size_of,
    whole_number,
)

_MOST_OUTPUTS = 20
_OUTPUTS = ("SaveImage", "PreviewImage")
# Nodes that hand on what they get, without changing the picture.
_SILENT = (
    *("Reroute", "CLIPSetLastLayer", "VAEDecode", "VAEDecodeTiled", *_OUTPUTS),
    *("Reroute (rgthree)", "ReroutePrimitive|pysssss", "ImpactSwitch", "Any Switch (rgthree)"),
    *("Context (rgthree)", "Context Big (rgthree)", "SaveImageWebsocket", "Image Save"),
    *("ToBasicPipe", "FromBasicPipe", "FromBasicPipe_v2"),
)
_CHECKPOINTS = ("ckpt_name", "base_ckpt_name", "unet_name", "model_path")
_TEXT_INPUTS = ("text", "populated_text", "text_g", "prompt", "string")
# Of encoders that give a text to each of several: the first that holds one is taken.
_SEVERAL = ("clip_g", "clip_l", "t5xxl", "llama", "bert", "mt5xl")
_SIDES = {"width": ("width", "empty_latent_width"), "height": ("height", "empty_latent_height")}
_SDXL = "CLIPTextEncodeSDXL"
_ENCODERS = (
    *("CLIPTextEncode", _SDXL, "CLIPTextEncodeSDXLRefiner", "BNK_CLIPTextEncodeAdvanced"),
    *("smZ CLIPTextEncode", "ImpactWildcardEncode", "Efficient Loader", "Eff. Loader SDXL"),
    *("easy fullLoader", "easy a1111Loader", "easy comfyLoader"),
)
# How some encoders say that they read weights as the web UI does.
_INTERPRETATIONS = ("weight_interpretation", "parser")


@dataclass(frozen=True)
class _Prompt:
    """A prompt, the layers left out, and the dialect in which it is read."""

    text: str
    clip_skip: int
    dialect: str


def recipe_of_graph(text: str) -> Recipe:
    """What the graph says, in our words.

    Raises:
        ValueError: no such graph, links in a circle, or no sampler; the reason in one line.
    """
    graph = read_graph(text)
    sampler = _find_sampler(graph)
    sampling = read_sampling(graph, sampler)
    model, loras = _read_model(graph, sampling)
    width, height = _read_latents(graph, sampler)
    prompt = _read_prompt(graph, sampling, "positive")
    negative = _read_prompt(graph, sampling, "negative") if sampling.guided else None
    found = from_comfy(sampling.solver, sampling.levels)
    for why in found.differences:
        graph.differs(why)
    rescales = [r.node for r in graph.chain(sampling.model, "model") if r.node.kind == "RescaleCFG"]
    rescale = decimal_of(graph, rescales[0], "multiplier", 1) if rescales else None
    return Recipe(
        origin=COMFY,
        job=Job(
            prompt=prompt.text,
            negative_prompt=negative.text or None if negative else None,
            seed=sampling.seed,
            steps=sampling.steps or None,
            guidance_scale=sampling.scale,
            guidance_rescale=rescale,
            scheduler=found.name,
            size=size_of(width, height),
            dialect=prompt.dialect,
            clip_skip=prompt.clip_skip,
            loras=loras,
        ),
        model=model,
        differences=tuple(graph.differences),
    )


def _find_sampler(graph: Graph) -> Node:
    """The sampler behind the picture, and of several in a row the first."""
    outputs = _outputs(graph)
    samplers = [node for node in graph.nodes.values() if is_sampler(node)]
    for start in [*outputs, *samplers][: _MOST_OUTPUTS + len(outputs)]:
        way = [reached.node for reached in graph.chain(Reached(start), "latent")]
        found = [node for node in way if is_sampler(node)]
        if not found:
            continue
        first = found[-1]
        if len(found) > 1:
            more = "one more pass" if len(found) == 2 else f"{len(found) - 1} more passes"
            graph.differs(f"{more} followed the first")
        for node in way[: way.index(first)]:
            if not is_sampler(node) and node.kind not in _SILENT and node is not start:
                graph.differs(f"node {node.kind!r:.60} is not run")
        _note_own_vae(graph, way[: way.index(first)])
        if len(outputs) > 1:
            graph.differs(f"the graph has {len(outputs)} outputs; the first one is followed")
        return first
    kinds = sorted({node.kind for node in graph.nodes.values()})
    raise ValueError(
        f"none of {', '.join(SAMPLERS)} is behind its picture, of nodes {kinds!s:.200}"
    )


def _note_own_vae(graph: Graph, way: list[Node]) -> None:
    for node in way:
        vae = graph.chain(Reached(node), "vae")[-1].node
        name = base_name(graph.text(vae, "vae_name")) if "vae_name" in vae.inputs else ""
        if name and not any(key in vae.inputs for key in _CHECKPOINTS):
            graph.differs(f"a VAE of its own was used, {name!r:.60}")
            return


def _outputs(graph: Graph) -> list[Node]:
    """The nodes that write or show a picture, or those with one whose outputs nobody reads."""
    known = [[n for n in graph.nodes.values() if n.kind == kind] for kind in _OUTPUTS]
    for nodes in known:
        if nodes:
            return nodes[:_MOST_OUTPUTS]
    read = {str(v[0]) for n in graph.nodes.values() for v in n.inputs.values() if is_list(v) and v}
    ends = [node for number, node in graph.nodes.items() if number not in read]
    return [n for n in ends if any(is_list(n.inputs.get(name)) for name in ("images", "image"))][
        :_MOST_OUTPUTS
    ]


def _read_model(graph: Graph, sampling: Sampling) -> tuple[str | None, tuple[LoraSettings, ...]]:
    """The checkpoint's name and the LoRAs in the order in which they are applied."""
    name: str | None = None
    loras: list[LoraSettings] = []
    for reached in graph.chain(sampling.model, "model"):
        node = reached.node
        found = loras_of(graph, node)
        loras += [*reversed(found), *reversed(read_stacks(graph, node))]
        key = next((key for key in _CHECKPOINTS if key in node.inputs), None)
        if key is not None:
            name = base_name(graph.text(node, key)) or None
        elif not (found or is_sampler(node) or _hands_on_model(node)):
            graph.differs(f"node {node.kind!r:.60} changed the model and is not run")
    return name, tuple(reversed(loras))


def _hands_on_model(node: Node) -> bool:
    """A node whose effect on the model is known, or none: of LoRAs, all of them may be off."""
    return node.kind in (*_SILENT, "RescaleCFG") or has_loras(node)


def _read_latents(graph: Graph, sampler: Node) -> tuple[int | None, int | None]:
    way = [reached.node for reached in graph.chain(Reached(sampler), "latent")][1:]
    empty = way[-1] if way and _is_empty(way[-1]) else None
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
    return _side(graph, empty, "width"), _side(graph, empty, "height")


def _is_empty(node: Node) -> bool:
    """Whether a node makes latents of nothing, by its size alone."""
    sized = all(any(key in node.inputs for key in keys) for keys in _SIDES.values())
    pictures = any(is_list(node.inputs.get(name)) for name in ("image", "images", "pixels"))
    return sized and not pictures and not is_list(node.inputs.get("samples"))


def _side(graph: Graph, node: Node, name: str) -> int | None:
    key = next(key for key in _SIDES[name] if key in node.inputs)
    value = graph.value(node, key)
    number = whole_number(value, LARGEST_SIDE)
    if number is None:
        graph.differs(f"{name} {value!r:.60} cannot be used")
    return number


def _read_prompt(graph: Graph, sampling: Sampling, role: str) -> _Prompt:
    """The text behind one input of the sampler, the layers left out, and how it is read."""
    way = graph.chain(sampling.prompts[role], "conditioning", role)
    if not way:
        raise ValueError(f"its sampler has no {role} prompt")
    for reached in way[:-1]:
        if reached.node.kind not in _SILENT and not is_sampler(reached.node):
            graph.differs(
                f"node {reached.node.kind!r:.60} changed the {role} prompt and is not run"
            )
    if any(reached.node.kind == "ConditioningZeroOut" for reached in way):
        return _Prompt("", 0, "comfy")
    for reached in way:  # a node with both prompts says at which output it was reached
        role = reached.role or role
    encode = way[-1].node
    key = role if all(r in encode.inputs for r in ROLES) else None
    key = key or next((k for k in _TEXT_INPUTS if k in encode.inputs), None)
    if encode.kind not in _ENCODERS:
        graph.differs(f"node {encode.kind!r:.60} is read as if it were CLIPTextEncode")
    text = _text_of_unknown(graph, encode, role) if key is None else graph.text(encode, key)
    encoders = graph.chain(Reached(encode), "clip")[-1].node
    if any(name.startswith("clip_name") for name in encoders.inputs):
        graph.differs("text encoders of their own were used")
    if encode.kind == _SDXL:
        graph.differs("SDXL's size conditioning of its own is not used")
        if graph.text(encode, "text_l") != text:
            graph.differs(f"the two text encoders read different {role} prompts; text_g is used")
    return _Prompt(text, _clip_skip(graph, encode), _dialect(encode))


def _text_of_unknown(graph: Graph, encode: Node, role: str) -> str:
    """The text of an encoder that has none of the usual inputs. ValueError: it has no text."""
    several = [name for name in _SEVERAL if name in encode.inputs]
    texts = {name: graph.text(encode, name) for name in several or graph.texts_in(encode)}
    texts = {name: text for name, text in texts.items() if text.strip()}
    if not texts and not several:
        raise ValueError(
            f"its {role} prompt comes from node {encode.kind!r:.60}, which is not known"
        )
    # Options are words; a prompt is longer.
    name = next(iter(texts), "") if several else max(texts, key=lambda name: len(texts[name]))
    if several and len(set(texts.values())) > 1:
        graph.differs(f"the text encoders read different {role} prompts; {name} is used")
    elif not several:
        graph.differs(f"the {role} prompt is taken from {name!r:.60} of {encode.kind!r:.60}")
    return texts.get(name, "")


def _clip_skip(graph: Graph, encode: Node) -> int:
    way = [reached.node for reached in graph.chain(Reached(encode), "clip")]
    for node in way:
        for key in ("stop_at_clip_layer", "clip_skip", "base_clip_skip"):
            if key in node.inputs:
                last = as_int(graph.value(node, key), -24, -1)
                return 0 if last is None else -last - 1
    return 0


def _dialect(encode: Node) -> str:
    said = [str(encode.inputs.get(name, "")).lower() for name in _INTERPRETATIONS]
    return "a1111" if "a1111" in said else "comfy"
