"""ComfyUI's `workflow` text tells the same as the `prompt` text of the same graph."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from sdcore.metadata.comfy import recipe_of_graph
from sdcore.metadata.png import read_recipe
from tests.metadata.test_png import write_texts
from tests.metadata.test_recipe import GRAPH, changed, node

# Names of what the nodes of GRAPH give, in the order of their outputs.
OUTPUTS = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "LoraLoader": ("MODEL", "CLIP"),
    "CLIPSetLastLayer": ("CLIP",),
    "CLIPTextEncode": ("CONDITIONING",),
    "EmptyLatentImage": ("LATENT",),
    "KSampler": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "SaveImage": (),
    "PrimitiveNode": ("INT",),
    "Reroute": ("*",),
    "VAELoader": ("VAE",),
    "FreeU": ("MODEL",),
}


def drawn(graph: dict[str, Any], names: bool = False) -> dict[str, Any]:
    """The graph as the page writes it. Args: names: of widgets too, as newer pages do."""
    nodes: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    for number, entry in graph.items():
        values: list[Any] = []
        inputs: list[dict[str, Any]] = []
        for name, value in entry["inputs"].items():
            if isinstance(value, list):
                kind = OUTPUTS[graph[value[0]]["class_type"]][value[1]]
                links.append([len(links) + 1, int(value[0]), value[1], int(number), 0, kind])
                inputs.append({"name": name, "type": kind, "link": len(links)})
            else:
                values.append(value)
                if names:
                    inputs.append({"name": name, "type": "X", "widget": {"name": name}})
            if name == "seed":
                inputs[-1:] = [] if not names else [{**inputs[-1], "widget": {"name": name}}]
                values = [value if not isinstance(value, list) else 0, "randomize"]
                if isinstance(value, list):
                    link = {"name": name, "type": "INT", "link": len(links)}
                    inputs = [*inputs[:-1], {**link, "widget": {"name": name}}]
        kind = entry["class_type"]
        outputs = [{"name": each, "type": each} for each in OUTPUTS[kind]]
        nodes.append({"id": int(number), "type": kind, "mode": 0, "inputs": inputs})
        nodes[-1] |= {"outputs": outputs, "widgets_values": values}
    return {"nodes": nodes, "links": links, "version": 0.4}


def found(workflow: dict[str, Any], number: int) -> dict[str, Any]:
    return next(each for each in workflow["nodes"] if each["id"] == number)


def read(workflow: dict[str, Any]) -> Any:
    return recipe_of_graph(json.dumps(workflow))


GRAPHS = {
    "plain": changed({}),
    "a VAE of its own": changed(
        {"10": node("VAELoader", vae_name="x.pt"), "8": {"vae": ["10", 0]}}
    ),
    "reroute": changed({"10": node("Reroute", **{"": ["2", 0]}), "7": {"model": ["10", 0]}}),
}


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_it_says_what_the_prompt_text_says(name: str, names: bool) -> None:
    recipe = recipe_of_graph(json.dumps(GRAPHS[name]))
    assert read(drawn(GRAPHS[name], names)) == recipe
    assert ("a VAE of its own was used, 'x'" in recipe.differences) == (name == "a VAE of its own")


def test_a_picture_with_nothing_else_is_read(tmp_path) -> None:
    workflow = json.dumps(drawn(GRAPH))
    assert read_recipe(write_texts(tmp_path, workflow=workflow)) == recipe_of_graph(
        json.dumps(GRAPH)
    )
    both = write_texts(tmp_path, workflow=workflow, prompt=json.dumps(changed({"7": {"seed": 1}})))
    assert read_recipe(both).job.seed == 1  # what ran comes before what was drawn


def test_a_seed_from_a_node() -> None:
    graph = changed({"10": node("PrimitiveNode", value=1234), "7": {"seed": ["10", 0]}})
    workflow = drawn(graph)
    found(workflow, 10)["widgets_values"] = [1234, "randomize"]
    assert read(workflow).job.seed == 1234


def test_nodes_that_are_bypassed_hand_on_and_muted_ones_are_not_there() -> None:
    workflow = drawn(GRAPH)
    found(workflow, 2)["mode"] = 4  # the LoRA
    recipe = read(workflow)
    assert recipe.job.loras == () and recipe.job.prompt == "a (cat:1.2)"
    assert recipe.model == read(drawn(GRAPH)).model
    found(workflow, 4)["mode"] = 2
    with pytest.raises(ValueError, match="no positive prompt"):
        read(workflow)


def test_get_and_set_nodes() -> None:
    workflow = drawn(GRAPH)
    sampler = found(workflow, 7)
    link = next(entry for entry in sampler["inputs"] if entry["name"] == "positive")
    workflow["nodes"] += [
        {"id": 20, "type": "SetNode", "inputs": [{"name": "C", "type": "C", "link": link["link"]}]},
        {"id": 21, "type": "GetNode", "inputs": [], "outputs": [{"type": "C"}]},
    ]
    for each in workflow["nodes"][-2:]:
        each["widgets_values"] = ["the prompt"]
    workflow["links"].append([99, 21, 0, 7, 1, "C"])
    link["link"] = 99
    assert read(workflow).job.prompt == "a (cat:1.2)"


def test_a_graph_inside_of_a_node() -> None:
    """The two prompts and the sampler's node stand for one; its seed is a widget of that one."""
    workflow = drawn(GRAPH, names=True)
    inside = [copy.deepcopy(found(workflow, number)) for number in (4, 5, 7)]
    ends = {"model": (2, 0), "clip": (3, 0), "latent_image": (6, 0)}
    named = [*ends, "seed"]
    links = [
        {"id": 1, "origin_id": 4, "origin_slot": 0, "target_id": 7, "target_slot": 1},
        {"id": 2, "origin_id": 5, "origin_slot": 0, "target_id": 7, "target_slot": 2},
        {"id": 3, "origin_id": 7, "origin_slot": 0, "target_id": -20, "target_slot": 0},
    ]
    links += [
        {"id": 10 + slot, "origin_id": -10, "origin_slot": slot} for slot in range(len(named))
    ]
    own = {"positive": 1, "negative": 2, "clip": 11, "model": 10, "latent_image": 12, "seed": 13}
    for each in inside:
        for entry in each["inputs"]:
            if entry["name"] in own:
                entry["link"] = own[entry["name"]]
    graph = {"id": "a-b", "nodes": inside, "links": links, "inputs": [{"name": n} for n in named]}
    workflow["definitions"] = {"subgraphs": [graph]}
    workflow["nodes"] = [n for n in workflow["nodes"] if n["id"] not in (4, 5, 7)]
    inputs: list[dict[str, Any]] = []
    for place, (name, (origin, slot)) in enumerate(ends.items()):
        workflow["links"].append([50 + place, origin, slot, 30, place, "X"])
        inputs.append({"name": name, "type": "X", "link": 50 + place})
    inputs.append({"name": "seed", "type": "INT", "widget": {"name": "seed"}, "link": None})
    whole = {"id": 30, "type": "a-b", "inputs": inputs, "widgets_values": [77, "fixed"]}
    workflow["nodes"].append({**whole, "outputs": [{"type": "LATENT"}], "mode": 0})
    for link in workflow["links"]:
        link[1] = 30 if link[1] == 7 else link[1]
    told = recipe_of_graph(json.dumps(GRAPH))
    assert read(workflow) == replace(told, job=replace(told.job, seed=77))


def test_graphs_without_an_end_are_refused() -> None:
    within = {"id": "a", "nodes": [{"id": 1, "type": "a"}, {"id": 2, "type": "a"}], "links": []}
    workflow = {"nodes": [{"id": 1, "type": "a"}], "definitions": {"subgraphs": [within]}}
    with pytest.raises(ValueError, match=r"nodes|inside of themselves"):
        read(workflow)
    circle = drawn(changed({"10": node("FreeU", model=["10", 0]), "7": {"model": ["10", 0]}}))
    found(circle, 10)["mode"] = 4
    with pytest.raises(ValueError, match="circle"):
        read(circle)


def test_a_number_that_was_computed_is_not_taken_for_what_it_was_computed_from() -> None:
    graph = changed({"10": node("SimpleMath+", value="a*2", a=9), "7": {"steps": ["10", 0]}})
    recipe = recipe_of_graph(json.dumps(graph))
    assert recipe.job.steps is None
    assert "'steps' comes from 'SimpleMath+', which is not followed" in recipe.differences
