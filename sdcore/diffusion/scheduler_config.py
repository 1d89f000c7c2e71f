"""scheduler_config.json: what it may say, read strictly, and the repairs that diffusers makes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from sdcore.checks import as_finite, as_int
from sdcore.diffusion.levels import SPACINGS
from sdcore.diffusion.methods import METHODS
from sdcore.diffusion.noise import PREDICTION_TYPES
from sdcore.errors import FileError, UsageError
from sdcore.files.jsonfile import is_list, read_json

FILE_NAME = "scheduler_config.json"
TIMES_LIMIT = 100_000  # of num_train_timesteps; every published model has 1000
# Settings of older versions that no class has any more, at the value where they say nothing new.
_OLD: dict[str, tuple[Any, ...]] = {"predict_epsilon": (True,), "tensor_format": ("pt", "np")}
# Settings of models that are trained otherwise, and would be run as noise prediction.
_FLOW = ("shift", "use_flow_sigmas", "base_shift", "max_shift", "shift_terminal")
# Numbers: the least and the most, with a wide margin around all that is published.
_RANGES: dict[str, tuple[float, float]] = {
    "beta_start": (1e-12, 1),
    "beta_end": (1e-12, 1),
    "clip_sample_range": (1e-3, 1e6),
    "corrector_order": (1, 4),
    "predictor_order": (1, 4),
    "solver_order": (1, 4),
    "dynamic_thresholding_ratio": (0, 1),
    "lambda_min_clipped": (-1e6, 0),
    "original_inference_steps": (1, TIMES_LIMIT),
    "rho": (0.1, 100),
    "sample_max_value": (1e-3, 1e6),
    "sigma_data": (1e-6, 1e6),
    "sigma_min": (1e-9, 1e6),
    "sigma_max": (1e-9, 1e6),
    "steps_offset": (0, TIMES_LIMIT),
    "timestep_scaling": (1e-6, 1e6),
}
_OBJECTS = ("solver_p", "tau_func")  # Python's, which no file holds
_CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": SPACINGS,
    "prediction_type": PREDICTION_TYPES,
}


def read_scheduler_config(folder: Path, pipeline: str = "") -> dict[str, Any]:
    """The settings of a folder's scheduler_config.json, repaired.

    Args:
        pipeline: diffusers' class in the model's model_index.json, on which its repairs depend.

    Raises:
        FileError: a setting is unknown or cannot be, or the class is none of diffusers' schedulers.
    """
    path = folder / FILE_NAME
    config = read_json(path)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in diffusers_schedulers():
        raise FileError(
            f"{path} names the scheduler class {name!r:.80}, which there is not.",
            "It is a class of diffusers.schedulers.",
            f"Set _class_name to one of these: {', '.join(_known_classes())}.",
        )
    import diffusers.schedulers

    own = accepted_settings(getattr(diffusers.schedulers, name))
    known = {**_settings(), **own}
    for key in config:
        _check(path, key, config, known)
    return repaired(config, own, pipeline)


def check_prediction_type(config: Mapping[str, Any]) -> str:
    """What the model predicts. UsageError where that is not supported."""
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise UsageError(
            f"The model predicts {prediction_type!r}, which is not supported.",
            "Its scheduler_config.json says so; the UNets here predict "
            f"{', '.join(PREDICTION_TYPES)}.",
            "Use a Stable Diffusion 1.x, 2.x or XL model.",
        )
    return prediction_type


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether a model is trained with EDM noise (Karras et al. 2022), as Playground 2.5, CosXL."""
    return "sigma_data" in config


def accepted_settings(cls: Any) -> Mapping[str, inspect.Parameter]:
    """The settings of a scheduler class, by name."""
    parameters = inspect.signature(cls.__init__).parameters
    return {name: each for name, each in parameters.items() if name != "self"}


@cache
def diffusers_schedulers() -> frozenset[str]:
    """The names of diffusers' scheduler classes."""
    import diffusers.schedulers

    return frozenset(name for name in dir(diffusers.schedulers) if name.endswith("Scheduler"))


def _known_classes() -> list[str]:
    return sorted({method.cls for method in METHODS.values() if not method.own})


@cache
def _settings() -> dict[str, inspect.Parameter]:
    """Every setting that a class here has: folders keep those of classes before their own."""
    known: dict[str, inspect.Parameter] = {}
    for method in METHODS.values():
        classes = [method.load_class(), *([method.load_edm_class()] if method.edm else [])]
        for cls in classes:
            for name, parameter in accepted_settings(cls).items():
                known.setdefault(name, parameter)
    return known


def _check(
    path: Path, key: str, config: Mapping[str, Any], known: Mapping[str, inspect.Parameter]
) -> None:
    """Refuse a setting that is not known, or has a value that it cannot have."""
    value, class_name = config[key], config["_class_name"]
    if key.startswith("_") or value in _OLD.get(key, ()):
        return
    if key in _FLOW and value:
        raise FileError(
            f"{path} has the setting {key} = {value!r:.80}.",
            f"It is of models trained by flow matching, as {class_name} runs them.",
            "Use a Stable Diffusion 1.x, 2.x or XL model.",
        )
    if key not in known and key not in _FLOW:
        near = get_close_matches(key, known, n=1)
        raise FileError(
            f"{path} has an unknown setting {key!r:.80}.",
            f"No scheduler that is known has it, {class_name} neither.",
            f"Did you mean {near[0]!r}?" if near else "Remove it.",
        )
    if key in _CHOICES and value not in _CHOICES[key]:
        if key == "prediction_type":
            try:
                check_prediction_type({key: value})
            except UsageError as error:
                raise FileError(f"{path}: {error.what}", error.why, error.hint) from error
        choices = ", ".join(_CHOICES[key])
        raise FileError(
            f"{path}: {key} is {value!r:.80}.", f"It is one of: {choices}.", "Correct the file."
        )
    if key in known and not _fits(value, known[key]):
        usual = known[key].default
        raise FileError(
            f"{path}: {key} is {value!r:.80}.",
            f"Its usual value is {usual!r:.80}, and it must be of that kind.",
            "Correct the file.",
        )
    if not _in_range(key, value, config):
        least, most = _RANGES.get(key, (0, 1))
        raise FileError(
            f"{path}: {key} is {value!r:.80}.",
            "A file cannot hold it."
            if key in _OBJECTS
            else f"It lies between {least:g} and {most:g}; of a list there is one for each time.",
            "Copy the file from the original model again.",
        )
    if key == "num_train_timesteps" and as_int(value, 1, TIMES_LIMIT) is None:
        raise FileError(
            f"{path}: {key} is {value!r:.80}.",
            f"It counts the training steps, from 1 to {TIMES_LIMIT}.",
            "Copy the file from the original model again.",
        )


def _in_range(key: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Whether a number, or a list of them, is one that the setting can have."""
    if value is None:
        return True
    if key == "trained_betas":
        times = config.get("num_train_timesteps", 1000)
        return (
            is_list(value)
            and len(value) == times
            and all(as_finite(each, 0, 1) is not None for each in value)
        )
    if key in _OBJECTS:
        return False
    if key not in _RANGES or value == -math.inf:
        return True
    return as_finite(value, *_RANGES[key]) is not None


def _fits(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether a value is of the kind of a setting's default."""
    usual = parameter.default
    choices = get_args(parameter.annotation)
    if get_origin(parameter.annotation) is Literal and value not in choices:
        return False
    if value is None or usual is None or usual is inspect.Parameter.empty:
        return True
    if isinstance(usual, bool):
        return isinstance(value, bool)
    if isinstance(usual, int):
        return as_int(value) is not None
    if isinstance(usual, float):
        return as_finite(value) is not None or value == usual
    return not isinstance(usual, str) or isinstance(value, str)


def repaired(config: Mapping[str, Any], accepted: Collection[str], pipeline: str = "") -> Any:
    """The settings as diffusers' pipelines run them, in place of some that were published wrongly.

    - `clip_sample`, missing or true: DDIM and DDPM were written for pixels and clip x0 to their
      range, but latents are no pixels.
    - `steps_offset` of Stable Diffusion 1.x and 2.x is 1: they visit times 1, 51, ...
    - `skip_prk_steps` of PNDM, in inpainting models.

    Args:
        accepted: the settings of the class that is made from them.
        pipeline: diffusers' class in the model's model_index.json; "" where it has been repaired.
    """
    changes: dict[str, Any] = {"clip_sample": False}
    if pipeline.startswith("StableDiffusion") and "XL" not in pipeline:
        changes["steps_offset"] = 1
        if "Inpaint" in pipeline:
            changes["skip_prk_steps"] = True
    changes = {name: v for name, v in changes.items() if name in accepted or name in config}
    found = {**config, **changes}
    if "_use_default_values" in config:
        found["_use_default_values"] = [
            name for name in config["_use_default_values"] if name not in changes
        ]
    return found
