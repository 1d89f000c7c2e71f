"""Schedulers by name: spelling, model settings, and whether each really samples what it should."""

import json
from itertools import product
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from sdcore.diffusion import schedulers
from sdcore.diffusion.levels import SCHEDULES, SPACINGS
from sdcore.diffusion.methods import METHODS, STOCHASTIC
from sdcore.diffusion.sampler_names import canonical_name, from_comfy, from_web_ui, split_name
from sdcore.diffusion.scheduler_config import accepted_settings
from sdcore.diffusion.steps import guess_clean, iterate_steps, take_step
from sdcore.errors import FileError, UsageError

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
MEAN, DEVIATION = 0.3, 0.6
# Every method, and some over the levels of a schedule, each class of them in one way at least.
NAMES = (
    *METHODS,
    *("euler karras", "euler a exponential", "dpm++ 2m karras", "dpm++ 2m sde karras"),
    *("dpm++ sde karras", "ddim sgm uniform", "ddpm simple", "heun beta", "dpm2 a kl optimal"),
    *("unipc align your steps", "deis karras", "sa-solver exponential", "dpm++ 2s normal"),
    *("dpm2 karras", "tcd ddim uniform", "lcm sgm uniform", "dpm++ 3m sde karras"),
    "ddim cfg++ linspace",
)
STOCHASTIC_NAMES = {name for name in NAMES if split_name(name)[0] in STOCHASTIC}
# DPM++ 3M SDE needs levels that are dense at the end, which equal distances in time are not.
EXACT = [n for n in NAMES if not n.startswith(("lcm", "tcd")) and n != "dpm++ 3m sde"]
DISTILLED = ("lcm", "tcd")  # of such models they jump; with an exact prediction they lose spread


def sample_gaussian(
    name: str,
    steps: int,
    prediction_type: str = "epsilon",
    batch: int = 1,
    config: dict[str, Any] = SD15,
):
    """Sample with the exact prediction for data that is N(MEAN, DEVIATION²)."""
    scheduler = schedulers.make_scheduler(name, {**config, "prediction_type": prediction_type})
    schedulers.set_steps(scheduler, steps)
    generators = [torch.Generator().manual_seed(i) for i in range(batch)]
    latents = torch.stack([torch.randn(4, 64, 64, generator=g) for g in generators])
    latents = latents * scheduler.init_noise_sigma
    for _, time in iterate_steps(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, time)
        alpha = level(scheduler, time)
        error = scaled - alpha.sqrt() * MEAN
        epsilon = (1 - alpha).sqrt() * error / (alpha * DEVIATION**2 + 1 - alpha)
        if prediction_type == "v_prediction":
            x0 = MEAN + alpha.sqrt() * DEVIATION**2 * error / (alpha * DEVIATION**2 + 1 - alpha)
            epsilon = alpha.sqrt() * epsilon - (1 - alpha).sqrt() * x0
        latents = take_step(scheduler, epsilon, time, latents, generators, epsilon)
    return latents


def level(scheduler: Any, time: torch.Tensor) -> torch.Tensor:
    """ᾱ of the latents where a run stands."""
    if not hasattr(scheduler, "sigmas"):
        return scheduler.alphas_cumprod[int(time)]
    return 1 / (1 + sigma_of(scheduler) ** 2)


def sigma_of(scheduler: Any) -> torch.Tensor:
    """σ where a run stands; DPM2 has levels of its own between its two calls."""
    index, levels = scheduler.step_index or 0, scheduler.sigmas
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        levels = scheduler.sigmas_interpol
        index -= "Ancestral" in type(scheduler).__name__
    return levels[index]


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        *product(NAMES, ("epsilon",)),
        *product(METHODS, ("v_prediction",)),
        ("ddim", "sample"),
        ("euler", "sample"),
    ],
)
def test_the_clean_latents_of_a_prediction_in_every_scale(name, prediction_type) -> None:
    scheduler = schedulers.make_scheduler(name, {**SD15, "prediction_type": prediction_type})
    schedulers.set_steps(scheduler, 6)
    generators = [torch.Generator().manual_seed(1)]
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=generators[0])
    for _, time in iterate_steps(scheduler.timesteps):
        latents = scheduler.add_noise(clean, noise, time.reshape(1))
        if name.startswith("dpm2"):
            latents = clean + noise * sigma_of(scheduler)
        seen = scheduler.scale_model_input(latents, time)  # of variance 1, whatever the scale
        alpha = torch.linalg.lstsq(
            torch.stack([clean, noise]).flatten(1).T, seen.flatten()[:, None]
        )
        signal, sigma = alpha.solution.flatten()
        assert signal**2 + sigma**2 == pytest.approx(1, abs=1e-4)
        predictions = {
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * clean,
            "sample": clean,
        }
        guess = guess_clean(scheduler, predictions[prediction_type], time, latents)
        torch.testing.assert_close(guess, clean, rtol=1e-3, atol=2e-3)
        answer = predictions[prediction_type]
        take_step(scheduler, answer, time, latents, generators, answer)


@pytest.mark.parametrize(
    ("prediction_type", "name"),
    [
        *product(("epsilon",), EXACT),
        *product(("v_prediction",), [name for name in EXACT if name in METHODS]),
    ],
)
def test_samples_have_the_mean_and_spread_of_the_data(name, prediction_type) -> None:
    latents = sample_gaussian(name, 100, prediction_type)
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.03)
    # The first-order samplers (DDPM, Euler a) still lack 5 % of the spread after 100 steps.
    assert latents.std().item() == pytest.approx(DEVIATION, rel=0.06)


@pytest.mark.parametrize("name", ["dpm++ sde", "dpm++ sde karras"])
def test_dpm_sde_is_of_second_order(name) -> None:
    first_order = abs(sample_gaussian("euler a", 39).std().item() - DEVIATION)
    same_cost = abs(sample_gaussian(name, 20).std().item() - DEVIATION)
    assert same_cost < 0.7 * first_order


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch(name) -> None:
    alone, together = sample_gaussian(name, 3), sample_gaussian(name, 3, batch=2)
    assert torch.equal(alone[0], together[0])
    assert not torch.allclose(together[0], together[1])


def test_which_schedulers_draw_noise() -> None:
    for name in NAMES:
        scheduler = schedulers.make_scheduler(name, SD15)
        schedulers.set_steps(scheduler, 4)
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        latents = torch.ones(1, 4, 2, 2)
        for _, time in iterate_steps(scheduler.timesteps):
            scaled = scheduler.scale_model_input(latents, time)
            latents = take_step(scheduler, scaled, time, latents, [generator], scaled)
        drew = not torch.equal(before, generator.get_state())
        assert drew == (name in STOCHASTIC_NAMES), name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DPM++ 2M Karras", "dpm++ 2m karras"),
        ("dpmpp_2m_karras", "dpm++ 2m karras"),
        ("dpmpp_sde", "dpm++ sde"),
        ("Euler a", "euler a"),
        ("euler_ancestral", "euler a"),
        ("PLMS", "pndm"),
        ("UniPC", "unipc"),
        ("DPM++2M Karras", "dpm++ 2m karras"),
        ("dpm++sde", "dpm++ sde"),
        ("euler ays_sdxl", "euler align your steps"),
        ("DDIM", "ddim"),
    ],
)
def test_usual_spellings(spelling, name) -> None:
    assert canonical_name(spelling) == name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("Euler SMEA Dy", None), "euler normal"),
        (("DPM++ 2M SDE Turbo", None), "dpm++ 2m sde normal"),
        (("Kohaku_LoNyu_Yog", None), "dpm++ 2m normal"),
        (("Heun++", "Karras"), "heun karras"),
    ],
)
def test_a_sampler_that_is_not_there_becomes_the_nearest_and_it_is_said(theirs, ours) -> None:
    found = from_web_ui(*theirs)
    assert found.name == ours
    assert f"sampler {theirs[0]!r} is not there" in found.differences[0]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("res_2s", "dpm++ 2s"),
        ("res_3m_ode", "dpm++ 2m"),
        ("res_2m bong_tangent", "dpm++ 2m"),
        ("res_2m karras", "dpm++ 2m karras"),
        ("deis_3m", "deis"),
        ("heun_3s", "heun"),
        ("rk_beta", "heun"),
        ("euler beta57", "euler beta"),
        ("euler_smea_dy", "euler"),
        ("DPM++ 2M Karass", "dpm++ 2m karras"),
        ("dpm fast karras", "dpm++ 2s karras"),
        ("er_sde", "dpm++ 3m sde"),
    ],
)
def test_a_name_that_is_not_there_gets_the_nearest_as_a_hint(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        canonical_name(name)
    assert caught.value.hint == f"Use {near!r}, the nearest that is."
    assert ("RES4LYF" in caught.value.why) == (name.startswith(("res", "deis", "heun", "rk")))
    assert canonical_name(near) == near


def test_schedules_of_other_tools_in_the_web_uis_text() -> None:
    assert from_web_ui("DPM++ 2M", "sgm_uniform").name == "dpm++ 2m sgm uniform"
    assert from_comfy("euler", "AYS SDXL").name == "euler align your steps"


def test_an_unknown_name_lists_all_and_the_nearest() -> None:
    with pytest.raises(UsageError) as error:
        schedulers.make_scheduler("dpm++ 2n", SD15)
    assert "dpm++ 2" in error.value.hint
    assert all(name in error.value.why for name in (*METHODS, *SCHEDULES, *SPACINGS))


def test_the_name_decides_the_sampler_and_the_config_the_model() -> None:
    published = {
        **SD15,
        "use_karras_sigmas": True,
        "solver_order": 3,
        "algorithm_type": "sde-dpmsolver++",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    config = schedulers.make_scheduler("dpm++ 2m", published).config
    assert not config.use_karras_sigmas and config.solver_order == 2
    assert config.algorithm_type == "dpmsolver++"
    assert config.prediction_type == "v_prediction" and config.timestep_spacing == "trailing"
    assert schedulers.make_scheduler("dpm++ 2m karras", published).config.use_karras_sigmas


def test_defaults_of_another_scheduler_are_not_taken_for_the_models_settings() -> None:
    # DDIM's own default is "leading"; DPM-Solver's is "linspace".
    of_ddim = DDIMScheduler(beta_schedule="scaled_linear").config
    assert schedulers.make_scheduler("dpm++ 2m", of_ddim).config.timestep_spacing == "linspace"


def test_latents_are_not_clipped_like_pixels() -> None:
    for name in ("ddim", "ddpm"):
        assert not schedulers.make_scheduler(name, {"beta_schedule": "linear"}).config.clip_sample


@pytest.mark.parametrize("name", NAMES)
def test_names_survive_the_way_there_and_back(name) -> None:
    scheduler = schedulers.make_scheduler(name, SD15)
    assert schedulers.scheduler_name(scheduler) == name
    assert schedulers.scheduler_name(schedulers.copy_scheduler(scheduler)) == name


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm2", "dpm++ 2m karras", "lcm"])
@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, True, "20", None])
def test_impossible_steps_are_refused(name, steps) -> None:
    with pytest.raises(UsageError, match="steps"):
        schedulers.set_steps(schedulers.make_scheduler(name, SD15), steps)


STEPS = [1, 2, 49, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 600, 1000))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", STEPS)
def test_every_possible_number_of_steps_is_finite_or_refused(name, steps) -> None:
    scheduler = schedulers.make_scheduler(name, SD15)
    try:
        schedulers.set_steps(scheduler, steps)
    except UsageError:
        assert steps > 50, "few steps always work"
        return
    latents = torch.full((1, 1, 1, 1), 0.5)
    generator = torch.Generator().manual_seed(0)
    for _, time in iterate_steps(scheduler.timesteps):
        assert 0 <= time < 1000
        scaled = scheduler.scale_model_input(latents, time)
        scaled = scaled * 0.1
        latents = take_step(scheduler, scaled, time, latents, [generator], scaled)
    assert torch.isfinite(latents).all()


ZERO_SNR = {
    **SD15,
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_is_sampled_from_pure_noise_or_refused(name) -> None:
    method = METHODS[split_name(name)[0]]
    if "rescale_betas_zero_snr" not in accepted_settings(method.load_class()):
        with pytest.raises(UsageError, match="cannot run this model"):
            schedulers.make_scheduler(name, ZERO_SNR)
        return
    scheduler = schedulers.make_scheduler(name, ZERO_SNR)
    schedulers.set_steps(scheduler, 40)
    if name.endswith(("ddim uniform", "align your steps")):
        return  # which begin where their formulas say
    assert round(float(scheduler.timesteps[0])) == 999
    latents = sample_gaussian(name, 40, "v_prediction", config=ZERO_SNR)
    assert torch.isfinite(latents).all()
    if not name.startswith(DISTILLED):
        assert latents.mean().item() == pytest.approx(MEAN, abs=0.04)
        assert latents.std().item() == pytest.approx(DEVIATION, rel=0.15)


def test_a_published_scheduler_that_divides_by_zero_is_refused_when_it_is_used(tmp_path) -> None:
    config = {**ZERO_SNR, "_class_name": "PNDMScheduler"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    scheduler = schedulers.load_scheduler(tmp_path)
    with pytest.raises(UsageError, match="'pndm' cannot run this model"):
        schedulers.copy_scheduler(scheduler)
    other = schedulers.make_scheduler("ddim", scheduler.config)
    assert other.config.rescale_betas_zero_snr


@pytest.mark.parametrize("name", ["ddim", "euler", "lcm"])
def test_epsilon_says_nothing_at_zero_terminal_snr(name) -> None:
    with pytest.raises(UsageError, match="cannot be right"):
        schedulers.make_scheduler(name, {**ZERO_SNR, "prediction_type": "epsilon"})


def test_lcm_says_in_our_words_how_many_steps_it_has() -> None:
    scheduler = schedulers.make_scheduler("lcm", SD15)
    schedulers.set_steps(scheduler, 50)
    with pytest.raises(UsageError, match="distilled on 50 noise levels") as error:
        schedulers.set_steps(scheduler, 51)
    assert "`" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "name"),
    [({"prediction_type": "flow_prediction"}, "euler"), ({"prediction_type": "sample"}, "pndm")],
)
def test_predictions_that_a_solver_cannot_read_are_refused(config, name) -> None:
    with pytest.raises(UsageError):
        schedulers.make_scheduler(name, {**SD15, **config})


def test_a_folder_may_only_name_known_classes(tmp_path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(SD15))
    assert schedulers.scheduler_name(schedulers.load_scheduler(tmp_path)) == "pndm"
    for content in ('{"_class_name": "os.system"}', "{}", "not json", "[]"):
        path.write_text(content)
        with pytest.raises(FileError, match=r"scheduler_config\.json"):
            schedulers.load_scheduler(tmp_path)
    path.unlink()
    with pytest.raises(FileError):
        schedulers.load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prediction_tyre": "v_prediction"}, "'prediction_type'"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"_class_name": "os.system"}, "which there is not"),
        ({"_class_name": "StableDiffusionPipeline"}, "which there is not"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "flow matching"),
        ({"timestep_spacing": "traling"}, "leading, trailing, linspace"),
        ({"beta_schedule": "cosine"}, "squaredcos_cap_v2"),
        ({"clip_sample": "no"}, "of that kind"),
        ({"beta_start": "0.1"}, "of that kind"),
        ({"steps_offset": 1.5}, "of that kind"),
        ({"num_train_timesteps": 10**9}, "from 1 to"),
        ({"thresholdding": True}, "'thresholding'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tmp_path, changes, said) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({**SD15, **changes}))
    with pytest.raises(FileError, match=r"scheduler_config\.json") as error:
        schedulers.load_scheduler(tmp_path)
    assert said in str(error.value)


def test_settings_of_other_classes_and_older_versions_are_read(tmp_path) -> None:
    more = {"sample_max_value": 1, "use_karras_sigmas": False, "solver_order": 2, "tau_func": None}
    old = {"predict_epsilon": True, "tensor_format": "pt", "_name_or_path": "x"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps({**SD15, **more, **old}))
    assert schedulers.scheduler_name(schedulers.load_scheduler(tmp_path)) == "pndm"


def test_a_published_scheduler_that_is_not_run_gives_way_to_another(tmp_path) -> None:
    config = {**SD15, "_class_name": "CMStochasticIterativeScheduler", "s_noise": 1.0}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    published = schedulers.load_scheduler(tmp_path)
    assert schedulers.make_scheduler("euler", published.config).config.beta_end == 0.012
    with pytest.raises(UsageError, match="CMStochasticIterativeScheduler, is not run here"):
        schedulers.copy_scheduler(published)
    changed = schedulers.with_settings(published, prediction_type="v_prediction")
    assert changed.config["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("name", ["LMSDiscreteScheduler", "DPMSolverSDEScheduler"])
def test_what_diffusers_has_with_an_extra_package_is_run_by_ours(tmp_path, name) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({**SD15, "_class_name": name}))
    published = schedulers.copy_scheduler(schedulers.load_scheduler(tmp_path))
    assert schedulers.scheduler_name(published) in ("lms", "dpm++ sde")
    schedulers.set_steps(published, 4)


def test_the_repairs_that_diffusers_makes(tmp_path) -> None:
    bare = {k: v for k, v in SD15.items() if k not in ("clip_sample", "steps_offset")}
    bare |= {"_class_name": "DDIMScheduler"}
    for config in (bare, {**bare, "clip_sample": True, "steps_offset": 0}):
        (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
        published = schedulers.load_scheduler(tmp_path, "StableDiffusionPipeline").config
        assert published.clip_sample is False and published.steps_offset == 1
        for name in ("ddim", "euler", "dpm++ 2m"):
            made = schedulers.make_scheduler(name, published).config
            assert made.steps_offset == 1 and not made.get("clip_sample")
        # SDXL's pipelines leave the offset.
        xl = schedulers.load_scheduler(tmp_path, "StableDiffusionXLPipeline").config
        assert xl.clip_sample is False and xl.steps_offset == 0
