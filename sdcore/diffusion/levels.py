"""Schedules: which noise levels a run of n steps visits, by the formulas that were published.

σ is the noise beside clean latents of the scale 1: σ(t) = √(1 - ᾱ(t)) / √ᾱ(t). Every schedule gives
its levels from the noisiest on; a solver goes on from the last of them to σ = 0.

Where two programs compute different levels under one name, the name alone is the published formula
and the other is the name with "a1111", as Stable Diffusion web UI computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RHO = 7.0  # Karras et al. 2022, table 1
_BETA = 0.6  # both parameters, Lee et al. 2024
_PURE_NOISE = 2**-24
_LEAST = 0.029  # the last of the published levels of align your steps, which diffusers leaves out

Levels = Sequence[float]


@dataclass(frozen=True)
class Trained:
    """The noise levels that a model was trained with.

    Attributes:
        sigmas: (S,) float64, one for each training step, the least first.
        sdxl: whether it is of SDXL's kind, for which align your steps has another table.
    """

    sigmas: np.ndarray
    sdxl: bool = False

    @classmethod
    def of(cls, alphas_cumprod: Any, sdxl: bool = False) -> Trained:
        """From ᾱ (S,); pure noise, where ᾱ is 0, has the level that diffusers gives it."""
        alphas = np.maximum(alphas_cumprod.double().cpu().numpy(), _PURE_NOISE)
        return cls(np.sqrt((1 - alphas) / alphas), sdxl)

    @property
    def least(self) -> float:
        return float(self.sigmas[0])

    @property
    def most(self) -> float:
        return float(self.sigmas[-1])

    def at(self, times: np.ndarray) -> Levels:
        """The levels at times, also between two training steps: linear in log σ, as k-diffusion."""
        steps, logarithms = np.arange(len(self.sigmas)), np.log(self.sigmas)
        return np.exp(np.interp(np.asarray(times, np.float64), steps, logarithms)).tolist()

    def times(self, levels: Levels) -> np.ndarray:
        """The times of levels, the inverse of `at`."""
        return np.interp(np.log(levels), np.log(self.sigmas), np.arange(len(self.sigmas)))


def normal(trained: Trained, n: int) -> Levels:
    """Equal distances in time, both ends visited: k-diffusion's `get_sigmas`."""
    return trained.at(np.linspace(len(trained.sigmas) - 1, 0, n))


def sgm_uniform(trained: Trained, n: int) -> Levels:
    """Equal distances in time, the last of them to σ = 0: of Stability AI's generative-models."""
    return trained.at(np.linspace(len(trained.sigmas) - 1, 0, n + 1)[:-1])


def simple(trained: Trained, n: int) -> Levels:
    """Every (S / n)-th training step from the noisiest on: ComfyUI."""
    distance = len(trained.sigmas) / n
    return [float(trained.sigmas[-(1 + int(i * distance))]) for i in range(n)]


def ddim_uniform(trained: Trained, n: int) -> Levels:
    """Training steps 1, 1 + S // n, ...: of the first DDIM code, one level more where S / n is no
    whole number."""
    distance = max(len(trained.sigmas) // n, 1)
    return [float(sigma) for sigma in trained.sigmas[1::distance][::-1]]


def karras(trained: Trained, n: int) -> Levels:
    """Equal distances in σ^(1/7): Karras et al. 2022 (arXiv 2206.00364), equation 5."""
    most, least = trained.most ** (1 / _RHO), trained.least ** (1 / _RHO)
    return ((most + np.linspace(0, 1, n) * (least - most)) ** _RHO).tolist()


def exponential(trained: Trained, n: int) -> Levels:
    """Equal distances in log σ; polyexponential with the exponent 1, which is everybody's."""
    return np.exp(np.linspace(math.log(trained.most), math.log(trained.least), n)).tolist()


def beta(trained: Trained, n: int) -> Levels:
    """Times that follow a beta distribution: Lee et al. 2024 (arXiv 2407.12173).

    Times that fall on one training step are visited once.
    """
    times = np.rint(_beta_quantile(1 - np.linspace(0, 1, n, endpoint=False)) * _last(trained))
    return [float(trained.sigmas[int(time)]) for time in dict.fromkeys(times.tolist())]


def beta_a1111(trained: Trained, n: int) -> Levels:
    """Levels, not times, that follow a beta distribution: the web UI and diffusers."""
    share = _beta_quantile(1 - np.linspace(0, 1, n))
    return (trained.least + share * (trained.most - trained.least)).tolist()


def kl_optimal(trained: Trained, n: int) -> Levels:
    """Equal distances in arctan σ: Sabour et al. 2024 (arXiv 2404.14507), theorem 3.1."""
    share = np.arange(n) / max(n - 1, 1)
    return np.tan(share * math.atan(trained.least) + (1 - share) * math.atan(trained.most)).tolist()


def linear_quadratic(trained: Trained, n: int) -> Levels:
    """The first half within 2.5 % of the largest level, then a parabola: Genmo's Mochi."""
    threshold, linear = 0.025, n // 2
    if n == 1:
        return [trained.most]
    rest, excess = n - linear, linear - threshold * n
    a = excess / (linear * rest**2)
    b = threshold / linear - 2 * excess / rest**2
    i = np.arange(n)
    passed = np.where(i < linear, i * threshold / linear, a * i**2 + b * i + a * linear**2)
    return ((1 - passed) * trained.most).tolist()


def align_your_steps(trained: Trained, n: int) -> Levels:
    """The published table of ten steps, log-linear between them: Sabour et al. 2024."""
    return _log_linear([*_published(trained), _LEAST], n + 1)[:-1]


def align_your_steps_a1111(trained: Trained, n: int) -> Levels:
    """The same table with its least level as a step of its own."""
    return _log_linear([*_published(trained), _LEAST], n)


def _published(trained: Trained) -> list[float]:
    from diffusers.schedulers.scheduling_utils import AysSchedules  # takes a while to load

    family = "StableDiffusionXL" if trained.sdxl else "StableDiffusion"
    return [float(sigma) for sigma in AysSchedules[f"{family}Sigmas"][:-1]]


def _log_linear(table: Levels, n: int) -> list[float]:
    places = np.linspace(0, len(table) - 1, n)
    return np.exp(np.interp(places, np.arange(len(table)), np.log(table))).tolist()


def _last(trained: Trained) -> int:
    return len(trained.sigmas) - 1


def _beta_quantile(shares: np.ndarray) -> np.ndarray:
    """Where the beta distribution with both parameters 0.6 has passed these shares, 0 to 1."""
    low, high = np.zeros_like(shares), np.ones_like(shares)
    for _ in range(64):
        middle = (low + high) / 2
        below = _beta_share(middle) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.round(high, 12)  # one half is one half, whose time is rounded up


def _beta_share(x: np.ndarray) -> np.ndarray:
    """The regularised incomplete beta function I_x(a, a), by its series about 0."""
    a = _BETA
    near = np.minimum(x, 1 - x)  # I_x + I_(1-x) = 1, and the series is quick up to one half
    total, term = np.zeros_like(near), np.ones_like(near)
    for i in range(60):
        total += term / (a + i)
        term = term * near * (i + 1 - a) / (i + 1)
    share = near**a * total * math.gamma(2 * a) / math.gamma(a) ** 2
    return np.where(x <= 0.5, share, 1 - share)


SCHEDULES: dict[str, Callable[[Trained, int], Levels]] = {
    "normal": normal,
    "karras": karras,
    "exponential": exponential,
    "sgm uniform": sgm_uniform,
    "simple": simple,
    "ddim uniform": ddim_uniform,
    "beta": beta,
    "beta a1111": beta_a1111,
    "linear quadratic": linear_quadratic,
    "kl optimal": kl_optimal,
    "align your steps": align_your_steps,
    "align your steps a1111": align_your_steps_a1111,
}
# diffusers' rules for spreading the steps over the training steps, which a model's settings name.
SPACINGS = ("leading", "trailing", "linspace")
