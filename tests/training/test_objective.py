"""What a diffusion model is trained on, against the formulas written out."""

from __future__ import annotations

import pytest
import torch

from sdcore.diffusion.noise import alphas_cumprod_from_config
from sdcore.errors import UsageError
from sdcore.training.objective import NoiseSettings, Objective, draw_noise, draw_times

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LATENTS = torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(1))


def test_a_row_of_noise_is_a_function_of_seed_step_and_row():
    many, few = (
        draw_noise(torch.Size((6, 4, 3, 5)), 3, 7),
        draw_noise(torch.Size((2, 4, 3, 5)), 3, 7),
    )
    assert torch.equal(many[:2], few)
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(many, draw_noise(many.shape, 3, 8))
    assert not torch.equal(many, draw_noise(many.shape, 4, 7))


@pytest.mark.parametrize("power", [1.0, 0.6])
def test_times_are_spread_evenly_over_a_batch(power):
    times = draw_times(50, 1000, 3, 7, power)
    assert times.min() >= 0 and times.max() <= 999 and times.dtype == torch.long
    even = (times / 1000) ** (1 / power)  # back to u
    assert ((50 * even).round().sort().values.diff() - 1).abs().max() <= 1
    assert not torch.equal(times, draw_times(50, 1000, 3, 8, power))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("weighting", ["plain", "min_snr"])
def test_the_loss_is_the_weighted_error_of_the_answer(kind, weighting):
    objective = Objective(SCHEDULER | {"prediction_type": kind}, NoiseSettings(weighting=weighting))
    noised = objective.draw(LATENTS, seed=3, step=7)
    assert torch.is_tensor(noised.times)
    alpha = alphas_cumprod_from_config(SCHEDULER)[noised.times]
    noise = draw_noise(LATENTS.shape, 3, 7)
    signal, sigma = (x.sqrt()[:, None, None, None] for x in (alpha, 1 - alpha))
    torch.testing.assert_close(noised.latents, signal * LATENTS + sigma * noise)
    target = {"epsilon": noise, "sample": LATENTS, "v_prediction": signal * noise - sigma * LATENTS}
    torch.testing.assert_close(noised.target, target[kind])
    answer = noised.target + torch.arange(6.0)[:, None, None, None]
    torch.testing.assert_close(objective.errors(answer, noised), torch.arange(6.0) ** 2)
    snr = alpha / (1 - alpha)
    scale = {"epsilon": snr, "sample": torch.ones(6), "v_prediction": snr + 1}[kind]
    weight = torch.ones(6) if weighting == "plain" else snr.clamp(max=5) / scale
    expected = (weight * torch.arange(6.0) ** 2).mean()
    torch.testing.assert_close(objective.loss(answer, noised), expected)


def test_the_answer_may_be_in_half_precision():
    objective = Objective(SCHEDULER)
    noised = objective.draw(LATENTS, seed=0, step=0)
    loss = objective.loss(noised.target.bfloat16(), noised)
    assert loss.dtype == torch.float32 and loss < 1e-3


def drawn(**settings: object):
    return Objective(SCHEDULER, NoiseSettings.model_validate(settings)).draw(
        torch.zeros(64, 4, 16, 16), 3, 5
    )


def test_offset_noise_moves_the_mean_of_each_channel() -> None:
    plain, moved = (drawn(offset=value).target.mean((2, 3)) for value in (0.0, 0.5))
    assert plain.std() < 0.1 < 0.4 < moved.std() < 0.6


def test_multires_noise_has_variance_one_and_longer_waves() -> None:
    plain, coarse = (drawn(multires=value).target for value in (0.0, 0.8))
    assert abs(coarse.std() - 1) < 0.05
    neighbours = [(x[..., 1:] * x[..., :-1]).mean() for x in (plain, coarse)]
    assert abs(neighbours[0]) < 0.05 < 0.3 < neighbours[1]


def test_perturbed_input_keeps_its_target() -> None:
    plain, moved = drawn(perturbation=0.0), drawn(perturbation=0.3)
    assert torch.equal(plain.target, moved.target)
    assert not torch.equal(plain.latents, moved.latents)


def test_times_lie_between_the_first_and_the_last() -> None:
    times = drawn(first_time=200, last_time=300).times
    assert times.min() >= 200 and times.max() <= 300 and len(times.unique()) > 20
    with pytest.raises(UsageError, match="No time lies between"):
        Objective(SCHEDULER, NoiseSettings(first_time=5, last_time=4))


def test_zero_terminal_snr_ends_in_pure_noise_and_is_not_for_epsilon() -> None:
    how = NoiseSettings(zero_terminal_snr=True)
    v = Objective(SCHEDULER | {"prediction_type": "v_prediction"}, how)
    assert v.alphas_cumprod[-1].abs() < 1e-6 < Objective(SCHEDULER).alphas_cumprod[-1]
    with pytest.raises(UsageError, match="zero_terminal_snr"):
        Objective(SCHEDULER | {"prediction_type": "epsilon"}, how)


def test_a_masked_error_is_the_mean_over_what_counts() -> None:
    objective = Objective(SCHEDULER)
    noised = objective.draw(torch.zeros(2, 4, 8, 8), 0, 0)
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, :2] = 1
    answer = noised.target.clone()
    answer[:, :, :2] += 3  # wrong where it counts
    answer[:, :, 2:] += 99
    torch.testing.assert_close(objective.errors(answer, noised, masks), torch.full((2,), 9.0))
