"""Guidance arithmetic, the order of rows, and what a control is shown."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from sdcore.errors import UsageError
from sdcore.guidance import Conditioning, Guidance, guided_prediction
from sdcore.unet import AddedConditions


class Recorder:
    """Stands in for a UNet: scales by the mean of each row's text, and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, latents, time, text, control, *, added):
        self.calls.append((latents, time, text, control, added))
        return latents * text.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)


@pytest.fixture
def rows() -> tuple[torch.Tensor, Conditioning, Conditioning]:
    torch.manual_seed(0)
    return (
        torch.randn(2, 4, 3, 5),
        Conditioning(torch.randn(2, 7, 6)),
        Conditioning(torch.randn(2, 7, 6)),
    )


def test_scale_one_runs_the_conditional_rows_alone(rows) -> None:
    latents, positive, _ = rows
    unet = Recorder()
    out = guided_prediction(unet, latents, torch.tensor(3), positive, None, Guidance(1.0))
    assert len(unet.calls) == 1 and unet.calls[0][0].shape[0] == 2
    assert torch.equal(out, unet(latents, 3, positive.text, None, added=None))


@pytest.mark.parametrize("scale", [1.5, 7.5])
def test_guided_prediction_is_the_formula(rows, scale) -> None:
    latents, positive, negative = rows
    unet = Recorder()
    out = guided_prediction(unet, latents, torch.tensor(3), positive, negative, Guidance(scale))
    with_prompt = unet(latents, 3, positive.text, None, added=None)
    without = unet(latents, 3, negative.text, None, added=None)
    torch.testing.assert_close(out, without + scale * (with_prompt - without))
    assert not torch.allclose(out, without + scale * (without - with_prompt))


def test_rescale_equals_diffusers(rows) -> None:
    latents, positive, negative = rows
    unet = Recorder()
    plain = guided_prediction(unet, latents, torch.tensor(3), positive, negative, Guidance(6.0))
    out = guided_prediction(
        unet, latents, torch.tensor(3), positive, negative, Guidance(6.0, rescale=0.7)
    )
    with_prompt = unet(latents, 3, positive.text, None, added=None)
    torch.testing.assert_close(out, rescale_noise_cfg(plain, with_prompt, 0.7))
    assert not torch.allclose(out, plain)


def test_added_conditions_are_stacked_in_the_same_order(rows) -> None:
    latents, positive, negative = rows
    added = [AddedConditions(torch.full((2, 3), value), torch.zeros(2, 6)) for value in (1.0, -1.0)]
    unet = Recorder()
    guided_prediction(
        unet,
        latents,
        torch.tensor(3),
        Conditioning(positive.text, added[0]),
        Conditioning(negative.text, added[1]),
        Guidance(2.0),
    )
    _, _, text, _, given = unet.calls[0]
    assert torch.equal(text, torch.cat([negative.text, positive.text]))
    assert given.pooled_text[:, 0].tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_a_control_sees_the_conditional_rows_only(rows) -> None:
    latents, positive, negative = rows
    seen = []

    def control(site, grid, q, k, v, attend):
        seen.append((site, grid, q))
        return attend(q, k, v) + 100

    unet = Recorder()
    guided_prediction(unet, latents, torch.tensor(3), positive, negative, Guidance(2.0), control)
    wrapped = unet.calls[0][3]
    q, k, v = torch.randn(3, 4, 2, 6, 8).unbind(0)
    out = wrapped("site", (2, 3), q, k, v, lambda q, k, v: q + k + v)
    assert torch.equal(seen[0][2], q[2:]) and seen[0][:2] == ("site", (2, 3))
    assert torch.equal(out[:2], (q + k + v)[:2])
    assert torch.equal(out[2:], (q + k + v)[2:] + 100)


def test_without_guidance_the_control_is_handed_on_as_it_is(rows) -> None:
    latents, positive, _ = rows
    unet, control = Recorder(), object()
    guided_prediction(unet, latents, torch.tensor(3), positive, None, Guidance(0.0), control)
    assert unet.calls[0][3] is control


@pytest.mark.parametrize("wrong", [{"scale": -1.0}, {"scale": float("nan")}, {"rescale": 1.5}])
def test_impossible_guidance_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match=f"guidance_{next(iter(wrong))}"):
        Guidance(**wrong)
