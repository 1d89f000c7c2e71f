"""Recipes from ComfyUI's graphs."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from sdcore.diffusion.sampler_names import from_comfy
from sdcore.job.adapters import LoraSettings
from sdcore.metadata.comfy import recipe_of_graph
from sdcore.metadata.recipe import base_name, decimal, whole_number
from sdcore.size import Size


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": node("CheckpointLoaderSimple", ckpt_name="sd15\\..\\v1-5.safetensors"),
    "2": node(
        *("LoraLoader",),
        **{"lora_name": "a/ink.safetensors", "strength_model": 0.7, "strength_clip": 0.3},
        **{"model": ["1", 0], "clip": ["1", 1]},
    ),
    "3": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["2", 1]),
    "4": node("CLIPTextEncode", text="a (cat:1.2)", clip=["3", 0]),
    "5": node("CLIPTextEncode", text="bad", clip=["3", 0]),
    "6": node("EmptyLatentImage", width=512, height=768, batch_size=1),
    "7": node(
        *("KSampler",),
        **{"seed": 42, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
        **{"denoise": 1.0, "model": ["2", 0], "positive": ["4", 0], "negative": ["5", 0]},
        **{"latent_image": ["6", 0]},
    ),
    "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
    "9": node("SaveImage", filename_prefix="../../etc/x", images=["8", 0]),
}


def changed(changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The graph with inputs of its nodes changed, and whole nodes added or replaced."""
    graph = copy.deepcopy(GRAPH)
    for number, change in changes.items():
        if "class_type" in change:
            graph[number] = change
        else:
            graph[number]["inputs"] |= change
    return graph


def read(graph: dict[str, Any]):
    return recipe_of_graph(json.dumps(graph))


def test_a_graph_of_the_usual_kind() -> None:
    recipe = read(GRAPH)
    assert (recipe.job.prompt, recipe.job.negative_prompt) == ("a (cat:1.2)", "bad")
    assert (recipe.job.seed, recipe.job.steps, recipe.job.guidance_scale) == (42, 20, 8.0)
    assert (recipe.job.scheduler, recipe.job.dialect) == ("dpm++ 2m karras", "comfy")
    assert recipe.job.size == Size(512, 768)
    assert recipe.model == "v1-5"
    assert recipe.job.loras == (LoraSettings("ink", 0.7, 0.3, ""),)
    assert recipe.differences == ()
    # Layer -2 is one left out in SD 1.x, and what SDXL does anyway.
    assert (recipe.clip_skip_for(False), recipe.clip_skip_for(True)) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"7": {"seed": ["s", 0]}, "s": node("PrimitiveInt", value=9)}, {"seed": 9}),
        ({"4": {"text": ["s", 0]}, "s": node("Text", text="a dog")}, {"prompt": "a dog"}),
        ({"7": {"model": ["r", 0]}, "r": node("Reroute", model=["2", 0])}, {"model": "v1-5"}),
        (
            {"7": {"model": ["r", 0]}, "r": node("RescaleCFG", multiplier=0.7, model=["1", 0])},
            {"guidance_rescale": 0.7, "loras": ()},
        ),
        (
            {"2": node("LoraLoaderModelOnly", lora_name="b", strength_model=2, model=["1", 0])},
            {"loras": (LoraSettings("b", 2.0, 0.0, ""),)},
        ),
        (
            {"6": node("EmptySD3LatentImage", width=64, height=64, batch_size=1)},
            {"size": Size(64, 64)},
        ),
    ],
)
def test_what_is_followed_without_a_word(changes, expected) -> None:
    recipe = read(changed(changes))
    assert {
        name: getattr(recipe if name == "model" else recipe.job, name) for name in expected
    } == expected
    assert recipe.differences == ()


UPSCALED = {
    "u": node("LatentUpscale", samples=["7", 0]),
    "v": copy.deepcopy(GRAPH["7"]),
    "8": {"samples": ["v", 0]},
}
UPSCALED["v"]["inputs"] |= {"latent_image": ["u", 0], "seed": 1, "denoise": 0.5}
ADVANCED = node(
    "KSamplerAdvanced",
    **{k: v for k, v in GRAPH["7"]["inputs"].items() if k != "seed"},
    **{"noise_seed": 5, "start_at_step": 0, "end_at_step": 15, "add_noise": "enable"},
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (UPSCALED, "one more pass followed"),
        ({"7": ADVANCED}, "only some of the steps"),
        ({"7": {"denoise": 0.5}}, "only in part"),
        ({"7": {"seed": "x"}}, "seed 'x' cannot be used"),
        ({"7": {"sampler_name": "dpmpp_2s_ancestral"}}, "adds noise in every step"),
        ({"7": {"sampler_name": "seeds_2"}}, "'seeds_2' is not there"),
        ({"7": {"scheduler": "beta57"}}, "'beta57' are not there"),
        ({"7": {"steps": ["4", 0]}, "4": {"more": 1}}, "comes from 'CLIPTextEncode'"),
        ({"6": {"batch_size": 4}}, "painted in a batch"),
        ({"6": {"width": 10**9}}, "width 1000000000 cannot be used"),
        ({"6": node("VAEEncode", pixels=["p", 0]), "p": node("LoadImage", image="/x")}, "began"),
        ({"2": {"strength_clip": "much"}}, "strength_clip of LoRA 'ink' is not known"),
        (
            {"7": {"model": ["f", 0]}, "f": node("FreeU", model=["2", 0])},
            "'FreeU' changed the model",
        ),
        (
            {
                "7": {"positive": ["c", 0]},
                "c": node("ConditioningCombine", conditioning_1=["4", 0], conditioning_2=["5", 0]),
            },
            "'ConditioningCombine' changed the positive prompt",
        ),
        ({"9": {"images": ["s", 0]}, "s": node("ImageScale", image=["8", 0])}, "'ImageScale'"),
    ],
)
def test_what_cannot_match_is_named(changes, said) -> None:
    recipe = read(changed(changes))
    assert said in " | ".join(recipe.differences)
    assert recipe.job.prompt == "a (cat:1.2)"


CIRCLE = changed({"8": {"samples": ["8", 0]}})
LONG_CIRCLE = changed({"1": {"model": ["2", 0]}})


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ({}, "is behind its picture"),
        ({"1": GRAPH["1"], "9": GRAPH["9"]}, "KSampler"),
        (CIRCLE, "in a circle"),
        (LONG_CIRCLE, "in a circle"),
        (changed({"7": {"positive": "text"}}), "no positive prompt"),
        (changed({"4": node("Odd")}), "'Odd', which is not known"),
        ({"1": 7}, "'1' is not one"),
        ({"1": {"class_type": "KSampler"}}, "not one of ComfyUI's"),
        ({str(i): GRAPH["1"] for i in range(6000)}, "6000 nodes"),
    ],
)
def test_graphs_that_cannot_be_followed(graph, said) -> None:
    with pytest.raises(ValueError, match=said):
        read(graph)


@pytest.mark.parametrize("text", ["", "a cat", "[]", "[" * 10**5, '{"1": NaN}', "\ud800"])
def test_no_graph_at_all(text) -> None:
    with pytest.raises(ValueError):
        recipe_of_graph(text)


def test_a_long_chain_is_followed_in_no_time() -> None:
    graph = changed({"7": {"model": ["0x", 0]}})
    for number in range(4000):
        name = "None" if number % 50 else "a"
        graph[f"{number}x"] = node("LoraLoader", lora_name=name, model=[f"{number + 1}x", 0])
    graph["4000x"] = GRAPH["1"]
    assert len(read(graph).job.loras) == 80


def test_mutated_graphs_are_read_or_refused() -> None:
    """Values of any kind in any place: a recipe or a ValueError, nothing else."""
    rng = random.Random(7)
    values: list[Any] = [None, True, -1, 10**30, 1e300, "", "../../etc/passwd", [], [[]], {}]
    values += [["7", 0], ["9", "x"], [None, 0], [{}, 0], "\0", ["4", 0, 1], "a" * 10**5]
    refused = 0
    for _ in range(600):
        graph = copy.deepcopy(GRAPH)
        for _ in range(rng.randrange(1, 4)):
            inputs = graph[rng.choice(list(graph))]["inputs"]
            inputs[rng.choice([*inputs, "model", "samples"])] = rng.choice(values)
        try:
            recipe = read(graph)
        except ValueError:
            refused += 1
            continue
        assert "/" not in (recipe.model or "") and all("/" not in x.name for x in recipe.job.loras)
        assert all(len(why) < 300 for why in recipe.differences)
    assert 20 < refused < 500


@pytest.mark.parametrize(
    ("sampler", "scheduler", "name"),
    [
        ("euler_ancestral", "normal", "euler a normal"),
        ("dpmpp_sde_gpu", "karras", "dpm++ sde karras"),
        ("uni_pc", "simple", "unipc bh1 simple"),
        ("uni_pc_bh2", "simple", "unipc simple"),
        ("ddim", "ddim_uniform", "euler ddim uniform"),  # ComfyUI runs its euler by this name
        ("res_multistep", "beta", "dpm++ 2m beta"),
        ("what_is_this", "karras", "dpm++ 2m karras"),
    ],
)
def test_samplers_of_comfyui(sampler, scheduler, name) -> None:
    assert from_comfy(sampler, scheduler).name == name


def test_names_and_numbers_of_others() -> None:
    assert base_name("a/b\\c.d.safetensors") == "c.d"
    assert base_name("/etc/passwd") == "passwd" and base_name("..") == ".."
    assert whole_number("07", 10) == 7 and whole_number("٣", 10) is None
    assert whole_number(11, 10) is None and whole_number(True, 10) is None
    assert decimal("7.5", 10) == 7.5 and decimal("1e5", 10**6) is None
    assert decimal(10**400, 10) is None and decimal("-1", 10) is None
