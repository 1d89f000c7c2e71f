"""ComfyUI's graphs with more than the usual nodes: outputs by number, custom sampling, stacks."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sdcore.job.adapters import LoraSettings
from sdcore.size import Size
from tests.metadata.test_recipe import GRAPH, changed, node, read

CONTROL_NET = {
    "c": node(
        "ControlNetApplyAdvanced",
        positive=["4", 0],
        negative=["5", 0],
        strength=1.0,
        image=["i", 0],
    ),
    "i": node("LoadImage", image="pose.png"),
    "7": {"positive": ["c", 0], "negative": ["c", 1]},
}


def custom(guider: dict[str, Any], **others: dict[str, Any]) -> dict[str, Any]:
    """The graph with SamplerCustomAdvanced in place of its KSampler."""
    parts = {
        "7": node(
            "SamplerCustomAdvanced",
            **{"noise": ["n", 0], "guider": ["g", 0], "sampler": ["s", 0], "sigmas": ["t", 0]},
            latent_image=["6", 0],
        ),
        "n": node("RandomNoise", noise_seed=99),
        "g": guider,
        "s": node("KSamplerSelect", sampler_name="dpmpp_2m"),
        "t": node("BasicScheduler", scheduler="karras", steps=12, denoise=1.0, model=["2", 0]),
    }
    return changed({**parts, **others})


GUIDER = node("CFGGuider", model=["2", 0], positive=["4", 0], negative=["5", 0], cfg=6.5)


def test_each_output_of_a_control_net_is_its_own_prompt() -> None:
    recipe = read(changed(CONTROL_NET))
    assert (recipe.job.prompt, recipe.job.negative_prompt) == ("a (cat:1.2)", "bad")
    assert "'ControlNetApplyAdvanced' changed the positive prompt" in " ".join(recipe.differences)
    twice = changed(CONTROL_NET)
    twice["d"] = node("ControlNetApplyAdvanced", positive=["c", 0], negative=["c", 1])
    twice["7"]["inputs"] |= {"positive": ["d", 0], "negative": ["d", 1]}
    assert (read(twice).job.prompt, read(twice).job.negative_prompt) == ("a (cat:1.2)", "bad")


def test_crossed_outputs_are_followed_as_they_are() -> None:
    graph = changed({**CONTROL_NET, "7": {"positive": ["c", 1], "negative": ["c", 0]}})
    assert (read(graph).job.prompt, read(graph).job.negative_prompt) == ("bad", "a (cat:1.2)")


def test_sampling_that_is_put_together() -> None:
    recipe = read(custom(GUIDER))
    job = recipe.job
    assert (job.prompt, job.negative_prompt) == ("a (cat:1.2)", "bad")
    assert (job.seed, job.steps, job.guidance_scale) == (99, 12, 6.5)
    assert (job.scheduler, job.size) == ("dpm++ 2m karras", Size(512, 768))
    assert job.loras == (LoraSettings("ink", 0.7, 0.3, ""),)
    assert recipe.differences == ()


def test_a_basic_guider_reads_no_negative_prompt() -> None:
    recipe = read(custom(node("BasicGuider", model=["2", 0], conditioning=["4", 0])))
    assert (recipe.job.guidance_scale, recipe.job.negative_prompt) == (1.0, None)


@pytest.mark.parametrize(
    ("parts", "expected", "said"),
    [
        ({"t": node("KarrasScheduler", steps=9, sigma_max=14.6, sigma_min=0.03, rho=7.0)}, 9, ""),
        ({"t": node("KarrasScheduler", steps=9, rho=3.0)}, 9, "rho 3.0 of 'KarrasScheduler'"),
        (
            {
                "t": node("SplitSigmas", sigmas=["u", 0], step=4),
                "u": node("KarrasScheduler", steps=9),
            },
            9,
            "'SplitSigmas' changed the noise levels",
        ),
        ({"t": node("ManualSigmas", sigmas="14, 7, 0")}, None, "'ManualSigmas' gave noise levels"),
        ({"n": node("DisableNoise")}, 12, "no noise was added"),
        (
            {"t": node("BasicScheduler", scheduler="karras", steps=9, denoise=0.5)},
            9,
            "only in part",
        ),
        ({"s": node("SamplerMine", order=2)}, 12, "'SamplerMine' is a sampler that is not known"),
    ],
)
def test_noise_levels_of_a_node_of_their_own(parts, expected, said) -> None:
    recipe = read(custom(GUIDER, **parts))
    assert recipe.job.steps == expected
    assert said in " | ".join(recipe.differences)
    assert said or recipe.differences == ()


def test_sampler_custom_says_its_seed_and_scale_itself() -> None:
    graph = changed(
        {
            "7": node(
                "SamplerCustom",
                **{"add_noise": True, "noise_seed": 5, "cfg": 4.0, "model": ["2", 0]},
                **{"positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]},
                **{"sampler": ["s", 0], "sigmas": ["t", 0]},
            ),
            "s": node("SamplerEulerAncestral", eta=1.0, s_noise=1.0),
            "t": node("ExponentialScheduler", steps=8, sigma_max=14.6, sigma_min=0.03),
        }
    )
    job = read(graph).job
    assert (job.seed, job.steps, job.guidance_scale) == (5, 8, 4.0)
    assert job.scheduler is not None and job.scheduler.startswith("euler a")


STACKS = {
    "rgthree": (
        {
            "2": node(
                "Power Lora Loader (rgthree)",
                **{"PowerLoraLoaderHeaderWidget": {"type": "x"}, "model": ["1", 0]},
                **{"lora_1": {"on": True, "lora": "a\\ink.safetensors", "strength": 0.5}},
                **{"lora_2": {"on": False, "lora": "off.safetensors", "strength": 1.0}},
                **{"lora_3": {"on": True, "lora": "b", "strength": 1, "strengthTwo": 0.25}},
            )
        },
        (LoraSettings("ink", 0.5, 0.5, ""), LoraSettings("b", 1.0, 0.25, "")),
    ),
    "comfyroll": (
        {
            "2": node("CR Apply LoRA Stack", model=["1", 0], clip=["1", 1], lora_stack=["l", 0]),
            "l": node(
                "CR LoRA Stack",
                **{"switch_1": "On", "lora_name_1": "a.safetensors", "model_weight_1": 0.5},
                **{"clip_weight_1": 0.75, "switch_2": "Off", "lora_name_2": "b.safetensors"},
                **{"switch_3": "On", "lora_name_3": "None", "lora_stack": ["k", 0]},
            ),
            "k": node(
                "CR LoRA Stack",
                **{"switch_1": "On", "lora_name_1": "first", "model_weight_1": 1.0},
                **{"clip_weight_1": 1.0},
            ),
        },
        (LoraSettings("first", 1.0, 1.0, ""), LoraSettings("a", 0.5, 0.75, "")),
    ),
    "rgthree stack": (
        {
            "2": node(
                "Lora Loader Stack (rgthree)",
                **{"lora_01": "a.safetensors", "strength_01": 0.5, "lora_02": "None"},
                **{"strength_02": 1.0, "model": ["1", 0], "clip": ["1", 1]},
            )
        },
        (LoraSettings("a", 0.5, 0.5, ""),),
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_stacks_of_loras(name: str) -> None:
    changes, expected = STACKS[name]
    recipe = read(changed({**changes, "3": {"clip": ["1", 1]}}))
    assert recipe.job.loras == expected
    assert recipe.model == "v1-5"
    assert recipe.differences == ()


TEXTS = {
    "core": (
        node("StringConcatenate", string_a="a fox", string_b=["w", 0], delimiter=", "),
        "a fox, in snow",
    ),
    "was": (
        node(
            "Text Concatenate",
            **{"delimiter": ", ", "clean_whitespace": "true", "text_a": " a fox ", "text_b": ""},
            text_c=["w", 0],
        ),
        "a fox, in snow",
    ),
    "pysssss": (
        node(
            "StringFunction|pysssss",
            **{"action": "append", "tidy_tags": "yes", "text_a": "a fox", "text_b": ["w", 0]},
        ),
        "a fox, in snow",
    ),
    "pysssss, an empty one": (
        node(
            "StringFunction|pysssss",
            **{"action": "append", "tidy_tags": "yes", "text_a": "a fox ,", "text_b": ["w", 0]},
            text_c="",
        ),
        "a fox, in snow",
    ),
    "pysssss, replaced": (
        node(
            "StringFunction|pysssss",
            **{
                "action": "replace",
                "tidy_tags": "no",
                "text_a": "a fox in rain",
                "text_b": "in rain",
            },
            text_c=["w", 0],
        ),
        "a fox in snow",
    ),
    "shown": (node("ShowText|pysssss", text=["w", 0], text_0="in snow"), "in snow"),
    "wildcards": (
        node("ImpactWildcardProcessor", wildcard_text="{a|b}", populated_text="a", mode="populate"),
        "a",
    ),
    "reroute": (node("Reroute", **{"": ["w", 0]}), "in snow"),
    "switch": (
        node("ImpactSwitch", select=2, input1=["v", 0], input2=["w", 0], sel_mode=False),
        "in snow",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_nodes_put_together(name: str) -> None:
    joined, expected = TEXTS[name]
    words = node("PrimitiveString", value="in snow")
    other = node("PrimitiveString", value="not this")
    recipe = read(changed({"4": {"text": ["j", 0]}, "j": joined, "w": words, "v": other}))
    assert recipe.job.prompt == expected
    assert recipe.differences == ()


def test_a_text_that_cannot_be_put_together_is_named() -> None:
    unknown = node("Text Concatenate", delimiter="", text_a=["m", 0], text_b="x")
    graph = changed({"4": {"text": ["j", 0]}, "j": unknown, "m": node("LLM", a="b", c="d")})
    assert "'text' comes from 'Text Concatenate'" in " ".join(read(graph).differences)


ENCODERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "flux": (
        node("CLIPTextEncodeFlux", clip_l="a fox", t5xxl="a fox", guidance=3.5, clip=["3", 0]),
        "a fox",
        "'CLIPTextEncodeFlux' is read as if",
    ),
    "flux, one text": (
        node("CLIPTextEncodeFlux", clip_l="", t5xxl=["w", 0], guidance=3.5, clip=["3", 0]),
        "in snow",
        "'CLIPTextEncodeFlux' is read as if",
    ),
    "sd3, two texts": (
        node("CLIPTextEncodeSD3", clip_l="a fox", clip_g="a red fox", t5xxl="", clip=["3", 0]),
        "a red fox",
        "read different positive prompts; clip_g is used",
    ),
    "an input of its own": (
        node("Encode Mine", user_text="a fox in snow", mode="fast", clip=["3", 0]),
        "a fox in snow",
        "taken from 'user_text' of 'Encode Mine'",
    ),
    "replaced": (
        node("CLIPTextEncode", text=["r", 0], clip=["3", 0]),
        "in snow",
        "'StringReplace' makes another text",
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_texts_of_other_encoders_are_found_and_said(name: str) -> None:
    encoder, expected, said = ENCODERS[name]
    words = node("PrimitiveStringMultiline", value="in snow")
    replaced = node("StringReplace", string=["w", 0], find="snow", replace="rain")
    recipe = read(changed({"4": encoder, "w": words, "r": replaced}))
    assert recipe.job.prompt == expected
    assert said in " | ".join(recipe.differences)


def test_options_of_a_node_that_joins_are_no_text() -> None:
    joined = node("Text Concatenate", linebreak_addition="true", text_a="a fox", text_b=["w", 0])
    words = node("PrimitiveString", value=", in snow")
    assert read(changed({"4": {"text": ["j", 0]}, "j": joined, "w": words})).job.prompt == (
        "a fox, in snow"
    )


def test_numbers_that_are_text_or_none() -> None:
    recipe = read(changed({"7": {"cfg": "7,5", "steps": "20.0"}, "2": {"strength_model": "0,7"}}))
    assert (recipe.job.guidance_scale, recipe.job.steps) == (7.5, 20)
    assert recipe.job.loras == (LoraSettings("ink", 0.7, 0.3, ""),)
    recipe = read(changed({"7": {"cfg": "high"}}))
    assert recipe.job.guidance_scale is None
    assert "cfg 'high' cannot be used" in recipe.differences


def test_numbers_behind_nodes() -> None:
    changes = {
        "7": {"seed": ["s", 0], "steps": ["r", 0]},
        "s": node("Seed (rgthree)", seed=77),
        "r": node("Reroute", **{"": ["i", 0]}),
        "i": node("PrimitiveInt", value=9, control_after_generate="fixed"),
    }
    recipe = read(changed(changes))
    assert (recipe.job.seed, recipe.job.steps, recipe.differences) == (77, 9, ())


def test_an_efficient_loader_and_sampler() -> None:
    graph = {
        "1": node(
            "Efficient Loader",
            **{"ckpt_name": "sd15.safetensors", "vae_name": "Baked VAE", "clip_skip": -2},
            **{"lora_name": "ink.safetensors", "lora_model_strength": 0.5},
            **{"lora_clip_strength": 0.25, "positive": "a fox", "negative": "bad"},
            **{"token_normalization": "none", "weight_interpretation": "A1111"},
            **{"empty_latent_width": 512, "empty_latent_height": 640, "batch_size": 1},
            lora_stack=["3", 0],
        ),
        "2": node(
            "KSampler (Efficient)",
            **{"seed": 3, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"},
            **{"denoise": 1.0, "preview_method": "auto", "model": ["1", 0], "positive": ["1", 1]},
            **{"negative": ["1", 2], "latent_image": ["1", 3], "optional_vae": ["1", 4]},
        ),
        "3": node(
            "LoRA Stacker",
            **{"input_mode": "simple", "lora_count": 1, "lora_name_1": "pen", "lora_wt_1": 0.75},
            **{"lora_name_2": "not", "lora_wt_2": 1.0},
        ),
        "4": node("SaveImage", images=["2", 5]),
    }
    job = read(graph).job
    assert (job.prompt, job.negative_prompt, job.dialect) == ("a fox", "bad", "a1111")
    assert (job.seed, job.steps, job.size, job.clip_skip) == (3, 20, Size(512, 640), 1)
    assert set(job.loras) == {
        LoraSettings("ink", 0.5, 0.25, ""),
        LoraSettings("pen", 0.75, 0.75, ""),
    }


def test_sub_graphs_have_numbers_of_two_parts() -> None:
    graph = copy.deepcopy(GRAPH)
    moved = {"4": "57:4", "5": "57:5", "7": "57:7"}
    renamed: dict[str, Any] = {}
    for number, each in graph.items():
        for name, value in each["inputs"].items():
            if isinstance(value, list) and value[0] in moved:
                each["inputs"][name] = [moved[value[0]], value[1]]
        renamed[moved.get(number, number)] = each
    assert read(renamed) == read(GRAPH)


def test_unknown_nodes_are_known_by_what_they_take() -> None:
    changes = {
        "7": {**copy.deepcopy(GRAPH["7"]), "class_type": "KSampler Mine"},
        "4": node("My Encoder", prompt="a fox", clip=["3", 0]),
        "9": node("Image Saver", images=["8", 0], filename="x"),
    }
    recipe = read(changed(changes))
    assert recipe.job.prompt == "a fox"
    said = " | ".join(recipe.differences)
    assert "'KSampler Mine' is read as if it were KSampler" in said
    assert "'My Encoder' is read as if it were CLIPTextEncode" in said


def test_a_context_of_many_links() -> None:
    changes = {
        "x": node(
            "Context (rgthree)",
            **{"model": ["2", 0], "clip": ["3", 0], "positive": ["4", 0], "negative": ["5", 0]},
            latent=["6", 0],
        ),
        "y": node("Context (rgthree)", base_ctx=["x", 0]),
        "7": {
            "positive": ["y", 4],
            "negative": ["y", 5],
            "model": ["y", 1],
            "latent_image": ["y", 6],
        },
    }
    recipe = read(changed(changes))
    assert (recipe.job.prompt, recipe.job.negative_prompt) == ("a (cat:1.2)", "bad")
    assert recipe.model == "v1-5"


@pytest.mark.parametrize("kind", ["StringConcatenate", "Reroute", "ImpactSwitch"])
def test_circles_of_values_end(kind: str) -> None:
    graph = changed({"4": {"text": ["j", 0]}, "j": node(kind, string_a=["j", 0], text=["j", 0])})
    assert "is not followed" in " ".join(read(graph).differences)
