"""Solvers that diffusers lacks, or has only with an extra package or one seed for a whole batch.

They take noise levels and conversions from diffusers' Euler scheduler, work in its scale,
x = x0 + σ · noise, and draw each image's noise from that image's own generator.

Shapes: B batch, C channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.utils.torch_utils import (
    randn_tensor,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor


@dataclass(frozen=True)
class Point:
    """Where a step is: the clean latents that the UNet sees, the level, and the one it goes to.

    euler: the latents there, by a step of Euler's method.
    """

    euler: Tensor
    x0: Tensor
    start: Tensor
    end: Tensor


class Solver(EulerDiscreteScheduler):
    """What the solvers here share: Euler's levels, and nothing left of an earlier run."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The levels of a run of so many steps."""
        super().set_timesteps(num_inference_steps, device=device)
        self._history: list[Tensor] = []

    def _look(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Point:
        """The present point, and count the step."""
        step = cast(Any, super().step)  # pyright: ignore[reportUnknownMemberType]
        euler, x0 = cast(
            tuple[Tensor, Tensor], step(model_output, timestep, sample, return_dict=False)
        )
        assert self.step_index is not None
        now, levels = self.step_index - 1, self.levels
        return Point(euler, x0, levels[now], levels[now + 1])

    @property
    def levels(self) -> Tensor:
        """The noise levels of the run, with the 0 at its end."""
        return cast(Any, self).sigmas


class _TwoCalls(Solver):
    """A solver that looks again on its way: levels σ0, half way, σ1, ..., 0."""

    order = 2

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        """2n - 1 calls for n steps; the last one goes to σ = 0 at once."""
        super().set_timesteps(num_inference_steps, device=device)
        levels = self.levels.double().numpy()
        middle = self.half_way(levels[:-2], levels[1:-1])
        trained = np.log(((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().double().numpy())
        middle_times = self._sigma_to_t(middle, trained)

        self.sigmas = torch.as_tensor(_interleave(levels[:-1], middle, end=[0.0])).float()
        times = _interleave(self.timesteps.cpu().double().numpy(), middle_times)
        self.timesteps = torch.as_tensor(times).float().to(device)
        self._begun: tuple[Tensor, ...] | None = None

    def half_way(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The level between two where the solver looks again."""
        return np.sqrt(start * end)


class DPMSolverPlusPlusSDEScheduler(_TwoCalls):
    """DPM-Solver++ (2S) for the diffusion SDE, as k-diffusion's `sample_dpmpp_sde` steps it.

    From σ to σ' it first goes to the geometric mean of the two, then makes the whole step with the
    x0 that the UNet sees there. After Lu et al. 2022 (arXiv 2211.01095) and Crowson's stochastic
    form.
    """

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The latents (B, C, h, w) after one call; `generator` is one, or a list of B."""
        assert not return_dict, "the sampling loop reads tuples"
        at = self._look(model_output, timestep, sample)
        if at.end == 0:
            return (at.euler,)
        if self._begun is None:
            start, end = at.start, at.end
            path = _draw(sample, generator) * (start - end).sqrt()
            self._begun = (sample, start, path)
        else:
            # The whole step's noise is one Brownian path; the half step saw its first part.
            sample, start, path = self._begun
            end = at.end
            path = path + _draw(sample, generator) * (at.start - end).sqrt()
            self._begun = None
        noise = path / (start - end).sqrt()
        return (_renoised(sample, at.x0, start, end, noise).to(model_output.dtype),)


class DPMSolverPlusPlus2SAncestralScheduler(_TwoCalls):
    """DPM-Solver++ (2S) with ancestral steps: k-diffusion's `sample_dpmpp_2s_ancestral`."""

    def half_way(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        up, down = _ancestral(torch.as_tensor(start), torch.as_tensor(end))
        del up
        return np.sqrt(start * down.numpy())

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The latents (B, C, h, w) after one call; `generator` is one, or a list of B."""
        assert not return_dict, "the sampling loop reads tuples"
        at = self._look(model_output, timestep, sample)
        if at.end == 0:
            return (at.euler,)
        if self._begun is None:
            self._begun = (sample, at.start)
            share = at.end / at.start
            return ((share * sample + (1 - share) * at.x0).to(model_output.dtype),)
        (sample, start), self._begun = self._begun, None
        return (
            _renoised(sample, at.x0, start, at.end, _draw(sample, generator)).to(
                model_output.dtype
            ),
        )


class DPMSolverPlusPlus3MSDEScheduler(Solver):
    """DPM-Solver++ (3M) for the diffusion SDE: k-diffusion's `sample_dpmpp_3m_sde`."""

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The latents (B, C, h, w) after one call; `generator` is one, or a list of B."""
        assert not return_dict, "the sampling loop reads tuples"
        at = self._look(model_output, timestep, sample)
        if at.end == 0:
            return (at.euler,)
        h = (at.start / at.end).log()
        out = torch.exp(-2 * h) * sample - torch.expm1(-2 * h) * at.x0
        phi_2 = torch.expm1(-2 * h) / (2 * h) + 1
        if len(self._history) == 4:  # x0 and h of the two steps before this one
            x0_1, h_1, x0_2, h_2 = self._history
            r_0, r_1 = h_1 / h, h_2 / h
            slope, before = (at.x0 - x0_1) / r_0, (x0_1 - x0_2) / r_1
            bend = (slope - before) / (r_0 + r_1)
            out = out + phi_2 * (slope + bend * r_0) - (phi_2 / (2 * h) - 0.5) * bend
        elif self._history:
            x0_1, h_1 = self._history
            out = out + phi_2 * (at.x0 - x0_1) / (h_1 / h)
        self._history = [at.x0, h, *self._history[:2]]
        out = out + _draw(sample, generator) * at.end * (-torch.expm1(-2 * h)).sqrt()
        return (out.to(model_output.dtype),)


class _Derivatives(Solver):
    """A deterministic solver that remembers up to four derivatives (x - x0) / σ."""

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The latents (B, C, h, w) after one call."""
        assert not return_dict, "the sampling loop reads tuples"
        at = self._look(model_output, timestep, sample)
        self._history = [(sample - at.x0) / at.start, *self._history[:3]]
        weights = self.weights(len(self._history))
        change = sum(w * d for w, d in zip(weights, self._history, strict=True))
        return ((sample + change).to(model_output.dtype),)

    def weights(self, order: int) -> list[float]:
        """How far the latents follow each derivative, the latest first."""
        raise NotImplementedError


class LMSScheduler(_Derivatives):
    """Linear multistep: the polynomial through the derivatives, integrated (Katherine Crowson).

    diffusers' class does the same by numerical quadrature, for which it needs SciPy.
    """

    def weights(self, order: int) -> list[float]:
        assert self.step_index is not None
        now = self.step_index - 1
        levels = self.levels.double().numpy()
        known = [float(levels[now - i]) for i in range(order)]
        found: list[float] = []
        for i, level in enumerate(known):
            others = known[:i] + known[i + 1 :]
            basis = np.poly1d(others, r=True) / np.prod([level - other for other in others])
            whole = np.polyint(basis)
            found.append(float(whole(levels[now + 1]) - whole(levels[now])))
        return found


_ADAMS = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


class IPNDMScheduler(_Derivatives):
    """Improved pseudo numerical: Adams-Bashforth with the weights of equal distances, in σ.

    Zhang & Chen 2022 (arXiv 2204.13902); ComfyUI's `sample_ipndm`.
    """

    def weights(self, order: int) -> list[float]:
        assert self.step_index is not None
        start, end = (float(self.levels[self.step_index + i]) for i in (-1, 0))
        # The last step is the clean latents themselves.
        adams = _ADAMS[order - 1] if end else [1.0] + [0.0] * (order - 1)
        return [(end - start) * share for share in adams]


class EulerCFGPlusPlusScheduler(Solver):
    """Euler with CFG++: guided clean latents, and the noise of the unconditional prediction.

    Chung et al. 2024 (arXiv 2406.08070); ComfyUI's `sample_euler_cfg_pp`.
    """

    ancestral = False

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        unconditional: Tensor,
        generator: Any = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The latents (B, C, h, w) after one call; `generator` is one, or a list of B."""
        assert not return_dict, "the sampling loop reads tuples"
        at = self._look(model_output, timestep, sample)
        noise = (sample - self._clean(unconditional, sample, at.start)) / at.start
        up, end = _ancestral(at.start, at.end) if self.ancestral else (None, at.end)
        out = at.x0 + noise * end
        if up is not None and at.end > 0:
            out = out + _draw(sample, generator) * up
        return (out.to(model_output.dtype),)

    def _clean(self, prediction: Tensor, sample: Tensor, sigma: Tensor) -> Tensor:
        kind = cast(Any, self.config).prediction_type
        if kind == "epsilon":
            return sample - sigma * prediction
        if kind == "v_prediction":
            return sample / (sigma**2 + 1) - prediction * sigma / (sigma**2 + 1).sqrt()
        return prediction


class EulerAncestralCFGPlusPlusScheduler(EulerCFGPlusPlusScheduler):
    """The same with an ancestral step: ComfyUI's `sample_euler_ancestral_cfg_pp`."""

    ancestral = True


def _draw(like: Tensor, generator: Any) -> Tensor:
    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=torch.float32)


def _ancestral(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """How much noise a step adds, and the level that it goes to before."""
    up = (end**2 * (start**2 - end**2) / start**2).sqrt().clamp(max=end)
    return up, (end**2 - up**2).sqrt()


def _renoised(sample: Tensor, x0: Tensor, start: Tensor, end: Tensor, noise: Tensor) -> Tensor:
    """The exact step from σ=start to σ=end for constant x0, with the SDE's amount of noise."""
    up, down = _ancestral(start, end)
    return down / start * sample + (1 - down / start) * x0 + up * noise


def _interleave(outer: np.ndarray, middle: np.ndarray, end: Any = ()) -> np.ndarray:
    assert len(outer) == len(middle) + 1
    both = np.empty(len(outer) + len(middle))
    both[0::2], both[1::2] = outer, middle
    return np.concatenate([both, end])
