"""The forward process against diffusers' DDPM scheduler, and the algebra of the predictions."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from sdcore.diffusion import noise
from sdcore.errors import UsageError

SCHEDULES = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    {"trained_betas": [0.1, 0.2, 0.3]},
]


@pytest.fixture
def latents() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, epsilon = torch.randn(2, 4, 4, 8, 6, generator=generator).unbind(0)
    return x0, epsilon, torch.tensor([0, 17, 500, 999])


@pytest.fixture
def alphas_cumprod() -> torch.Tensor:
    return noise.make_alphas_cumprod()


@pytest.mark.parametrize("config", SCHEDULES)
def test_alphas_cumprod_equals_diffusers(config: dict) -> None:
    expected = DDPMScheduler(**config).alphas_cumprod
    torch.testing.assert_close(
        noise.alphas_cumprod_from_config(config), expected, rtol=1e-5, atol=1e-7
    )


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    assert noise.make_alphas_cumprod(zero_terminal_snr=True)[-1] == 0
    assert noise.make_alphas_cumprod()[-1] > 0


def test_add_noise_and_v_equal_diffusers(latents, alphas_cumprod) -> None:
    x0, epsilon, time = latents
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(
        noise.add_noise(x0, epsilon, time, alphas_cumprod), scheduler.add_noise(x0, epsilon, time)
    )
    torch.testing.assert_close(
        noise.prediction_target("v_prediction", x0, epsilon, time, alphas_cumprod),
        scheduler.get_velocity(x0, epsilon, time),
    )


@pytest.mark.parametrize("prediction_type", noise.PREDICTION_TYPES)
def test_the_right_prediction_gives_back_x0(prediction_type, latents) -> None:
    x0, epsilon, time = (tensor.double() for tensor in latents)
    alphas_cumprod, time = noise.make_alphas_cumprod().double(), time.long()
    noisy = noise.add_noise(x0, epsilon, time, alphas_cumprod)
    target = noise.prediction_target(prediction_type, x0, epsilon, time, alphas_cumprod)
    arguments = (prediction_type, target, noisy, time, alphas_cumprod)
    torch.testing.assert_close(noise.prediction_to_x0(*arguments), x0, rtol=1e-9, atol=1e-9)


def test_time_may_be_one_number_for_the_whole_batch(latents, alphas_cumprod) -> None:
    x0, epsilon, _ = latents
    one = noise.add_noise(x0, epsilon, 40, alphas_cumprod)
    each = noise.add_noise(x0, epsilon, torch.tensor([40] * 4), alphas_cumprod)
    assert torch.equal(one, each)


def test_half_precision_stays_half_and_keeps_the_small_sigma(latents, alphas_cumprod) -> None:
    x0, epsilon, time = latents
    noisy = noise.add_noise(x0.half(), epsilon.half(), time, alphas_cumprod)
    assert noisy.dtype == torch.float16
    torch.testing.assert_close(
        noisy.float(), noise.add_noise(x0, epsilon, time, alphas_cumprod), rtol=3e-3, atol=3e-3
    )


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "p2"])
def test_one_weighting_is_one_loss_whatever_is_predicted(weighting, latents) -> None:
    x0, epsilon, time = (tensor.double() for tensor in latents)
    alphas_cumprod, time = noise.make_alphas_cumprod().double(), time.long()
    noisy = noise.add_noise(x0, epsilon, time, alphas_cumprod)
    guess = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).double()
    alpha = alphas_cumprod[time].reshape(-1, 1, 1, 1)
    implied = (noisy - alpha.sqrt() * guess) / (1 - alpha).sqrt()

    losses = []
    for prediction_type in noise.PREDICTION_TYPES:
        target = noise.prediction_target(prediction_type, x0, epsilon, time, alphas_cumprod)
        predicted = noise.prediction_target(prediction_type, guess, implied, time, alphas_cumprod)
        error = (predicted - target).square().mean(dim=(1, 2, 3))
        losses.append(error * noise.loss_weight(prediction_type, time, alphas_cumprod, weighting))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=0)


def test_min_snr_in_the_published_form(alphas_cumprod) -> None:
    time = torch.arange(1000)
    snr = noise.signal_to_noise(alphas_cumprod, time)
    clipped = torch.minimum(snr, torch.tensor(5.0))
    for prediction_type, expected in (
        ("epsilon", clipped / snr),
        ("v_prediction", clipped / (snr + 1)),
        ("sample", clipped),
    ):
        weight = noise.loss_weight(prediction_type, time, alphas_cumprod)
        torch.testing.assert_close(weight, expected)
    assert torch.equal(
        noise.loss_weight("epsilon", time, alphas_cumprod, "plain"), torch.ones(1000)
    )


@pytest.mark.parametrize("weighting", noise.WEIGHTINGS)
@pytest.mark.parametrize("prediction_type", noise.PREDICTION_TYPES)
def test_weights_are_finite_at_zero_terminal_snr(prediction_type, weighting) -> None:
    schedule = noise.make_alphas_cumprod(zero_terminal_snr=True)
    weight = noise.loss_weight(prediction_type, torch.arange(1000), schedule, weighting)
    assert torch.isfinite(weight).all() and (weight >= 0).all()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda a, x: noise.prediction_target("x_0", x, x, 1, a), "x_0"),
        (lambda a, x: noise.prediction_to_x0("eps", x, x, 1, a), "eps"),
        (lambda a, x: noise.loss_weight("v", 1, a), "'v'"),
        (lambda a, x: noise.loss_weight("epsilon", 1, a, "minsnr"), "minsnr"),
        (lambda a, x: noise.make_alphas_cumprod("cosine"), "cosine"),
        (lambda a, x: noise.make_alphas_cumprod(steps=0), "0 steps"),
        (lambda a, x: noise.add_noise(x, x, torch.tensor([0.5]), a), "whole number"),
    ],
)
def test_unknown_names_are_refused_by_name(call, name, alphas_cumprod) -> None:
    with pytest.raises(UsageError, match=name):
        call(alphas_cumprod, torch.zeros(1, 4, 2, 2))
