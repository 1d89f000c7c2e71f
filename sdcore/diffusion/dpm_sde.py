"""DPM++ SDE: second-order, stochastic, two calls of the UNet a step.

diffusers' class of this sampler draws its noise with an extra package and from one seed for the
whole batch. This one takes the noise levels and conversions from diffusers' Euler scheduler and
draws each image's noise from that image's own generator.

Shapes: B batch, C channels, h w latent grid.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.utils.torch_utils import (
    randn_tensor,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor


class DPMSolverPlusPlusSDEScheduler(EulerDiscreteScheduler):
    """DPM-Solver++ (2S) for the diffusion SDE, as k-diffusion's `sample_dpmpp_sde` steps it.

    Latents are in the variance-exploding scale, x = x0 + σ · noise, as with Euler. From σ to σ'
    it first goes to the geometric mean of the two, then makes the whole step with the x0 that the
    UNet sees there. After Lu et al. 2022 (arXiv 2211.01095) and Crowson's stochastic form.
    """

    order = 2

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Noise levels σ0, √(σ0 σ1), σ1, √(σ1 σ2), ..., σn-1, 0: 2n - 1 calls for n steps."""
        super().set_timesteps(num_inference_steps, device=device)
        levels = self.sigmas.double().numpy()
        middle = np.sqrt(levels[:-2] * levels[1:-1])
        trained = np.log(((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().double().numpy())
        middle_times = self._sigma_to_t(middle, trained)

        self.sigmas = torch.as_tensor(_interleave(levels[:-1], middle, end=[0.0])).float()
        times = _interleave(self.timesteps.cpu().double().numpy(), middle_times)
        self.timesteps = torch.as_tensor(times).float().to(device)
        self._half_way: tuple[Tensor, Tensor, Tensor] | None = None

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
        step = cast(Any, super().step)  # pyright: ignore[reportUnknownMemberType]
        euler, x0 = cast(
            tuple[Tensor, Tensor], step(model_output, timestep, sample, return_dict=False)
        )
        assert self.step_index is not None
        now = self.step_index - 1  # Euler's step has counted this call
        if self.sigmas[now + 1] == 0:
            return (euler,)  # to σ = 0 in one Euler step, which is x0 itself

        def draw(size: Tensor) -> Tensor:
            noise = randn_tensor(
                sample.shape, generator=generator, device=sample.device, dtype=torch.float32
            )
            return noise * size.sqrt()

        if self._half_way is None:
            start, end = self.sigmas[now], self.sigmas[now + 1]
            path = draw(start - end)
            self._half_way = (sample, start, path)
        else:
            # The whole step's noise is one Brownian path; the half step saw its first part.
            sample, start, path = self._half_way
            end = self.sigmas[now + 1]
            path = path + draw(self.sigmas[now] - end)
            self._half_way = None
        noise = path / (start - end).sqrt()
        return (_solve(sample, x0, start, end, noise).to(model_output.dtype),)


def _solve(sample: Tensor, x0: Tensor, start: Tensor, end: Tensor, noise: Tensor) -> Tensor:
    """The exact step from σ=start to σ=end for constant x0, with the SDE's amount of noise."""
    up = (end**2 * (start**2 - end**2) / start**2).sqrt().clamp(max=end)
    down = (end**2 - up**2).sqrt()
    return down / start * sample + (1 - down / start) * x0 + up * noise


def _interleave(outer: np.ndarray, middle: np.ndarray, end: Any = ()) -> np.ndarray:
    assert len(outer) == len(middle) + 1
    both = np.empty(len(outer) + len(middle))
    both[0::2], both[1::2] = outer, middle
    return np.concatenate([both, end])
