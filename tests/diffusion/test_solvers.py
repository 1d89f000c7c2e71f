"""Solvers of our own against the loops that were published, written out here step by step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sdcore.diffusion.schedulers import make_scheduler, set_steps
from sdcore.diffusion.steps import iterate_steps, take_step
from tests.diffusion.test_schedulers import SD15

STEPS = 9
SHAPE = (1, 4, 8, 8)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """x0 as some model would see it: neither linear in x nor the same at each level."""
    return torch.tanh(x / (1 + sigma)) * 0.7 + 0.1


def alone(x: Tensor, sigma: Tensor) -> Tensor:
    """The same without a prompt."""
    return denoise(x, sigma) * 0.5 - 0.2


def ours(name: str) -> tuple[Tensor, list[Tensor], Tensor]:
    """The latents at the end, the noise that was drawn, and those at the beginning."""
    scheduler = make_scheduler(name, SD15)
    set_steps(scheduler, STEPS)
    begun = latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * 14.6
    generator = torch.Generator().manual_seed(2)
    for step, time in iterate_steps(scheduler.timesteps):
        sigma = scheduler.sigmas[step.index]
        scheduler.scale_model_input(latents, time)
        predictions = [(latents - see(latents, sigma)) / sigma for see in (denoise, alone)]
        latents = take_step(scheduler, predictions[0], time, latents, [generator], predictions[1])
    generator = torch.Generator().manual_seed(2)
    return latents, [torch.randn(SHAPE, generator=generator) for _ in range(99)], begun


def levels(name: str) -> Tensor:
    scheduler = make_scheduler(name, SD15)
    set_steps(scheduler, STEPS)
    visited = scheduler.sigmas[:-1][:: scheduler.order]
    return torch.cat([visited, torch.zeros(1)])


def ancestral(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    up = min(end, (end**2 * (start**2 - end**2) / start**2) ** 0.5)
    return (end**2 - up**2) ** 0.5, up


def dpmpp_2s_a(x: Tensor, sigmas: Tensor, noise: list[Tensor]) -> Tensor:
    for i, (start, end) in enumerate(pairwise(sigmas)):
        seen = denoise(x, start)
        down, up = ancestral(start, end)
        if down == 0:
            x = x + (x - seen) / start * (down - start)
        else:
            t, t_next = -start.log(), -down.log()
            h = t_next - t
            s = t + h / 2
            x_2 = (-s).exp() / (-t).exp() * x - (-h / 2).expm1() * seen
            x = (-t_next).exp() / (-t).exp() * x - (-h).expm1() * denoise(x_2, (-s).exp())
        if end > 0:
            x = x + noise[i] * up
    return x


def dpmpp_3m_sde(x: Tensor, sigmas: Tensor, noise: list[Tensor]) -> Tensor:
    seen_1 = seen_2 = h_1 = h_2 = None
    for i, (start, end) in enumerate(pairwise(sigmas)):
        seen = denoise(x, start)
        if end == 0:
            x = seen
            continue
        h = -end.log() + start.log()
        eta_h = 2 * h
        x = (-eta_h).exp() * x + (-eta_h).expm1().neg() * seen
        phi_2 = (-eta_h).expm1() / eta_h + 1
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (seen - seen_1) / r0, (seen_1 - seen_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / eta_h - 0.5) * d2
        elif h_1 is not None:
            x = x + phi_2 * (seen - seen_1) / (h_1 / h)
        x = x + noise[i] * end * (-2 * h).expm1().neg().sqrt()
        seen_1, seen_2, h_1, h_2 = seen, seen_1, h, h_1
    return x


def lms(x: Tensor, sigmas: Tensor, noise: list[Tensor]) -> Tensor:
    del noise
    t, ds = sigmas.double().numpy(), []
    for i in range(len(t) - 1):
        ds = [(x - denoise(x, sigmas[i])) / sigmas[i], *ds][:4]
        at = np.linspace(t[i], t[i + 1], 4001)
        for j, d in enumerate(ds):
            basis = np.ones_like(at)
            for k in range(len(ds)):
                if j != k:
                    basis *= (at - t[i - k]) / (t[i - j] - t[i - k])
            x = x + d * float(np.trapezoid(basis, at))
    return x


def ipndm(x: Tensor, sigmas: Tensor, noise: list[Tensor]) -> Tensor:
    del noise
    ds: list[Tensor] = []
    for start, end in pairwise(sigmas):
        ds = [(x - denoise(x, start)) / start, *ds][:4]
        h = end - start
        if end == 0:
            x = denoise(x, start)
        elif len(ds) == 1:
            x = x + h * ds[0]
        elif len(ds) == 2:
            x = x + h * (3 * ds[0] - ds[1]) / 2
        elif len(ds) == 3:
            x = x + h * (23 * ds[0] - 16 * ds[1] + 5 * ds[2]) / 12
        else:
            x = x + h * (55 * ds[0] - 59 * ds[1] + 37 * ds[2] - 9 * ds[3]) / 24
    return x


def euler_cfg_pp(x: Tensor, sigmas: Tensor, noise: list[Tensor]) -> Tensor:
    del noise
    for start, end in pairwise(sigmas):
        x = denoise(x, start) + (x - alone(x, start)) / start * end
    return x


def euler_a_cfg_pp(x: Tensor, sigmas: Tensor, noise: list[Tensor]) -> Tensor:
    for i, (start, end) in enumerate(pairwise(sigmas)):
        down, up = ancestral(start, end)
        x = denoise(x, start) + (x - alone(x, start)) / start * down
        if end > 0:
            x = x + noise[i] * up
    return x


LOOPS = {
    "dpm++ 2s a": dpmpp_2s_a,
    "dpm++ 3m sde": dpmpp_3m_sde,
    "lms": lms,
    "ipndm": ipndm,
    "euler cfg++": euler_cfg_pp,
    "euler a cfg++": euler_a_cfg_pp,
}


@pytest.mark.parametrize("schedule", ["karras", "sgm uniform"])
@pytest.mark.parametrize("method", LOOPS)
def test_a_solver_is_its_published_loop(method, schedule) -> None:
    name = f"{method} {schedule}"
    got, noise, begun = ours(name)
    expected = LOOPS[method](begun, levels(name), noise)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_ddim_over_equal_distances_is_diffusers_own() -> None:
    def run(name: str) -> Tensor:
        scheduler = make_scheduler(name, {**SD15, "prediction_type": "v_prediction"})
        set_steps(scheduler, 10)
        latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        for _, time in iterate_steps(scheduler.timesteps):
            prediction = torch.tanh(latents) * 0.5
            latents = take_step(scheduler, prediction, time, latents, [torch.Generator()])
        return latents

    torch.testing.assert_close(run("ddim ddim uniform"), run("ddim leading"))


def test_ddim_with_cfg_plus_plus_is_the_papers_algorithm() -> None:
    """Chung et al. 2024, algorithm 2, with the web UI's scale / 12.5."""
    scheduler = make_scheduler("ddim cfg++", SD15)
    set_steps(scheduler, 10)
    alphas = scheduler.alphas_cumprod
    x = latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    times = [int(time) for time in scheduler.timesteps]
    for time, following in pairwise([*times, -1]):

        def predict(x: Tensor) -> tuple[Tensor, Tensor]:
            without = torch.tanh(x) * 0.4 - 0.1
            return without + 5.0 * (torch.tanh(x + 1) - without), without

        guided, without = predict(latents)
        at = torch.tensor(time)
        latents = take_step(scheduler, guided, at, latents, [torch.Generator()], without)
        guided, without = predict(x)
        epsilon = without + 5.0 / 12.5 * ((guided - without) / 5.0)
        alpha, after = alphas[time], alphas[max(following, 0)]
        clean = (x - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
        x = after.sqrt() * clean + (1 - after).sqrt() * without
    torch.testing.assert_close(latents, x, rtol=1e-4, atol=1e-5)
