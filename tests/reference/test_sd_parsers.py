"""What pictures say, beside what the package sd-parsers reads in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdcore.metadata.png import read_recipe
from tests.metadata.test_other_tools import PICTURES, WEB_UI, png
from tests.metadata.test_recipe import GRAPH

sd_parsers = pytest.importorskip("sd_parsers")

KNOWN = ("Fooocus", "InvokeAI", "InvokeAI 2", "InvokeAI 1", "NovelAI")
TEXTS = {name: PICTURES[name][0] for name in KNOWN} | {"web UI": {"parameters": WEB_UI}}
# It does not know the models' names of today.
TEXTS["InvokeAI"] = {
    "invokeai_metadata": TEXTS["InvokeAI"]["invokeai_metadata"].replace('"name"', '"model_name"')
}


def graph_texts(graph: dict[str, Any]) -> dict[str, str]:
    """A graph with the links of its workflow, which sd-parsers wants beside it."""
    types = {"model": "MODEL", "clip": "CLIP", "positive": "CONDITIONING"}
    links = [
        [0, value[0], value[1], number, 0, types.get(name, "X")]
        for number, each in graph.items()
        for name, value in each["inputs"].items()
        if isinstance(value, list)
    ]
    return {"prompt": json.dumps(graph), "workflow": json.dumps({"links": links})}


TEXTS["ComfyUI"] = graph_texts(GRAPH)


def number(value: Any) -> float | None:
    return None if value is None else float(value)


@pytest.mark.parametrize("name", TEXTS)
def test_both_read_the_same(tmp_path: Path, name: str) -> None:
    path = png(tmp_path / "x.png", **TEXTS[name])
    ours = read_recipe(path)
    theirs = sd_parsers.ParserManager().parse(path)
    (sampler,) = theirs.samplers
    assert [prompt.value for prompt in sampler.prompts] == [ours.job.prompt]
    assert [prompt.value for prompt in sampler.negative_prompts] == [ours.job.negative_prompt]
    told = {key.lower().replace(" ", "_"): value for key, value in sampler.parameters.items()}
    scale = told.get("cfg_scale", told.get("scale"))
    assert number(told["seed"]) == ours.job.seed
    assert number(scale) == ours.job.guidance_scale
    if "steps" in told:
        assert number(told["steps"]) == ours.job.steps
    if name not in ("web UI", "InvokeAI 1", "ComfyUI"):  # it takes a link for a model's name
        assert sampler.model is not None
        assert sampler.model.name == ours.model
