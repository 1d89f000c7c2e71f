"""diffusers' schedulers under the names that people use.

A name says everything about the solver: method, order, Karras noise levels, stochastic or not. The
model's scheduler_config.json says everything about the model: noise schedule, prediction type and
which training steps are visited. `make_scheduler` joins the two.

Shapes: B batch, C channels, h w latent grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from sdcore.checks import as_int
from sdcore.diffusion.noise import PREDICTION_TYPES
from sdcore.errors import FileError, UsageError
from sdcore.files.jsonfile import read_json

# What a scheduler_config.json tells about the model. The rest of it (solver order, Karras sigmas,
# ...) describes the solver that the model was published with, and gives way to the name.
_MODEL_SETTINGS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type", "timestep_spacing", "steps_offset"),
    *("clip_sample", "clip_sample_range", "set_alpha_to_one", "thresholding"),
    *("dynamic_thresholding_ratio", "sample_max_value", "variance_type"),
    *("original_inference_steps", "timestep_scaling"),
)


@dataclass(frozen=True)
class _Solver:
    module: str
    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


_TIMES_LIMIT = 100_000  # of num_train_timesteps; every published model has 1000
_EULER = ("scheduling_euler_discrete", "EulerDiscreteScheduler")
_MULTISTEP = ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler")
_SDE = ("sdcore.diffusion.dpm_sde", "DPMSolverPlusPlusSDEScheduler")
_KARRAS = {"use_karras_sigmas": True}

_SOLVERS = {
    "ddim": _Solver("scheduling_ddim", "DDIMScheduler"),
    "ddpm": _Solver("scheduling_ddpm", "DDPMScheduler"),
    # The Runge-Kutta warm-up of PNDM is always skipped for Stable Diffusion ("PLMS").
    "pndm": _Solver("scheduling_pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    "euler": _Solver(*_EULER),
    "euler karras": _Solver(*_EULER, _KARRAS),
    "euler a": _Solver("scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "heun": _Solver("scheduling_heun_discrete", "HeunDiscreteScheduler"),
    "dpm++ 2m": _Solver(*_MULTISTEP),
    "dpm++ 2m karras": _Solver(*_MULTISTEP, _KARRAS),
    "dpm++ 2m sde": _Solver(*_MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2m sde karras": _Solver(*_MULTISTEP, {"algorithm_type": "sde-dpmsolver++", **_KARRAS}),
    "dpm++ sde": _Solver(*_SDE),
    "dpm++ sde karras": _Solver(*_SDE, _KARRAS),
    "unipc": _Solver("scheduling_unipc_multistep", "UniPCMultistepScheduler"),
    "lcm": _Solver("scheduling_lcm", "LCMScheduler"),
}

SCHEDULERS = tuple(_SOLVERS)
STOCHASTIC = frozenset(
    name for name in SCHEDULERS if name in ("ddpm", "euler a", "lcm") or "sde" in name
)


def canonical_name(name: str) -> str:
    """The name in `SCHEDULERS` for any usual spelling ("DPM++ 2M Karras", "dpmpp_2m_karras").

    Raises UsageError that lists the names and the nearest one.
    """
    words = str(name).lower().replace("_", " ").replace("-", " ").replace("dpmpp", "dpm++").split()
    plain = " ".join(words).replace("ancestral", "a").replace("uni pc", "unipc")
    plain = {"plms": "pndm"}.get(plain, plain)
    if plain in _SOLVERS:
        return plain
    near = get_close_matches(plain, SCHEDULERS, n=1, cutoff=0.4)
    raise UsageError(
        f"Unknown scheduler {name!r}.",
        f"The schedulers are: {', '.join(SCHEDULERS)}.",
        f"Did you mean {near[0]!r}?" if near else "Use one of these names.",
    )


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh scheduler of diffusers for this name and this model.

    Args:
        name: one of `SCHEDULERS`, in any usual spelling. "dpm++ sde" is the two-calls-a-step solver
            that image tools know by this name; see `sdcore.diffusion.dpm_sde`.
        config: the model's scheduler_config.json, or the `config` of another scheduler.
    """
    name = canonical_name(name)
    solver = _SOLVERS[name]
    cls = _scheduler_class(solver)
    # diffusers notes which values were defaults of the class that the config was saved from.
    defaults = config.get("_use_default_values", ())
    model = {k: v for k, v in config.items() if k in _MODEL_SETTINGS and k not in defaults}
    # DDIM and DDPM clip x0 to the range of pixels unless told not to; latents are no pixels.
    model.setdefault("clip_sample", False)
    accepted = inspect.signature(cls.__init__).parameters
    _check_model_settings(name, model, accepted)
    settings = {k: v for k, v in model.items() if k in accepted}
    return cls(**{**settings, **solver.settings})


def _check_prediction_type(model: Mapping[str, Any]) -> str:
    prediction_type = model.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise UsageError(
            f"The model predicts {prediction_type!r}, which is not supported.",
            "Its scheduler_config.json says so; the UNets here predict "
            f"{', '.join(PREDICTION_TYPES)}.",
            "Use a Stable Diffusion 1.x, 2.x or XL model.",
        )
    return prediction_type


def _check_model_settings(name: str, model: Mapping[str, Any], accepted: Collection[str]) -> None:
    prediction_type = _check_prediction_type(model)
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
    if prediction_type == "sample" and name == "pndm":
        raise UsageError(
            f"Scheduler {name!r} cannot run this model.",
            "The model predicts clean latents; PNDM needs epsilon or v.",
            "Use ddim, euler or dpm++ 2m.",
        )


def _scheduler_class(solver: _Solver) -> Any:
    home = solver.module
    home = home if home.startswith("sdcore.") else f"diffusers.schedulers.{home}"
    return getattr(import_module(home), solver.cls)


def copy_scheduler(scheduler: Any) -> Any:
    """The same scheduler with nothing of an earlier run in it.

    Raises UsageError where it cannot run the model that its config tells about.
    """
    accepted = inspect.signature(type(scheduler).__init__).parameters
    _check_model_settings(scheduler_name(scheduler), scheduler.config, accepted)
    return _class_of(scheduler).from_config(scheduler.config)


def _class_of(scheduler: Any) -> Any:
    return cast(Any, type(scheduler))


def load_scheduler(folder: str | Path) -> Any:
    """The scheduler of a diffusers folder's scheduler/scheduler_config.json, as it was published.

    Only the classes behind `SCHEDULERS` are made; a config cannot name any other.
    """
    path = Path(folder) / "scheduler_config.json"
    config = read_json(path)
    class_name = config.get("_class_name")
    try:
        _check_prediction_type(config)
    except UsageError as error:
        raise FileError(f"{path}: {error.what}", error.why, error.hint) from error
    for solver in _SOLVERS.values():
        if solver.cls == class_name:
            return _build(path, _scheduler_class(solver), config)
    raise FileError(
        f"{path} names the scheduler class {class_name!r:.80}, which is not supported.",
        f"Known classes: {', '.join(sorted({s.cls for s in _SOLVERS.values()}))}.",
        "Set _class_name to one of these.",
    )


def _build(path: Path, cls: Any, config: Mapping[str, Any]) -> Any:
    times = config.get("num_train_timesteps", 1000)
    try:
        if not 1 <= times <= _TIMES_LIMIT:
            raise ValueError(f"num_train_timesteps is {times!r:.80}")
        return cls.from_config(config)
    except Exception as error:  # diffusers computes with whatever the settings say
        raise FileError(
            f"{path} cannot be used.",
            f"No {cls.__name__} can be built from it: {error!s:.300}.",
            "Copy the file from the original model again.",
        ) from error


def scheduler_name(scheduler: Any) -> str:
    """The name in `SCHEDULERS` that fits a scheduler best."""
    fits = ""
    for name, solver in _SOLVERS.items():
        same = type(scheduler).__name__ == solver.cls and all(
            scheduler.config.get(key) == value for key, value in solver.settings.items()
        )
        if same:  # later names of one class are the more special ones
            fits = name
    return fits or type(scheduler).__name__


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
    # A step between two equal noise levels is a division by zero in the multistep solvers. (The
    # solvers of order 2 list each level twice.)
    sigmas = (
        getattr(scheduler, "sigmas", torch.tensor([1.0, 0.0])) if scheduler.order == 1 else None
    )
    stands_still = sigmas is not None and bool((sigmas.diff() >= 0).any())
    if times.max() >= trained or stands_still:
        raise _too_many_steps(scheduler, steps, "They do not fit into the trained noise levels.")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def _too_many_steps(scheduler: Any, steps: int, why: str) -> UsageError:
    name = scheduler_name(scheduler)
    return UsageError(
        f"Scheduler {name!r} cannot sample in {steps} steps.", why, "Use fewer steps."
    )
