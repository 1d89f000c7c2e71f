"""ComfyUI's graph of nodes, and how it is followed from a picture back to what it was made of.

A value is given, or it is a link [node, output]. A node may have several outputs: the second one
of a ControlNet is the negative prompt. So what is followed is a node together with the number of
the output at which it was reached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sdcore.checks import as_finite
from sdcore.files.jsonfile import is_list, is_object, parse_json_object
from sdcore.files.limits import GRAPH_NODES
from sdcore.metadata.comfy_workflow import prompt_of_workflow

_SHOWN_NODES = 200
# The inputs that are followed through a node, by what is looked for; the first that is linked.
_PASSED_ON = {
    "model": ("model", "base_model"),
    "clip": ("clip", "base_clip"),
    "conditioning": ("conditioning", "conditioning_1", "conditioning_to", "conditioning1", "cond"),
    "latent": (
        *("samples", "latent_image", "latent", "latents", "optional_latent"),
        *("pixels", "image", "images"),
    ),
    "loras": ("lora_stack",),
    "vae": ("vae",),
}
# Where several things go in one link.
_BUNDLES = ("base_ctx", "ctx_01", "pipe", "basic_pipe", "sdxl_tuple")
# Outputs of nodes with prompts of both kinds, where they are not the first two.
_ROLES = {
    "Efficient Loader": {1: "positive", 2: "negative"},
    "KSampler (Efficient)": {1: "positive", 2: "negative"},
    "KSampler Adv. (Efficient)": {1: "positive", 2: "negative"},
    "easy fullLoader": {4: "positive", 5: "negative"},
    "Context (rgthree)": {4: "positive", 5: "negative"},
    "Context Big (rgthree)": {4: "positive", 5: "negative"},
}
ROLES = ("positive", "negative")
_SWITCHES = {"ImpactSwitch": ("select", "input{}"), "CR Text Input Switch": ("Input", "text{}")}
# Inputs that hold the value which a node is there for.
_TEXTS = (
    *("value", "text", "string", "prompt", "populated_text", "Text", "String", "text_0"),
    *("text_positive", "positive"),
)
_NUMBERS = ("value", "seed", "noise_seed", "int", "Number", "number", "float", "INT", "FLOAT")
# Nodes that make another number of the one they are given.
_COMPUTES = re.compile(r"math|expression|evaluat|operation|calculat|arithm", re.IGNORECASE)
_JOINS = re.compile(r"concat|join|append|StringFunction", re.IGNORECASE)
_JOINED = re.compile(r"(?:text|string|str|prompt|input|part|line)s?[ _]?\w{0,12}|[a-z]\d?")
# Nodes that make another text of the one they are given, or draw one.
_ALTERS = re.compile(
    r"replace|substring|trim|truncat|regex|case|random|wildcard|translat|dynamic|prompt ?gen|llm"
    r"|enhance|upsampl|style",
    re.IGNORECASE,
)
_SEPARATORS = ("delimiter", "separator")
_DEEPEST = 50


@dataclass(frozen=True)
class Node:
    """One node: its class, and its inputs by name."""

    kind: str
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Reached:
    """A node, and the output at which it was reached; None where that says nothing."""

    node: Node
    output: int | None = None

    @property
    def role(self) -> str | None:
        """Which of its two prompts an output of a node gives, if that can be told."""
        inputs = self.node.inputs
        if self.output is None or not all(role in inputs for role in ROLES):
            return None
        usual = dict(enumerate(ROLES)) if is_list(inputs["negative"]) else {}
        return _ROLES.get(self.node.kind, usual).get(self.output)


@dataclass
class Graph:
    """The nodes, and what was met on the way that cannot be the same."""

    nodes: dict[str, Node]
    differences: list[str] = field(default_factory=list[str])

    def differs(self, why: str) -> None:
        if why not in self.differences:
            self.differences.append(why)

    def link(self, node: Node, name: str) -> Reached | None:
        """What an input is linked to."""
        link = node.inputs.get(name)
        if not is_list(link) or len(link) != 2 or not isinstance(link[0], (str, int)):
            return None
        there = self.nodes.get(str(link[0]))
        output = link[1] if isinstance(link[1], int) else None
        return None if there is None else Reached(there, output)

    def chain(self, start: Reached | None, what: str, role: str = "positive") -> list[Reached]:
        """This node and those behind it, each by the input that carries `what`.

        Args:
            role: which of the two prompts is looked for, of a node that has both.
        """
        found: list[Reached] = []
        seen: set[tuple[int, int | None]] = set()
        reached = start
        while reached is not None:
            place = (id(reached.node), reached.output)
            if place in seen:
                raise ValueError(f"its nodes are linked in a circle at {reached.node.kind!r:.60}")
            seen.add(place)
            found.append(reached)
            role = reached.role or role
            reached = self._behind(reached.node, what, role)
        return found

    def _behind(self, node: Node, what: str, role: str) -> Reached | None:
        names = _PASSED_ON[what]
        if what == "conditioning":
            names = (role, *names, *(other for other in ROLES if other != role))
        for name in (*names, *self._switched(node)):
            if (found := self.link(node, name)) is not None:
                return found
        for name in _BUNDLES:
            if (found := self.link(node, name)) is not None:
                return Reached(found.node)  # the number is that of the bundle
        links = [name for name, value in node.inputs.items() if is_list(value)]
        return self.link(node, links[0]) if links and "reroute" in node.kind.lower() else None

    def _switched(self, node: Node) -> tuple[str, ...]:
        """The input that a switch has chosen, or those of which the first that is there counts."""
        if node.kind in _SWITCHES:
            choice, name = _SWITCHES[node.kind]
            return (name.format(node.inputs.get(choice)),)
        if node.kind == "Any Switch (rgthree)":
            return tuple(sorted(name for name in node.inputs if name.startswith("any_")))
        return ()

    # --- values --------------------------------------------------------------------------------

    def text(self, node: Node, name: str) -> str:
        """An input that is text; "" where it is none."""
        value = self.value(node, name, str)
        return value if isinstance(value, str) else ""

    def texts_in(self, node: Node) -> list[str]:
        """The names of the inputs that are text, or linked to a node that gives one."""
        others = {each for names in _PASSED_ON.values() for each in names}
        found = [(name, self.link(node, name)) for name in node.inputs if name not in others]
        return [
            name
            for name, behind in found
            if isinstance(node.inputs[name], str)
            or (behind is not None and self._given(behind, str, _DEEPEST) is not None)
        ]

    def value(self, node: Node, name: str, kind: type = float) -> Any:
        """An input's value; through links, what the node behind it stands for.

        Args:
            kind: str where a text is wanted, else a number.
        """
        value = node.inputs.get(name)
        if is_object(value) and isinstance(value.get("content"), str):
            return value["content"]  # a name with its preview
        if not is_list(value):
            return value
        reached = self.link(node, name)
        found = None if reached is None else self._given(reached, kind, _DEEPEST)
        if found is None:
            behind = reached.node.kind if reached else "no node"
            self.differs(f"{name!r:.60} comes from {behind!r:.60}, which is not followed")
        return found

    def _given(self, reached: Reached, kind: type, depth: int) -> Any:
        """What a node gives, where it gives one value."""
        node = reached.node
        if depth == 0 or (kind is not str and _COMPUTES.search(node.kind)):
            return None
        if kind is str and _JOINS.search(node.kind):
            return self._joined(node, depth)
        if kind is str and _ALTERS.search(node.kind) and "populated_text" not in node.inputs:
            self.differs(f"node {node.kind!r:.60} makes another text of its own and is not run")
        names = _TEXTS if kind is str else _NUMBERS
        if kind is str and reached.output == 1 and "text_negative" in node.inputs:
            names = ("text_negative",)
        links = [n for n, value in node.inputs.items() if is_list(value)]
        for name in (*self._switched(node), *names, *(links if len(links) == 1 else ())):
            behind = self.link(node, name)
            if behind is not None:
                return self._given(behind, kind, depth - 1)
            if _is(node.inputs.get(name), kind):
                return node.inputs[name]
        plain = [value for value in node.inputs.values() if _is(value, kind)]
        return plain[0] if len(plain) == 1 else None

    def _joined(self, node: Node, depth: int) -> str | None:
        """Texts one behind the other, in the order of the node's inputs."""
        texts: list[str] = []
        for name in node.inputs:
            if name in (*_SEPARATORS, "clean_whitespace", "action", "tidy_tags"):
                continue
            if not _JOINED.fullmatch(name):
                continue  # an option
            behind, value = self.link(node, name), node.inputs[name]
            if behind is not None:
                value = self._given(behind, str, depth - 1)
                if value is None:
                    return None
            if isinstance(value, str):
                texts.append(value)
        if "action" in node.inputs:
            return _by_string_function(node.inputs, texts)
        separator = next((self.text(node, n) for n in _SEPARATORS if n in node.inputs), "")
        if node.inputs.get("clean_whitespace") == "true":
            texts = [text.strip() for text in texts if text.strip()]
        return separator.replace("\\n", "\n").join(texts)


def _by_string_function(options: dict[str, Any], texts: list[str]) -> str | None:
    """What `StringFunction|pysssss` makes of its texts; None where a pattern is at work."""
    tidy = options.get("tidy_tags") == "yes"
    if options["action"] == "append":
        out = (", " if tidy else "").join(filter(None, texts))
    elif options["action"] == "replace" and len(texts) > 1 and texts[1][:1] not in ("", "/"):
        out = texts[0].replace(texts[1], "".join(texts[2:3]))
    else:
        return None
    if tidy:
        out = re.sub(r",{2,}", ",", re.sub(r"\s{2,}", " ", out).replace(" ,", ",")).strip()
    return out


def read_graph(text: str) -> Graph:
    """The graph in a `prompt` or `workflow`. Raises ValueError: it is none, with the reason."""
    data = parse_json_object(text.encode("utf-8", "surrogatepass"))
    if is_list(data.get("nodes")):
        data = prompt_of_workflow(data)
    if len(data) > GRAPH_NODES:
        raise ValueError(f"it has {len(data)} nodes, more than {GRAPH_NODES}")
    nodes: dict[str, Node] = {}
    for number, node in data.items():
        kind, inputs = (node.get("class_type"), node.get("inputs")) if is_object(node) else (0, 0)
        if not isinstance(kind, str) or not is_object(inputs):
            raise ValueError(f"its node {number!r:.60} is not one of ComfyUI's")
        nodes[number] = Node(kind, inputs)
    return Graph(nodes)


def _is(value: object, kind: type) -> bool:
    return isinstance(value, str) if kind is str else as_finite(value) is not None
