"""Schedulers for a run: a sampler's name and a model's settings, joined.

A name says everything about the solver: its method, and the noise levels that it visits. The
model's scheduler_config.json says everything about the model: noise schedule, prediction type, and
how the steps are spread where the name does not say. `make_scheduler` joins the two.

Shapes: B batch, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sdcore.checks import as_int
from sdcore.diffusion.given_levels import GivenLevels, Named, given_levels_class, named_class
from sdcore.diffusion.levels import SCHEDULES, SPACINGS, Trained
from sdcore.diffusion.methods import METHODS
from sdcore.diffusion.sampler_names import canonical_name, split_name
from sdcore.diffusion.scheduler_config import (
    FILE_NAME,
    accepted_settings,
    check_prediction_type,
    is_edm,
    read_scheduler_config,
    repaired,
)
from sdcore.errors import FileError, UsageError

# What a scheduler_config.json tells about the model. The rest of it (solver order, Karras sigmas,
# ...) describes the solver that the model was published with, and gives way to the name.
_MODEL_SETTINGS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type", "timestep_spacing", "steps_offset"),
    *("clip_sample", "clip_sample_range", "set_alpha_to_one", "thresholding"),
    *("dynamic_thresholding_ratio", "sample_max_value", "variance_type"),
    *("original_inference_steps", "timestep_scaling"),
    *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho"),
)
_SAME_LEVELS = 1e-3  # relative: what is told apart by it is also told apart by an eye


@dataclass(frozen=True)
class Foreign:
    """The published scheduler of a model, of a class that is not run here: another is named.

    Attributes:
        name: of its class in diffusers.
        config: its settings, of which those about the model are used.
    """

    name: str
    config: dict[str, Any]


def make_scheduler(name: str, config: Mapping[str, Any], *, sdxl: bool = False) -> Any:
    """A fresh scheduler for this sampler and this model.

    Args:
        name: of a sampler, in any usual spelling: a method of
            `sdcore.diffusion.methods.METHODS`, and a schedule behind it or none.
        config: the model's scheduler_config.json, or the `config` of another scheduler.
        sdxl: whether the model is of SDXL's kind, for which align your steps has its own levels.
    """
    name = canonical_name(name)
    method_name, schedule = split_name(name)
    method = METHODS[method_name]
    # diffusers notes which values were defaults of the class that the config was saved from.
    defaults = config.get("_use_default_values", ())
    model = {k: v for k, v in config.items() if k in _MODEL_SETTINGS and k not in defaults}
    if is_edm(config):
        return _make_edm(name, model)
    if schedule in SCHEDULES:
        cls = given_levels_class(name, method_name, schedule, sdxl)
        # A run over a schedule's levels begins with noise alone, as where the steps are spread so.
        model["timestep_spacing"] = "linspace"
    else:
        cls = named_class(name, method_name) if schedule else method.load_class()
        model |= {"timestep_spacing": schedule} if schedule else {}
    accepted = accepted_settings(cls)
    _check_model_settings(name, model, accepted)
    settings = {k: v for k, v in repaired(model, accepted).items() if k in accepted}
    if schedule in SCHEDULES and "use_karras_sigmas" in accepted:
        settings["use_karras_sigmas"] = True  # which `GivenLevels` answers
    return cls(**{**settings, **method.settings})


def _make_edm(name: str, model: Mapping[str, Any]) -> Any:
    """A scheduler for a model that was trained with EDM noise."""
    method_name, schedule = split_name(name)
    method = METHODS[method_name]
    if method.edm is None or schedule not in ("", "karras", "exponential"):
        methods = ", ".join(each for each, found in METHODS.items() if found.edm)
        raise UsageError(
            f"Scheduler {name!r} cannot run this model.",
            "It was trained with EDM noise (Karras et al. 2022), for which diffusers has "
            f"{methods}, with levels karras and exponential.",
            "Use 'dpm++ 2m' or 'euler'.",
        )
    cls = method.load_edm_class()
    accepted = accepted_settings(cls)
    settings = {k: v for k, v in model.items() if k in accepted}
    if schedule:
        settings["sigma_schedule"] = schedule
    return cls(**{**settings, **{k: v for k, v in method.settings.items() if k in accepted}})


def _check_model_settings(name: str, model: Mapping[str, Any], accepted: Collection[str]) -> None:
    prediction_type = check_prediction_type(model)
    if model.get("rescale_betas_zero_snr"):
        if "rescale_betas_zero_snr" not in accepted:
            raise UsageError(
                f"Scheduler {name!r} cannot run this model.",
                "The model was trained to zero terminal SNR, where this solver divides by zero.",
                "Use euler, ddim, dpm++ 2m or unipc.",
            )
        if prediction_type == "epsilon":
            raise UsageError(
                "The model's scheduler_config.json cannot be right.",
                "It predicts epsilon with zero terminal SNR; pure noise tells nothing about x0.",
                'Set "prediction_type" to "v_prediction", or "rescale_betas_zero_snr" to false.',
            )
    if prediction_type == "sample" and name.split(" ")[0] == "pndm":
        raise UsageError(
            f"Scheduler {name!r} cannot run this model.",
            "The model predicts clean latents; PNDM needs epsilon or v.",
            "Use ddim, euler or dpm++ 2m.",
        )


def copy_scheduler(scheduler: Any) -> Any:
    """The same scheduler with nothing of an earlier run in it.

    Raises UsageError where it cannot run the model that its config tells about, or is not run here.
    """
    if isinstance(scheduler, Foreign):
        raise UsageError(
            f"The model's own scheduler, {scheduler.name}, is not run here.",
            f"Those that are: {', '.join(METHODS)}.",
            "Name another scheduler, such as 'euler' or 'dpm++ 2m'.",
        )
    cls = cast(Any, type(scheduler))
    if not is_edm(scheduler.config):
        _check_model_settings(scheduler_name(scheduler), scheduler.config, accepted_settings(cls))
    return cls.from_config(scheduler.config)


def with_settings(scheduler: Any, **changes: Any) -> Any:
    """The same scheduler with some settings about the model changed."""
    config = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"} | changes
    if isinstance(scheduler, Foreign):
        return Foreign(scheduler.name, config)
    return cast(Any, type(scheduler)).from_config(config)


def load_scheduler(folder: str | Path, pipeline: str = "") -> Any:
    """The scheduler of a diffusers folder's scheduler/scheduler_config.json, as it was published.

    Settings get the repairs that diffusers' pipelines make. A scheduler of diffusers that is not
    run here is a `Foreign`: its model is run by any other.

    Args:
        pipeline: diffusers' class in the model's model_index.json.

    Raises:
        FileError: a setting that is unknown or cannot be used.
    """
    folder = Path(folder)
    config = read_scheduler_config(folder, pipeline)
    cls = _published_class(config["_class_name"])
    if cls is None:
        return Foreign(config["_class_name"], config)
    try:
        return cls.from_config(config)
    except Exception as error:  # diffusers computes with whatever the settings say
        raise FileError(
            f"{folder / FILE_NAME} cannot be used.",
            f"No {cls.__name__} can be built from it: {error!s:.300}.",
            "Copy the file from the original model again.",
        ) from error


def _published_class(name: str) -> Any:
    """The class that runs what was published with this one of diffusers; None where none does."""
    for method in METHODS.values():
        if method.edm is not None and method.edm.endswith(f".{name}"):
            return method.load_edm_class()
        if name in (method.cls, *method.aliases):
            return method.load_class()
    return None


def scheduler_name(scheduler: Any) -> str:
    """The canonical name of a sampler that a scheduler is."""
    if isinstance(scheduler, Foreign):
        return scheduler.name
    if isinstance(scheduler, Named):
        return scheduler.sampler
    fits, config, cls = "", scheduler.config, type(scheduler).__name__
    for name, method in METHODS.items():
        settings = method.settings
        if method.edm and method.edm.endswith(f".{cls}"):
            settings = {k: v for k, v in settings.items() if k in config}
        elif method.cls != cls:
            continue
        # Later names of one class are the more special ones.
        if all(config.get(key) == value for key, value in settings.items()):
            fits = name
    # Published levels of Karras et al. are ours where they go from end to end.
    whole = fits.startswith("dpm++ 2m") or config.get("timestep_spacing") == "linspace"
    karras = bool(config.get("use_karras_sigmas")) and whole and fits not in ("deis", "sa-solver")
    return (fits or cls) + " karras" * karras


def visited_levels(scheduler: Any) -> list[float]:
    """The noise levels σ of a run whose steps are set, once each, without the 0 at its end."""
    if hasattr(scheduler, "sigmas"):
        steps = len(scheduler.timesteps)
        return [float(sigma) for sigma in scheduler.sigmas[:steps][:: scheduler.order]]
    trained = Trained.of(scheduler.alphas_cumprod)
    times = dict.fromkeys(int(time) for time in scheduler.timesteps)
    return [float(trained.sigmas[time]) for time in times]


def largest_level(scheduler: Any) -> float:
    """The largest noise level that the model was trained with."""
    if is_edm(scheduler.config):
        return float(scheduler.config.sigma_max)
    return Trained.of(scheduler.alphas_cumprod).most


def levels_name(scheduler: Any, steps: int, *, sdxl: bool = False) -> str:
    """The schedule by whose formula a run of so many steps visits its levels.

    It is told by the levels themselves; where no formula gives them, by how the model's settings
    spread the steps.
    """
    if isinstance(scheduler, GivenLevels):
        return scheduler.schedule
    if is_edm(scheduler.config):
        return str(scheduler.config.sigma_schedule)
    visited, trained = visited_levels(scheduler), Trained.of(scheduler.alphas_cumprod, sdxl)
    for name, formula in SCHEDULES.items():
        levels = formula(trained, steps)
        if len(levels) == len(visited) and np.allclose(levels, visited, rtol=_SAME_LEVELS, atol=0):
            return name
    spacing = scheduler.config.get("timestep_spacing")
    return spacing if spacing in SPACINGS else "linspace"


def set_steps(scheduler: Any, steps: int, device: torch.device | str = "cpu") -> None:
    """Choose the times of a run of `steps` steps. UsageError when the model has no such times."""
    trained = scheduler.config.num_train_timesteps
    if as_int(steps, 1, trained) is None:
        raise UsageError(
            f"Cannot sample in {steps!r} steps.",
            f"The model was trained with {trained} noise levels; a run visits 1 to {trained}.",
            "20 to 30 steps are enough for most schedulers.",
        )
    distilled = scheduler.config.get("original_inference_steps")
    if distilled is not None and steps > distilled:
        why = f"Models for it are distilled on {distilled} noise levels: original_inference_steps."
        raise _too_many_steps(scheduler, steps, why)
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise _too_many_steps(scheduler, steps, f"{error}.") from None
    times = scheduler.timesteps
    # EDM's times are logarithms, and any number of steps fits between its levels.
    # A step between two equal noise levels is a division by zero in the multistep solvers. (The
    # solvers of order 2 list each level twice.)
    sigmas = (
        getattr(scheduler, "sigmas", torch.tensor([1.0, 0.0])) if scheduler.order == 1 else None
    )
    stands_still = sigmas is not None and bool((sigmas.diff() >= 0).any())
    beyond = not is_edm(scheduler.config) and bool(times.max() >= trained)
    if beyond or stands_still:
        raise _too_many_steps(scheduler, steps, "They do not fit into the trained noise levels.")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def _too_many_steps(scheduler: Any, steps: int, why: str) -> UsageError:
    name = scheduler_name(scheduler)
    return UsageError(
        f"Scheduler {name!r} cannot sample in {steps} steps.", why, "Use fewer steps."
    )
