"""Models trained with EDM noise (Karras et al. 2022, arXiv:2206.00364) in single files.

| tensors in the file                  | as                  | what they hold                      |
|--------------------------------------|---------------------|-------------------------------------|
| `edm_mean`, `edm_std`                | Playground 2.5      | mean and spread of each channel     |
| `edm_vpred.sigma_max`, `…sigma_min`  | CosXL               | the largest and least noise level   |

The numbers that a file does not hold are those with which the two models were published: in
diffusers' reader of single files for Playground, in its example and in ComfyUI for CosXL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcore.checks import as_finite
from sdcore.errors import FileError
from sdcore.files.header import WeightFile

MEAN, STD = "edm_mean", "edm_std"
LARGEST, LEAST = "edm_vpred.sigma_max", "edm_vpred.sigma_min"
MARKS = (MEAN, STD, LARGEST, LEAST)
_COMMON = {"num_train_timesteps": 1000, "rho": 7.0}
_PLAYGROUND = {
    **_COMMON,
    **{"prediction_type": "epsilon", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0},
}
_COSXL = {
    **_COMMON,
    **{"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_min": 0.002},
    **{"sigma_max": 120.0, "sigma_schedule": "exponential"},
}
_SCALE = 0.5  # of Playground's latents


@dataclass(frozen=True)
class Edm:
    """What a file says of its EDM noise.

    Attributes:
        solver: with which it was published, see `sdcore.diffusion.schedulers.make_scheduler`.
        scheduler: settings for it.
        vae: settings of the autoencoder that take the place of SDXL's.
    """

    solver: str
    scheduler: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=dict[str, Any])


def prediction_of(file: WeightFile) -> tuple[str, str] | None:
    """What such a model predicts, and what says so; None where it is trained otherwise."""
    if LARGEST in file.shapes:
        return str(_COSXL["prediction_type"]), f"the marker tensor {LARGEST}"
    if MEAN in file.shapes or STD in file.shapes:
        return str(_PLAYGROUND["prediction_type"]), f"the marker tensors {MEAN} and {STD}"
    return None


def read_edm(file: WeightFile) -> Edm | None:
    """What the marks of a file say; None where it has none.

    Raises:
        FileError: one of two is missing, or their numbers cannot be.
    """
    if LARGEST in file.shapes:
        largest = _numbers(file, LARGEST, 1, 1e-6)[0]
        least = _numbers(file, LEAST, 1, 1e-9)[0] if LEAST in file.shapes else _COSXL["sigma_min"]
        return Edm("euler", {**_COSXL, "sigma_max": largest, "sigma_min": least})
    if MEAN not in file.shapes and STD not in file.shapes:
        return None
    if lacking := [name for name in (MEAN, STD) if name not in file.shapes]:
        why = f"It was trained with EDM noise as Playground 2.5, and lacks {lacking[0]}."
        raise FileError(f"{file.path} is not whole.", why, "Take it from where it was published.")
    vae = {
        "scaling_factor": _SCALE,
        "latents_mean": _numbers(file, MEAN, None, -1e6),
        "latents_std": _numbers(file, STD, None, 1e-6),
    }
    return Edm("dpm++ 2m", _PLAYGROUND, vae)


def edm_marks(
    scheduler: Mapping[str, Any], vae: Mapping[str, Any]
) -> dict[str, list[float]] | None:
    """The marks for a model with these settings; None where files cannot say them."""

    def fits(published: Mapping[str, Any], *told: str) -> bool:
        usual = {"sigma_schedule": "karras", **published}
        found = {name: scheduler.get(name, value) for name, value in usual.items()}
        return all(found[name] == value for name, value in usual.items() if name not in told)

    of_latents = vae.get("latents_mean"), vae.get("latents_std")
    if fits(_COSXL, "sigma_max", "sigma_min") and None in of_latents:
        return {LARGEST: [scheduler["sigma_max"]], LEAST: [scheduler["sigma_min"]]}
    if fits(_PLAYGROUND) and None not in of_latents and vae["scaling_factor"] == _SCALE:
        return {MEAN: list(vae["latents_mean"]), STD: list(vae["latents_std"])}
    return None


def _numbers(file: WeightFile, name: str, count: int | None, least: float) -> list[float]:
    """The numbers of a mark. Args: count: how many there must be; None is any."""
    from sdcore.files.weights import read_tensor  # loads torch, which headers do not need

    found = [float(number) for number in read_tensor(file, name).double().flatten()]
    good = all(as_finite(number, least, 1e6) is not None for number in found)
    if not good or not found or count not in (None, len(found)):
        why = f"{name} is {found[:8]}; it must be {count or 'a few'} finite numbers."
        raise FileError(f"{file.path} cannot be run.", why, "Take it from where it was published.")
    return found
