"""DDIM over any training steps, and with CFG++; diffusers' own takes equal distances alone.

Shapes: B batch, C channels, h w latent grid.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from sdcore.diffusion.noise import prediction_to_x0

# The web UI divides its guidance scale by this for CFG++, whose own goes from 0 to 1.
_CFG_PLUS_PLUS = 12.5


class DDIMTimesScheduler(DDIMScheduler):
    """DDIM (Song et al. 2020, arXiv 2010.02502, equation 12, η = 0) from each time to the next."""

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The latents (B, C, h, w) after one call."""
        assert not return_dict, "the sampling loop reads tuples"
        x0, noise = self._split(model_output, timestep, sample)
        return (self._join(x0, noise, timestep).to(model_output.dtype),)

    def _split(self, prediction: Tensor, timestep: Any, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that a prediction stands for."""
        time, kind = int(timestep), cast(Any, self.config).prediction_type
        x0 = prediction_to_x0(kind, prediction, sample, time, self.alphas_cumprod)
        if kind == "epsilon":
            return x0, prediction
        alpha = self.alphas_cumprod[time]
        return x0, (sample - alpha.sqrt() * x0) / (1 - alpha).sqrt()

    def _join(self, x0: Tensor, noise: Tensor, timestep: Any) -> Tensor:
        following = self.timesteps[self.timesteps < int(timestep)]
        alpha = (
            self.alphas_cumprod[int(following[0])] if len(following) else self.final_alpha_cumprod
        )
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


class DDIMCFGPlusPlusScheduler(DDIMTimesScheduler):
    """DDIM with CFG++: guided clean latents, and the noise of the unconditional prediction.

    Chung et al. 2024 (arXiv 2406.08070), algorithm 2. Its guidance goes from 0 to 1; as in Stable
    Diffusion web UI it is the run's guidance scale divided by 12.5.
    """

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        unconditional: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The latents (B, C, h, w) after one call."""
        assert not return_dict, "the sampling loop reads tuples"
        guided = torch.lerp(unconditional, model_output, 1 / _CFG_PLUS_PLUS)
        x0, _ = self._split(guided, timestep, sample)
        _, noise = self._split(unconditional, timestep, sample)
        return (self._join(x0, noise, timestep).to(model_output.dtype),)
