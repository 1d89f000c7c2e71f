"""What a diffusion model is trained on: noise at random times, and the error of the UNet's answer.

Shapes: B images, C channels, h w latent grid, S training times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcore.diffusion.noise import (
    Time,
    add_noise,
    alphas_cumprod_from_config,
    loss_weight,
    prediction_target,
)
from sdcore.training.state import generator


@dataclass(frozen=True)
class Noised:
    """Latents with noise on them, and what a UNet should answer.

    Attributes:
        latents: noisy, (B, C, h, w).
        times: (B,), or one whole number for all.
        target: (B, C, h, w).
    """

    latents: Tensor
    times: Time
    target: Tensor


class Objective:
    """The noise process of a model, and how the errors at its times are weighted.

    Args:
        scheduler: the settings of a diffusers scheduler_config.json: betas and prediction type.
        weighting: of the times, see `diffusion.noise.loss_weight`.
        time_power: training times are S u^power, u uniform: below 1 noisy ones come more often.
        device: where latents will be.
    """

    def __init__(
        self,
        scheduler: Mapping[str, Any],
        *,
        weighting: str = "plain",
        time_power: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.alphas_cumprod = alphas_cumprod_from_config(scheduler).to(device)  # (S,)
        self.prediction_type: str = scheduler.get("prediction_type", "epsilon")
        self.weighting, self.time_power = weighting, time_power

    def draw(self, latents: Tensor, seed: int, step: int) -> Noised:
        """Noise and times for a training step: row i is a function of (seed, step, i) alone."""
        noise = draw_noise(latents.shape, seed, step).to(latents.device)
        times = draw_times(len(latents), len(self.alphas_cumprod), seed, step, self.time_power)
        return self.add_noise(latents, noise, times.to(latents.device))

    def add_noise(self, latents: Tensor, noise: Tensor, times: Time) -> Noised:
        """Clean latents and noise (B, C, h, w), mixed as at these times."""
        noisy = add_noise(latents, noise, times, self.alphas_cumprod)
        kind = self.prediction_type
        target = prediction_target(kind, latents, noise, times, self.alphas_cumprod)
        return Noised(noisy, times, target)

    def errors(self, answer: Tensor, noised: Noised) -> Tensor:
        """Mean squared error of each image, not weighted, float32 (B,)."""
        return (answer.float() - noised.target).square().mean((1, 2, 3))

    def loss(self, answer: Tensor, noised: Noised) -> Tensor:
        """The weighted mean of the errors, a scalar."""
        kind, times = self.prediction_type, noised.times
        weights = loss_weight(kind, times, self.alphas_cumprod, self.weighting)
        return (weights * self.errors(answer, noised)).mean()


def draw_noise(shape: torch.Size, seed: int, step: int) -> Tensor:
    """Noise (B, C, h, w) on the CPU, each row a function of (seed, step, row)."""
    draws = [generator(seed, "noise", step, row) for row in range(shape[0])]
    return torch.stack([torch.randn(shape[1:], generator=draw) for draw in draws])


def draw_times(count: int, times: int, seed: int, step: int, power: float = 1.0) -> Tensor:
    """`count` training times of 0 to `times` - 1, on the CPU.

    They are spread evenly over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1),
    which makes the loss of a small batch less noisy.
    """
    start = torch.rand((), generator=generator(seed, "time", step, 0))
    even = (start + torch.arange(count) / count) % 1
    return (even**power * times).long().clamp(max=times - 1)
