"""Noise levels of schedules against the published formulas, written out here as they were."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules

from sdcore.diffusion.given_levels import GivenLevels
from sdcore.diffusion.levels import SCHEDULES, SPACINGS, Trained
from sdcore.diffusion.methods import METHODS, STOCHASTIC
from sdcore.diffusion.sampler_names import canonical_name, from_comfy, from_web_ui, takes_schedule
from sdcore.diffusion.schedulers import (
    largest_level,
    levels_name,
    make_scheduler,
    scheduler_name,
    set_steps,
    visited_levels,
)
from tests.diffusion.test_schedulers import SD15

SDXL = {**SD15, "timestep_spacing": "leading", "_class_name": "EulerDiscreteScheduler"}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SIGMAS = ((1 - torch.cumprod(1 - BETAS, 0)) / torch.cumprod(1 - BETAS, 0)).sqrt()
LEAST, MOST = float(SIGMAS[0]), float(SIGMAS[-1])
TOLERANCE = 2e-4  # schedulers have ᾱ in float32, and 1 - ᾱ of the first step is small
AYS_SD1 = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
AYS_SDXL = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]


def t_to_sigma(t: torch.Tensor) -> torch.Tensor:
    """k-diffusion's DiscreteSchedule."""
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    return ((1 - w) * SIGMAS.log()[low] + w * SIGMAS.log()[high]).exp()


def beta_ppf(share: float) -> float:
    """By counting the density of the beta distribution with both parameters 0.6."""
    theta, passed = _counted()
    return float(np.sin(np.interp(share, passed / passed[-1], theta)) ** 2)


@cache
def _counted() -> tuple[np.ndarray, np.ndarray]:
    # x = sin²(θ) takes the density's poles away: it becomes 2 · (sin θ cos θ)^0.2.
    theta = np.linspace(0, math.pi / 2, 400_001)
    density = 2 * (np.sin(theta) * np.cos(theta)) ** 0.2
    return theta, np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])


def loglinear(table: list[float], count: int) -> list[float]:
    ys = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(table)), np.log(table[::-1]))
    return np.exp(ys)[::-1].tolist()


def published(name: str, n: int) -> list[float]:
    if name == "normal":
        return t_to_sigma(torch.linspace(999, 0, n, dtype=torch.float64)).tolist()
    if name == "sgm uniform":
        return t_to_sigma(torch.linspace(999, 0, n + 1, dtype=torch.float64)[:-1]).tolist()
    if name == "karras":
        ramp = torch.linspace(0, 1, n, dtype=torch.float64)
        least, most = LEAST ** (1 / 7), MOST ** (1 / 7)
        return ((most + ramp * (least - most)) ** 7).tolist()
    if name == "exponential":
        return (
            torch.linspace(math.log(MOST), math.log(LEAST), n, dtype=torch.float64).exp().tolist()
        )
    if name == "simple":
        return [float(SIGMAS[-(1 + int(x * (1000 / n)))]) for x in range(n)]
    if name == "ddim uniform":
        return [float(SIGMAS[x]) for x in range(1, 1000, max(1000 // n, 1))][::-1]
    if name == "beta":
        times = [round(beta_ppf(1 - i / n) * 999) for i in range(n)]
        return [float(SIGMAS[t]) for t in dict.fromkeys(times)]
    if name == "beta a1111":
        return [LEAST + beta_ppf(share) * (MOST - LEAST) for share in 1 - np.linspace(0, 1, n)]
    if name == "kl optimal":
        index = torch.arange(n, dtype=torch.float64) / (n - 1)
        return (index * math.atan(LEAST) + (1 - index) * math.atan(MOST)).tan().tolist()
    if name == "linear quadratic":
        return linear_quadratic(n)
    if name == "align your steps":
        return loglinear(AYS_SD1, n + 1)[:-1]
    assert name == "align your steps a1111"
    return loglinear(AYS_SD1, n)


def linear_quadratic(n: int) -> list[float]:
    half, quadratic = n // 2, n - n // 2
    excess = half - 0.025 * n
    a = excess / (half * quadratic**2)
    b = 0.025 / half - 2 * excess / quadratic**2
    passed = [i * 0.025 / half for i in range(half)]
    passed += [a * i**2 + b * i + a * half**2 for i in range(half, n)]
    return [(1 - x) * MOST for x in passed]


@pytest.mark.parametrize("n", [4, 10, 20, 30])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_published_formula(name, n) -> None:
    trained = Trained(SIGMAS.numpy())
    np.testing.assert_allclose(SCHEDULES[name](trained, n), published(name, n), rtol=2e-5)


def test_the_published_tables_of_align_your_steps() -> None:
    for sdxl, name, table in ((False, "", AYS_SD1), (True, "XL", AYS_SDXL)):
        published_table = AysSchedules[f"StableDiffusion{name}Sigmas"]
        assert table[:-1] == published_table[:-1]
        scheduler = make_scheduler("euler align your steps", SDXL, sdxl=sdxl)
        set_steps(scheduler, 10)
        np.testing.assert_allclose(scheduler.sigmas, published_table, rtol=TOLERANCE)
        own = AysSchedules[f"StableDiffusion{name}Timesteps"]
        np.testing.assert_allclose(scheduler.timesteps, own, atol=1)


def run(name: str, steps: int = 20):
    scheduler = make_scheduler(name, SDXL)
    set_steps(scheduler, steps)
    return scheduler


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].takes == "levels"])
def test_a_method_visits_the_levels_of_its_schedule(method) -> None:
    count = 13 if METHODS[method].ends_trained or METHODS[method].skips_last else 12
    for schedule in ("karras", "sgm uniform", "ddim uniform"):
        scheduler = run(f"{method} {schedule}", 12)
        expected = published(schedule, count)
        expected = expected[:-1] if count == 13 else expected
        np.testing.assert_allclose(visited_levels(scheduler), expected, rtol=TOLERANCE)
        last = published(schedule, 13)[-1] if METHODS[method].ends_trained else 0
        assert float(scheduler.sigmas[-1]) == pytest.approx(last, rel=TOLERANCE)


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].takes == "times"])
def test_a_method_over_training_steps_visits_the_nearest(method) -> None:
    expected = np.rint(np.linspace(999, 0, 13)[:-1])
    assert run(f"{method} sgm uniform", 12).timesteps.tolist() == expected.tolist()


def test_karras_levels_go_from_end_to_end_whatever_the_models_spacing() -> None:
    scheduler = run("euler karras")
    assert float(scheduler.sigmas[0]) == pytest.approx(14.6146, abs=1e-3)
    # As diffusers' own, where the model's settings let it begin at the end.
    own = EulerDiscreteScheduler.from_config(
        SDXL, use_karras_sigmas=True, timestep_spacing="linspace"
    )
    own.set_timesteps(20)
    torch.testing.assert_close(scheduler.sigmas, own.sigmas)
    torch.testing.assert_close(scheduler.timesteps, own.timesteps, atol=1e-3, rtol=0)
    assert float(scheduler.init_noise_sigma) == pytest.approx(float(own.init_noise_sigma))


def test_one_step_of_a_few_step_model_begins_with_pure_noise() -> None:
    assert run("euler", 1).timesteps.tolist() == [1]
    for name in ("euler sgm uniform", "euler trailing", "euler simple"):
        scheduler = run(name, 1)
        assert scheduler.timesteps.tolist() == [999]
        assert visited_levels(scheduler) == [pytest.approx(14.6146, abs=1e-3)]
    assert largest_level(run("euler")) == pytest.approx(14.6146, abs=1e-3)


def test_what_a_run_visited_is_told_by_its_levels() -> None:
    # diffusers' leading with an offset of 1 is ComfyUI's ddim_uniform where the steps divide 1000.
    told = {name: levels_name(run(name), 20) for name in ("euler", "ddim", "dpm++ 2m", "pndm")}
    assert told == {"euler": "ddim uniform", "ddim": "ddim uniform", "pndm": "ddim uniform"} | {
        "dpm++ 2m": "leading"
    }
    assert levels_name(run("euler", 30), 30) == "leading"
    assert levels_name(run("euler linspace"), 20) == "normal"
    assert levels_name(run("ddim trailing"), 20) == "simple"
    for schedule in SCHEDULES:
        scheduler = run(f"euler {schedule}")
        plain = EulerDiscreteScheduler.from_config(scheduler.config, use_karras_sigmas=False)
        plain.set_timesteps(sigmas=[*visited_levels(scheduler), 0.0])
        assert levels_name(plain, 20) == schedule


WEB_UI = (
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE"),
    *("Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart"),
    *("DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM"),
)
WEB_UI_TYPES = {
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",
    "SGM Uniform": "sgm uniform",
    "KL Optimal": None,
    "Align Your Steps": "align your steps a1111",
    "Simple": "simple",
    "Normal": "normal",
    "DDIM": "ddim uniform",
    "Beta": "beta a1111",
}
DRAWN = "which is drawn differently here"


@pytest.mark.parametrize("kind", WEB_UI_TYPES)
def test_what_is_called_the_same_as_in_the_web_ui_has_its_levels(kind) -> None:
    same = 0
    for sampler in WEB_UI:
        found = from_web_ui(sampler, kind)
        assert canonical_name(found.name) == found.name
        if [why for why in found.differences if DRAWN not in why]:
            continue
        same += 1
        levels = visited_levels(run(found.name, 12))
        # The web UI leaves out the level before the last for DPM2.
        formula = WEB_UI_TYPES[kind]
        assert formula is not None, "KL Optimal ends elsewhere there"
        count = 13 if sampler.startswith("DPM2") else 12
        expected = published(formula, count)[: None if count == 12 else -1]
        np.testing.assert_allclose(levels, expected, rtol=TOLERANCE, err_msg=found.name)
    assert same == (0 if kind == "KL Optimal" else 11)


COMFY = "normal karras exponential sgm_uniform simple ddim_uniform beta linear_quadratic kl_optimal"


@pytest.mark.parametrize("kind", COMFY.split())
def test_what_is_called_the_same_as_in_comfyui_has_its_levels(kind) -> None:
    samplers = ("euler", "ddim", "heun", "dpm_2", "lms", "dpmpp_2m", "ipndm", "euler_cfg_pp")
    for sampler in samplers:
        found = from_comfy(sampler, kind)
        assert not found.differences
        skips = sampler == "dpm_2"
        expected = published(kind.replace("_", " "), 12 + skips)[: -1 if skips else None]
        np.testing.assert_allclose(visited_levels(run(found.name, 12)), expected, rtol=TOLERANCE)
    assert from_comfy("deis", kind).differences and from_comfy("uni_pc", kind).differences


def test_every_name_is_one_of_ours() -> None:
    for method, row in METHODS.items():
        for schedule in ("", *SCHEDULES, *SPACINGS):
            if not takes_schedule(row, schedule):
                continue
            name = f"{method} {schedule}".strip()
            assert canonical_name(name) == name
            assert canonical_name(name.upper().replace(" ", "_")) == name
        assert (method in STOCHASTIC) == row.noise
    scheduler = make_scheduler("heun exponential", SD15)
    assert isinstance(scheduler, GivenLevels) and scheduler_name(scheduler) == "heun exponential"
    json.dumps(dict(scheduler.config), default=str)
