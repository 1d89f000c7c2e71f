"""ComfyUI's `workflow` text: the graph as its page draws it, in the form in which it runs.

    {"nodes": [{"id": 3, "type": "KSampler", "mode": 0,
                "inputs": [{"name": "model", "link": 1}, ...],
                "widgets_values": [42, "fixed", 20, ...]}, ...],
     "links": [[1, 4, 0, 3, 0, "MODEL"], ...], "definitions": {"subgraphs": [...]}}

Values stand without names, in the order of a node's widgets. Nodes may be muted (left out) or
bypassed (what they get is handed on), and one may stand for a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdcore.files.jsonfile import is_list, is_object
from sdcore.files.limits import GRAPH_NODES

_MUTED, _BYPASSED = 2, 4
_NOTES = ("Note", "MarkdownNote")
# The ends of a graph that stands inside of a node.
_FROM_OUTSIDE, _TO_OUTSIDE = -10, -20
_DEEPEST = 100
# Behind a seed: what becomes of it after the run.
_AFTER = ("fixed", "increment", "decrement", "randomize")
# The widgets of nodes in the order of their values; newer pages write the names beside them.
_SAMPLES = ("steps", "cfg", "sampler_name", "scheduler")
_WIDGETS: dict[str, tuple[str, ...]] = {
    "KSampler": ("seed", *_SAMPLES, "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", *_SAMPLES, "start_at_step", "end_at_step"),
    "SamplerCustom": ("add_noise", "noise_seed", "cfg"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "ExponentialScheduler": ("steps", "sigma_max", "sigma_min"),
    "SDTurboScheduler": ("steps", "denoise"),
    "AlignYourStepsScheduler": ("model_type", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": (
        *("width", "height", "crop_w", "crop_h", "target_width", "target_height"),
        *("text_g", "text_l"),
    ),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "VAELoader": ("vae_name",),
    "CLIPLoader": ("clip_name", "type"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "RescaleCFG": ("multiplier",),
    "PrimitiveNode": ("value",),
}


@dataclass(frozen=True)
class _Scope:
    """A graph, and the node that it stands inside of, if any."""

    prefix: str
    nodes: dict[Any, dict[str, Any]]
    links: dict[Any, tuple[Any, Any, Any, Any]]  # id -> from node, its output, to node, its input
    graphs: dict[Any, dict[str, Any]]  # those that nodes stand for, by the node's type
    outer: tuple[_Scope, dict[str, Any]] | None = None


def prompt_of_workflow(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Number -> {"class_type", "inputs"}, as in a `prompt` text.

    Raises:
        ValueError: it is no such graph, has too many nodes, or its links go in a circle.
    """
    definitions = data.get("definitions")
    listed = _items(definitions.get("subgraphs")) if is_object(definitions) else ()
    graphs = {_key(graph.get("id")): graph for graph in listed}
    found: dict[str, dict[str, Any]] = {}
    scopes = [_scope("", data, graphs)]
    count = 0
    while scopes:
        scope = scopes.pop()
        for number, node in scope.nodes.items():
            count += 1
            if count > GRAPH_NODES:
                raise ValueError(f"it has more than {GRAPH_NODES} nodes")
            if node.get("mode") in (_MUTED, _BYPASSED) or node.get("type") in _NOTES:
                continue
            inner = graphs.get(_key(node.get("type")))
            if inner is not None:
                if scope.prefix.count(":") > _DEEPEST:
                    raise ValueError("its graphs stand inside of themselves")
                prefix = f"{scope.prefix}{number}:"
                scopes.append(_scope(prefix, inner, graphs, (scope, node)))
                continue
            kind = str(node.get("type"))
            found[f"{scope.prefix}{number}"] = {"class_type": kind, "inputs": _inputs(scope, node)}
    return found


def _scope(
    prefix: str,
    graph: dict[str, Any],
    graphs: dict[Any, dict[str, Any]],
    outer: tuple[_Scope, dict[str, Any]] | None = None,
) -> _Scope:
    links: dict[Any, tuple[Any, Any, Any, Any]] = {}
    names = ("origin_id", "origin_slot", "target_id", "target_slot")
    listed = graph.get("links")
    for link in listed if is_list(listed) else ():
        if is_list(link) and len(link) >= 5:
            links[_key(link[0])] = (link[1], link[2], link[3], link[4])
        elif is_object(link):
            first, *others = (link.get(name) for name in names)
            links[_key(link.get("id"))] = (first, *others)  # type: ignore[assignment]
    nodes = {_key(node.get("id")): node for node in _items(graph.get("nodes"))}
    return _Scope(prefix, nodes, links, graphs, outer)


def _inputs(scope: _Scope, node: dict[str, Any]) -> dict[str, Any]:
    """Values by name, and in place of those that are linked what they come from."""
    given = _values(node)
    for entry in _items(node.get("inputs")):
        if entry.get("link") is not None:
            source = _source(scope, entry["link"])
            if source is not None:
                given[str(entry.get("name"))] = source
    return given


def _values(node: dict[str, Any]) -> dict[str, Any]:
    """The values of its widgets by name; by number where the names are not known."""
    values: Any = node.get("widgets_values")
    if is_object(values):
        return dict(values)
    if not is_list(values):
        return {}
    named = [
        entry["widget"] for entry in _items(node.get("inputs")) if is_object(entry.get("widget"))
    ]
    names = [str(widget.get("name")) for widget in named]
    known = _WIDGETS.get(str(node.get("type")), ())
    if len(names) < len(known):
        names = list(known)
    seeds = [name in ("seed", "noise_seed") for name in names] if names else []
    rest = [
        value
        for place, value in enumerate(values)
        if not (place and value in _AFTER and (not names or True in seeds[:place] or place == 1))
    ]
    if not names:
        return {f"widget {place}": value for place, value in enumerate(rest)}
    return dict(zip(names, rest, strict=False))


def _source(scope: _Scope, link: Any, depth: int = _DEEPEST) -> Any:
    """[number, output] of the node that a link comes from, a value, or None."""
    if depth == 0:
        raise ValueError("its links go in a circle")
    ends = scope.links.get(_key(link))
    if ends is None:
        return None
    number, output = ends[0], ends[1]
    if number == _FROM_OUTSIDE:
        return _from_outside(scope, output, depth)
    node = scope.nodes.get(_key(number))
    if node is None or node.get("mode") == _MUTED:
        return None
    if node.get("mode") == _BYPASSED:
        handed = _handed_on(node, output)
        return None if handed is None else _source(scope, handed, depth - 1)
    if node.get("type") == "GetNode" and (given := _given_to_set(scope, node)) is not None:
        return _source(scope, given, depth - 1)
    inner = scope.graphs.get(_key(node.get("type")))
    if inner is None:
        return [f"{scope.prefix}{_key(number)}", output]
    within = _scope(f"{scope.prefix}{_key(number)}:", inner, scope.graphs, (scope, node))
    for end, (_, _, target, slot) in within.links.items():
        if target == _TO_OUTSIDE and slot == output:
            return _source(within, end, depth - 1)
    return None


def _from_outside(scope: _Scope, slot: Any, depth: int) -> Any:
    """What the node that this graph stands inside of has at one of its inputs."""
    if scope.outer is None:
        return None
    outside, node = scope.outer
    inner = scope.graphs[_key(node.get("type"))]
    names = [entry.get("name") for entry in _items(inner.get("inputs"))]
    name = names[slot] if isinstance(slot, int) and 0 <= slot < len(names) else None
    for entry in _items(node.get("inputs")):
        if entry.get("name") == name and entry.get("link") is not None:
            return _source(outside, entry["link"], depth - 1)
    return _values(node).get(str(name))


def _given_to_set(scope: _Scope, node: dict[str, Any]) -> Any:
    """The link of the SetNode that has the name of this GetNode."""
    for other in scope.nodes.values():
        if other.get("type") == "SetNode" and _values(other) == _values(node):
            linked = (entry.get("link") for entry in _items(other.get("inputs")))
            return next((link for link in linked if link is not None), None)
    return None


def _handed_on(node: dict[str, Any], output: Any) -> Any:
    """The link that a bypassed node hands on: at the same place, or the first of the same kind."""
    outputs, inputs = list(_items(node.get("outputs"))), list(_items(node.get("inputs")))
    if not isinstance(output, int) or not 0 <= output < len(outputs):
        return None
    kind = outputs[output].get("type")
    for entry in (*inputs[output : output + 1], *inputs):
        if entry.get("type") == kind and entry.get("link") is not None:
            return entry["link"]
    return None


def _items(value: Any) -> Iterator[dict[str, Any]]:
    return (entry for entry in value if is_object(entry)) if is_list(value) else iter(())


def _key(value: Any) -> Any:
    """A number or name, as what it can be looked up by."""
    return value if isinstance(value, (int, str)) else str(value)
