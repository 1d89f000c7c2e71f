"""What a diffusion model is trained on: noise at random times, and the error of the UNet's answer.

Shapes: B images, C channels, h w latent grid, S training times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sdcore.diffusion.noise import (
    Time,
    add_noise,
    alphas_cumprod_from_config,
    loss_weight,
    prediction_target,
)
from sdcore.errors import UsageError
from sdcore.training.settings import Settings
from sdcore.training.state import generator


class NoiseSettings(Settings):
    """How latents are made noisy, and how errors at each time count.

    Attributes:
        weighting, gamma: see `noise.loss_weight`; None is the weighting's own.
        time_power: below 1, noisy times come more often.
        first_time, last_time: times are drawn from these; None is the noisiest.
        offset: each channel's mean is moved too, so that dark and bright pictures are learned
            (Guttenberg 2023, https://www.crosslabs.org/blog/diffusion-with-offset-noise).
        multires: noise of coarser grids is added, each times this power of the level (Whitaker
            2023, https://wandb.ai/johnowhitaker/multires_noise).
        perturbation: more noise in the input than in the target, so that a model forgives its own
            mistakes (Ning et al. 2023, arXiv:2301.11706).
        zero_terminal_snr: the last time is pure noise (Lin et al. 2023, arXiv:2305.08891); not for
            a model that predicts epsilon.
    """

    weighting: Literal["plain", "min_snr", "soft_min_snr", "p2"] = "plain"
    gamma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    time_power: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    first_time: int = Field(default=0, ge=0)
    last_time: int | None = Field(default=None, ge=0)
    offset: float = Field(default=0.0, ge=0, le=1)
    multires: float = Field(default=0.0, ge=0, lt=1)
    perturbation: float = Field(default=0.0, ge=0, le=1)
    zero_terminal_snr: bool = False


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
        settings: see `NoiseSettings`.
        device: where latents will be.

    Raises:
        UsageError: a setting that this model's prediction type or times do not have.
    """

    def __init__(
        self,
        scheduler: Mapping[str, Any],
        settings: NoiseSettings | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings or NoiseSettings()
        self.prediction_type: str = scheduler.get("prediction_type", "epsilon")
        if self.settings.zero_terminal_snr:
            scheduler = {**scheduler, "rescale_betas_zero_snr": True}
            _check_zero_snr(self.prediction_type)
        self.alphas_cumprod = alphas_cumprod_from_config(scheduler).to(device)  # (S,)
        self.first = self.settings.first_time
        last = self.settings.last_time
        self.last = len(self.alphas_cumprod) - 1 if last is None else last
        if not self.first <= self.last < len(self.alphas_cumprod):
            raise UsageError(
                f"No time lies between {self.first} and {self.last}.",
                f"The model has the times 0 to {len(self.alphas_cumprod) - 1}.",
                "Use a noise.first_time below noise.last_time.",
            )

    def draw(self, latents: Tensor, seed: int, step: int) -> Noised:
        """Noise and times for a batch: row i is a function of (seed, step, i) alone."""
        how = self.settings
        noise = draw_noise(latents.shape, seed, step)
        if how.offset:
            noise = (
                noise + how.offset * _draw(noise.shape[:2], seed, "offset", step)[..., None, None]
            )
        if how.multires:
            noise = _with_coarser_noise(noise, how.multires, seed, step)
        noise = noise.to(latents.device)
        count = self.last - self.first + 1
        times = self.first + draw_times(len(latents), count, seed, step, how.time_power)
        noised = self.add_noise(latents, noise, times.to(latents.device))
        if how.perturbation:
            more = how.perturbation * _draw(latents.shape, seed, "perturbation", step)
            noisier = self.add_noise(latents, noise + more.to(latents.device), noised.times)
            noised = replace(noised, latents=noisier.latents)
        return noised

    def add_noise(self, latents: Tensor, noise: Tensor, times: Time) -> Noised:
        """Clean latents and noise (B, C, h, w), mixed as at these times."""
        noisy = add_noise(latents, noise, times, self.alphas_cumprod)
        kind = self.prediction_type
        target = prediction_target(kind, latents, noise, times, self.alphas_cumprod)
        return Noised(noisy, times, target)

    def errors(self, answer: Tensor, noised: Noised, masks: Tensor | None = None) -> Tensor:
        """Mean squared error of each image, not weighted, float32 (B,).

        Args:
            masks: (B, 1, h, w), how much each place counts; the mean is over what counts, so that a
                small subject is learned as fast as a large one. None counts all.
        """
        squares = (answer.float() - noised.target).square()
        if masks is None:
            return squares.mean((1, 2, 3))
        places = masks.expand_as(squares)
        return (squares * places).sum((1, 2, 3)) / places.sum((1, 2, 3)).clamp_min(1e-6)

    def weighted_errors(
        self, answer: Tensor, noised: Noised, masks: Tensor | None = None
    ) -> Tensor:
        """The errors, times the weights of their times: float32 (B,)."""
        kind, how = self.prediction_type, self.settings
        weights = loss_weight(kind, noised.times, self.alphas_cumprod, how.weighting, how.gamma)
        return weights * self.errors(answer, noised, masks)

    def loss(self, answer: Tensor, noised: Noised) -> Tensor:
        """The weighted mean of the errors, a scalar."""
        return self.weighted_errors(answer, noised).mean()


def draw_noise(shape: torch.Size, seed: int, step: int) -> Tensor:
    """Noise (B, C, h, w) on the CPU, each row a function of (seed, step, row)."""
    return _draw(shape, seed, "noise", step)


def draw_times(count: int, times: int, seed: int, step: int, power: float = 1.0) -> Tensor:
    """`count` training times of 0 to `times` - 1, on the CPU.

    They are spread evenly over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1),
    which makes the loss of a small batch less noisy.
    """
    start = torch.rand((), generator=generator(seed, "time", step, 0))
    even = (start + torch.arange(count) / count) % 1
    return (even**power * times).long().clamp(max=times - 1)


def _draw(shape: torch.Size, seed: int, purpose: str, step: int) -> Tensor:
    draws = [generator(seed, purpose, step, row) for row in range(shape[0])]
    return torch.stack([torch.randn(shape[1:], generator=draw) for draw in draws])


def _with_coarser_noise(noise: Tensor, discount: float, seed: int, step: int) -> Tensor:
    """Noise (B, C, h, w) with that of half the grid, a quarter and so on; variance 1 again."""
    total, (height, width), level = noise, noise.shape[2:], 0
    while min(height, width) > 1:
        height, width, level = (height + 1) // 2, (width + 1) // 2, level + 1
        shape = torch.Size((*noise.shape[:2], height, width))
        coarse = _draw(shape, seed, f"noise of level {level}", step)
        total = total + discount**level * F.interpolate(coarse, noise.shape[2:], mode="bilinear")
    return total / total.std((1, 2, 3), keepdim=True)


def _check_zero_snr(prediction_type: str) -> None:
    if prediction_type == "epsilon":
        raise UsageError(
            "The setting noise.zero_terminal_snr cannot be used with this model.",
            "It predicts the noise, of which pure noise says nothing about the picture.",
            "Leave it out, or train a model that predicts v.",
        )
