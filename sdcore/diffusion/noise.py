"""The forward process, what the UNet is taught to predict, and how each time step is weighted.

    noisy = √ᾱ(t) · x0 + √(1 - ᾱ(t)) · noise            (Ho et al. 2020, arXiv 2006.11239)

Everything is a plain function of `alphas_cumprod` (ᾱ, shape (S,), one value per training step).
Prediction types carry the names of diffusers' scheduler_config.json:

    "epsilon"       the noise                            (Ho et al. 2020)
    "v_prediction"  √ᾱ · noise - √(1 - ᾱ) · x0           (Salimans & Ho 2022, arXiv 2202.00512)
    "sample"        x0, the clean latents

Shapes: B batch, C channels, h w latent grid, S training steps. `time` is a whole number or an
integer tensor () or (B,), a position in `alphas_cumprod`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdcore.errors import UsageError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
WEIGHTINGS = ("plain", "min_snr", "soft_min_snr", "p2")

Time = Tensor | int


def make_alphas_cumprod(
    schedule: str = "scaled_linear",
    steps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """ᾱ for every training step, float32 (S,).

    `schedule` is "scaled_linear" (Stable Diffusion), "linear" (DDPM) or "squaredcos_cap_v2"
    (Nichol & Dhariwal 2021). `zero_terminal_snr` makes the last step pure noise
    (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    """
    if steps < 1:
        raise UsageError(
            f"A noise schedule cannot have {steps} steps.",
            "It needs one value per training step.",
            "Use at least 1; Stable Diffusion uses 1000.",
        )
    if schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
    elif schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)
    elif schedule == "squaredcos_cap_v2":
        betas = _cosine_betas(steps)
    else:
        raise UsageError(
            f"Unknown noise schedule {schedule!r}.",
            "It is not one of those that Stable Diffusion models are trained with.",
            "Use scaled_linear, linear or squaredcos_cap_v2.",
        )
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    return _rescale_to_zero_terminal_snr(alphas_cumprod) if zero_terminal_snr else alphas_cumprod


def alphas_cumprod_from_config(config: Mapping[str, Any]) -> Tensor:
    """ᾱ (S,) of a diffusers scheduler_config.json. UsageError where there is none, as for EDM."""
    if "sigma_data" in config:
        raise UsageError(
            "The model has no training steps.",
            "It was trained with EDM noise (Karras et al. 2022), at levels between two steps too.",
            "Use a Stable Diffusion 1.x, 2.x or XL model.",
        )
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        return torch.cumprod(1.0 - betas, dim=0)
    return make_alphas_cumprod(
        config.get("beta_schedule", "linear"),
        config.get("num_train_timesteps", 1000),
        config.get("beta_start", 0.0001),
        config.get("beta_end", 0.02),
        bool(config.get("rescale_betas_zero_snr", False)),
    )


def _cosine_betas(steps: int) -> Tensor:
    def alpha_bar(position: float) -> float:
        return math.cos((position + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
    return torch.tensor([min(beta, 0.999) for beta in betas], dtype=torch.float32)


def _rescale_to_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2


def _coefficients(alphas_cumprod: Tensor, time: Time, like: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ(t) and √(1 - ᾱ(t)), shaped (B, 1, 1, 1) to multiply `like` (B, C, h, w)."""
    alpha = _at(alphas_cumprod, time, like.device)
    alpha = alpha.reshape(-1, *(1,) * (like.ndim - 1))
    # The roots are taken in full precision: 1 - ᾱ cancels in half precision at early steps.
    return alpha.sqrt().to(like.dtype), (1 - alpha).sqrt().to(like.dtype)


def _at(alphas_cumprod: Tensor, time: Time, device: torch.device | None = None) -> Tensor:
    index = torch.as_tensor(time)
    if index.is_floating_point():
        raise UsageError(
            "`time` is not a whole number.",
            "Training steps are positions in alphas_cumprod.",
            "Pass an integer, or an integer tensor of shape (B,).",
        )
    values = alphas_cumprod[index.to(alphas_cumprod.device)]
    return values if device is None else values.to(device)


def _unknown_prediction_type(name: str) -> UsageError:
    return UsageError(
        f"Unknown prediction type {name!r}.",
        "A UNet predicts the noise, v or the clean latents.",
        f"Use one of: {', '.join(PREDICTION_TYPES)}.",
    )


def add_noise(x0: Tensor, noise: Tensor, time: Time, alphas_cumprod: Tensor) -> Tensor:
    """The noisy latents q(x_t | x0) for given noise: (B, C, h, w) like `x0`."""
    signal, sigma = _coefficients(alphas_cumprod, time, x0)
    return signal * x0 + sigma * noise


def prediction_target(
    prediction_type: str, x0: Tensor, noise: Tensor, time: Time, alphas_cumprod: Tensor
) -> Tensor:
    """What the UNet should answer for `add_noise(x0, noise, time, ...)`: (B, C, h, w)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        signal, sigma = _coefficients(alphas_cumprod, time, x0)
        return signal * noise - sigma * x0
    raise _unknown_prediction_type(prediction_type)


def prediction_to_x0(
    prediction_type: str, prediction: Tensor, noisy: Tensor, time: Time, alphas_cumprod: Tensor
) -> Tensor:
    """The clean latents that a prediction stands for: (B, C, h, w).

    An epsilon prediction says nothing of x0 where ᾱ(t) = 0 (the last step of a zero-terminal-SNR
    schedule); the result is not finite there.
    """
    signal, sigma = _coefficients(alphas_cumprod, time, noisy)
    if prediction_type == "epsilon":
        return (noisy - sigma * prediction) / signal
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return signal * noisy - sigma * prediction
    raise _unknown_prediction_type(prediction_type)


def signal_to_noise(alphas_cumprod: Tensor, time: Time) -> Tensor:
    """ᾱ / (1 - ᾱ) at each time: () or (B,)."""
    alpha = _at(alphas_cumprod, time)
    return alpha / (1 - alpha)


def loss_weight(
    prediction_type: str,
    time: Time,
    alphas_cumprod: Tensor,
    weighting: str = "min_snr",
    gamma: float | None = None,
) -> Tensor:
    """The factor for each image's mean squared error, () or (B,), float32.

    A weighting is a weight w(SNR) on the error of x0. The same error measured on epsilon is SNR
    times as large, on v (SNR + 1) times, so the weight is divided by that factor, and one
    weighting means the same training whatever the UNet predicts.

    Args:
        weighting: "plain" (all 1, the usual loss of that prediction type);
            "min_snr", w = min(SNR, γ), γ 5 by default (Hang et al. 2023, arXiv 2303.09556);
            "soft_min_snr", w = SNR · γ / (SNR + γ), γ 5 (Crowson et al. 2024, arXiv 2401.11605);
            "p2", w = SNR / (1 + SNR)^γ, γ 1 (Choi et al. 2022, arXiv 2204.00227).
    """
    # A zero-terminal-SNR schedule ends at SNR 0, where min_snr on epsilon is 0/0 with limit 1.
    snr = signal_to_noise(alphas_cumprod, time).float().clamp(min=1e-12)
    if prediction_type not in PREDICTION_TYPES:
        raise _unknown_prediction_type(prediction_type)
    scale = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    if weighting == "plain":
        return torch.ones_like(snr)
    if weighting == "min_snr":
        weight = snr.clamp(max=5.0 if gamma is None else gamma)
    elif weighting == "soft_min_snr":
        gamma = 5.0 if gamma is None else gamma
        weight = snr * gamma / (snr + gamma)
    elif weighting == "p2":
        weight = snr / (1 + snr) ** (1.0 if gamma is None else gamma)
    else:
        raise UsageError(
            f"Unknown loss weighting {weighting!r}.",
            "It is not one of the published weightings that are implemented.",
            f"Use one of: {', '.join(WEIGHTINGS)}.",
        )
    return weight / scale[prediction_type]
