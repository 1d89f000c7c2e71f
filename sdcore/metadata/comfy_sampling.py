"""How a ComfyUI graph samples: one node, or one that is put together from several.

KSampler                seed, steps, cfg, sampler_name, scheduler, positive, negative
SamplerCustom           noise_seed, cfg, positive, negative;  sampler, sigmas
SamplerCustomAdvanced   noise, guider, sampler, sigmas: a node each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdcore.checks import as_int
from sdcore.files.jsonfile import is_list
from sdcore.metadata.comfy_graph import Graph, Node, Reached
from sdcore.metadata.recipe import LARGEST_SEED, MOST_STEPS, decimal, whole_number

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_CUSTOM = ("SamplerCustom", "SamplerCustomAdvanced")
_KNOWN = (*SAMPLERS, "KSampler (Efficient)", "KSampler Adv. (Efficient)", "KSampler SDXL (Eff.)")
_TAKES = ("steps", "cfg", "sampler_name")
# Nodes that are a solver of their own -> its name among KSampler's.
_SOLVERS = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerEulerAncestralCFGPP": "euler_ancestral_cfg_pp",
    "SamplerEulerCFGpp": "euler_cfg_pp",
    "SamplerLMS": "lms",
    "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde",
    "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde",
    "SamplerDPMPP_SDE": "dpmpp_sde",
    "SamplerDPMPP_2S_Ancestral": "dpmpp_2s_ancestral",
    "SamplerDPMAdaptative": "dpm_adaptive",
    "SamplerER_SDE": "er_sde",
    "SamplerSASolver": "sa_solver",
    "SamplerLCMUpscale": "lcm",
}
# Nodes that are a rule for the noise levels -> its name among KSampler's.
_LEVELS = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "exponential",
    "BetaSamplingScheduler": "beta",
    "AlignYourStepsScheduler": "align your steps",
    "SDTurboScheduler": "sgm_uniform",
    "VPScheduler": "vp",
    "LaplaceScheduler": "laplace",
    "GITSScheduler": "gits",
}
# What these say beside their steps -> the value with which they are what their name says.
_USUAL = {
    "rho": {"KarrasScheduler": 7.0, "PolyexponentialScheduler": 1.0},
    "alpha": {"BetaSamplingScheduler": 0.6},
    "beta": {"BetaSamplingScheduler": 0.6},
    "eta": dict.fromkeys(_SOLVERS, 1.0),
    "s_noise": dict.fromkeys(_SOLVERS, 1.0),
}
_SIGMA_CUTS = ("SplitSigmas", "SplitSigmasDenoise", "FlipSigmas", "SetFirstSigma", "ExtendSigmas")


@dataclass(frozen=True)
class Sampling:
    """What a sampler was told.

    Attributes:
        solver, levels: as KSampler names them.
        model, prompts: where they come from.
        guided: a negative prompt is read.
    """

    seed: int | None
    steps: int | None
    scale: float | None
    solver: str
    levels: str
    model: Reached | None
    prompts: dict[str, Reached | None]
    guided: bool = True


def is_sampler(node: Node) -> bool:
    """Whether a node samples: one of ComfyUI's, or one that takes what they take."""
    custom = node.kind in _CUSTOM
    return custom or node.kind in SAMPLERS or all(name in node.inputs for name in _TAKES)


def read_sampling(graph: Graph, sampler: Node) -> Sampling:
    """What a sampler was told, put together from the nodes that say it."""
    if sampler.kind in _CUSTOM:
        return _custom(graph, sampler)
    if sampler.kind not in _KNOWN:
        graph.differs(f"node {sampler.kind!r:.60} is read as if it were KSampler")
    return Sampling(
        seed=_seed(graph, sampler),
        steps=_whole(graph, sampler, "steps", MOST_STEPS),
        scale=decimal_of(graph, sampler, "cfg", 1000),
        solver=graph.text(sampler, "sampler_name"),
        levels=graph.text(sampler, "scheduler") or "normal",
        model=_linked(graph, sampler, "model"),
        prompts={role: _linked(graph, sampler, role) for role in ("positive", "negative")},
    )


def decimal_of(graph: Graph, node: Node, name: str, most: float) -> float | None:
    """An input that is a number from 0 to `most`; None, and said, where it is none."""
    value = graph.value(node, name)
    number = decimal(value, most)
    if number is None and value is not None:
        graph.differs(f"{name} {value!r:.60} cannot be used")
    return number


def _linked(graph: Graph, node: Node, name: str) -> Reached | None:
    """What an input is linked to, or in its place what a bundle of links comes from."""
    found = graph.link(node, name)
    if found is None and not is_list(node.inputs.get(name)):
        bundles = (graph.link(node, each) for each in ("pipe", "sdxl_tuple", "base_ctx"))
        found = next((Reached(each.node) for each in bundles if each is not None), None)
    return found


def _custom(graph: Graph, sampler: Node) -> Sampling:
    guider = _one(graph, sampler, "guider") or sampler
    noise = _one(graph, sampler, "noise") or sampler
    if noise.kind == "DisableNoise" or sampler.inputs.get("add_noise") is False:
        graph.differs("no noise was added where it began")
    if guider is not sampler and guider.kind not in ("CFGGuider", "BasicGuider"):
        graph.differs(f"node {guider.kind!r:.60} guided it, which is not there; plain guidance is")
    basic = guider.kind == "BasicGuider"
    positives = ("conditioning",) if basic else ("positive", "cond1", "positive_text_cond")
    positive = next((r for n in positives if (r := graph.link(guider, n)) is not None), None)
    scale = "cfg" if "cfg" in guider.inputs else "cfg_conds"
    steps, levels = _levels(graph, _one(graph, sampler, "sigmas"))
    return Sampling(
        seed=_whole(graph, noise, "noise_seed", LARGEST_SEED) if noise.inputs else None,
        steps=steps,
        scale=1.0 if basic else decimal_of(graph, guider, scale, 1000),
        solver=_solver(graph, _one(graph, sampler, "sampler")),
        levels=levels,
        model=graph.link(guider, "model"),
        prompts={"positive": positive, "negative": graph.link(guider, "negative")},
        guided=not basic,
    )


def _one(graph: Graph, node: Node, name: str) -> Node | None:
    """The node behind an input, past those that only hand it on."""
    reached = graph.link(node, name)
    seen: set[int] = set()
    while reached is not None and reached.node.kind.startswith("Reroute"):
        if id(reached.node) in seen:
            raise ValueError(f"its nodes are linked in a circle at {reached.node.kind!r:.60}")
        seen.add(id(reached.node))
        links = [key for key, value in reached.node.inputs.items() if is_list(value)]
        reached = graph.link(reached.node, links[0]) if links else None
    return None if reached is None else reached.node


def _solver(graph: Graph, node: Node | None) -> str:
    if node is None:
        graph.differs("its sampler is not known")
        return "euler"
    if node.kind in _SOLVERS:
        _check_usual(graph, node)
        return _SOLVERS[node.kind]
    name = graph.text(node, "sampler_name")
    if not name:
        graph.differs(f"node {node.kind!r:.60} is a sampler that is not known; 'euler' is used")
    return name or "euler"


def _levels(graph: Graph, node: Node | None) -> tuple[int | None, str]:
    """Steps and the rule for the noise levels."""
    for _ in range(len(graph.nodes)):
        if node is None or node.kind not in _SIGMA_CUTS:
            break
        graph.differs(f"node {node.kind!r:.60} changed the noise levels and is not run")
        node = _one(graph, node, "sigmas")
    if node is None:
        graph.differs("its noise levels are not known")
        return None, "normal"
    if graph.value(node, "denoise") not in (1, None):
        graph.differs("it denoised only in part")
    steps = _whole(graph, node, "steps", MOST_STEPS)
    if node.kind in _LEVELS:
        _check_usual(graph, node)
        if node.kind == "SDTurboScheduler" and steps != 1:
            graph.differs("it took the first of ten steps; here they go all the way")
        return steps, _LEVELS[node.kind]
    name = graph.text(node, "scheduler")
    if not name:
        graph.differs(f"node {node.kind!r:.60} gave noise levels that are not known")
    return steps, name or "normal"


def _check_usual(graph: Graph, node: Node) -> None:
    for name, usual in _USUAL.items():
        value: Any = graph.value(node, name)
        if value is not None and value != usual.get(node.kind, value):
            graph.differs(f"{name} {value!r:.60} of {node.kind!r:.60} is not there")


def _seed(graph: Graph, sampler: Node) -> int | None:
    if "noise_seed" not in sampler.inputs:
        if graph.value(sampler, "denoise") not in (1, None):
            graph.differs("it denoised only in part")
        return _whole(graph, sampler, "seed", LARGEST_SEED)
    begin, end = graph.value(sampler, "start_at_step"), graph.value(sampler, "end_at_step")
    steps = graph.value(sampler, "steps")
    last = as_int(steps)
    ends = end is None or (last is not None and as_int(end, last) is not None)
    noise = graph.value(sampler, "add_noise", str)
    if not ends or begin not in (0, None) or noise not in ("enable", True, None):
        graph.differs("the sampler ran only some of the steps; all are run")
    return _whole(graph, sampler, "noise_seed", LARGEST_SEED)


def _whole(graph: Graph, node: Node, name: str, most: int) -> int | None:
    value = graph.value(node, name)
    number = whole_number(value, most)
    if number is None:
        graph.differs(f"{name} {value!r:.60} cannot be used")
    return number
