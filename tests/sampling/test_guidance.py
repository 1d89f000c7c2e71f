"""Guidance arithmetic, the order of rows, and what a control is shown."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from sdcore.errors import UsageError
from sdcore.sampling.calls import Conditioning, RunCall
from sdcore.sampling.guidance import (
    Guidance,
    Part,
    StepConditioning,
    StepControls,
    guided_prediction,
)
from sdcore.unet.unet import AddedConditions

TIME = torch.tensor(3)


class Recorder:
    """Stands in for a UNet: scales by the mean of each row's text, and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def read(self, text):
        return text

    def __call__(self, latents, time, text, control, *, added, deep=None):
        latents = latents.repeat(len(text) // len(latents), 1, 1, 1)  # a row for each text
        self.calls.append((latents, time, text, control, added))
        return latents * text.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)

    def alone(self, latents, conditioning: Conditioning):
        return self(latents, 3, conditioning.text, None, added=None)


def one(positive: Conditioning, negative: Conditioning | None) -> StepConditioning:
    return StepConditioning((Part(positive),), negative)


@pytest.fixture
def rows() -> tuple[torch.Tensor, Conditioning, Conditioning]:
    torch.manual_seed(0)
    return (
        torch.randn(2, 4, 3, 5),
        Conditioning(torch.randn(2, 7, 6)),
        Conditioning(torch.randn(2, 7, 6)),
    )


def test_scale_one_runs_the_conditional_rows_alone(rows) -> None:
    latents, positive, negative = rows
    for unconditional in (None, negative):
        unet = Recorder()
        out, _ = guided_prediction(
            RunCall(unet), latents, TIME, one(positive, unconditional), Guidance(1.0)
        )
        assert len(unet.calls) == 1 and unet.calls[0][0].shape[0] == 2
        assert torch.equal(out, unet.alone(latents, positive))


@pytest.mark.parametrize("scale", [1.5, 7.5])
def test_guided_prediction_is_the_formula(rows, scale) -> None:
    latents, positive, negative = rows
    unet = Recorder()
    out, _ = guided_prediction(
        RunCall(unet), latents, TIME, one(positive, negative), Guidance(scale)
    )
    with_prompt, without = unet.alone(latents, positive), unet.alone(latents, negative)
    torch.testing.assert_close(out, without + scale * (with_prompt - without))
    assert not torch.allclose(out, without + scale * (without - with_prompt))


def test_rescale_equals_diffusers(rows) -> None:
    latents, positive, negative = rows
    unet = Recorder()
    given = one(positive, negative)
    plain, _ = guided_prediction(RunCall(unet), latents, TIME, given, Guidance(6.0))
    out, _ = guided_prediction(RunCall(unet), latents, TIME, given, Guidance(6.0, rescale=0.7))
    with_prompt = unet.alone(latents, positive)
    torch.testing.assert_close(out, rescale_noise_cfg(plain, with_prompt, 0.7))
    assert not torch.allclose(out, plain)


def test_added_conditions_are_stacked_in_the_same_order(rows) -> None:
    latents, positive, negative = rows
    added = [AddedConditions(torch.full((2, 3), value), torch.zeros(2, 6)) for value in (1.0, -1.0)]
    unet = Recorder()
    given = one(Conditioning(positive.text, added[0]), Conditioning(negative.text, added[1]))
    guided_prediction(RunCall(unet), latents, TIME, given, Guidance(2.0))
    _, _, text, _, given = unet.calls[0]
    assert torch.equal(text, torch.cat([negative.text, positive.text]))
    assert given.pooled_text[:, 0].tolist() == [-1.0, -1.0, 1.0, 1.0]


def make_parts(positive: Conditioning) -> tuple[Part, Part]:
    """A part of weight 1, and one that counts half in the first image and not in the second."""
    torch.manual_seed(1)
    by_image = torch.tensor([0.5, 0.0]).reshape(2, 1, 1, 1)
    return Part(positive), Part(Conditioning(torch.randn(2, 7, 6)), by_image)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_parts_add_up_by_weight(rows, scale) -> None:
    latents, positive, negative = rows
    parts, unet = make_parts(positive), Recorder()
    given = StepConditioning(parts, negative)
    out, _ = guided_prediction(RunCall(unet), latents, TIME, given, Guidance(scale))
    assert len(unet.calls) == 1 and unet.calls[0][0].shape[0] == 6
    without, first, second = (
        unet.alone(latents, c) for c in (negative, positive, parts[1].conditioning)
    )
    used = max(scale, 1.0)  # below 1 there is no guidance, but the parts are still joined
    expected = without + used * ((first - without) + parts[1].weight * (second - without))
    torch.testing.assert_close(out, expected)


def test_texts_of_different_length_are_each_read_whole(rows) -> None:
    latents, positive, _ = rows
    long = Conditioning(torch.randn(2, 14, 6))
    unet = Recorder()
    given = StepConditioning((Part(long), Part(positive, 0.3)), positive)
    out, _ = guided_prediction(RunCall(unet), latents, TIME, given, Guidance(3.0))
    assert [call[2].shape for call in unet.calls] == [(4, 7, 6), (2, 14, 6)]
    without, with_long = unet.alone(latents, positive), unet.alone(latents, long)
    torch.testing.assert_close(out, without + 3.0 * (with_long - without))


class Shift:
    """Adds a number to what attention gives, and keeps the queries that it saw."""

    def __init__(self, amount: float) -> None:
        self.amount, self.seen = amount, []

    def __call__(self, site, grid, q, k, v, attend):
        self.seen.append((site, grid, q))
        return attend(q, k, v) + self.amount


def attend(q, k, v):
    return q + k + v


def through(unet: Recorder) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, and what the control of the last call makes of them less what attention gives."""
    *_, control, _ = unet.calls[-1]
    q, k, v = torch.randn(3, len(unet.calls[-1][0]), 2, 6, 8).unbind(0)
    return q, control("site", (2, 3), q, k, v, attend) - attend(q, k, v)


def test_a_control_sees_the_conditional_rows_only(rows) -> None:
    latents, positive, negative = rows
    unet, control = Recorder(), Shift(100.0)
    controls = StepControls((control,))
    guided_prediction(
        RunCall(unet), latents, TIME, one(positive, negative), Guidance(2.0), controls
    )
    q, change = through(unet)
    assert len(control.seen) == 1
    assert torch.equal(control.seen[0][2], q[2:]) and control.seen[0][:2] == ("site", (2, 3))
    torch.testing.assert_close(change.mean(dim=(1, 2, 3)), torch.tensor([0.0, 0.0, 100.0, 100.0]))


def test_a_control_sees_one_part_after_the_other(rows) -> None:
    latents, positive, negative = rows
    given = StepConditioning(make_parts(positive), negative)
    unet, control = Recorder(), Shift(100.0)
    guided_prediction(
        RunCall(unet), latents, TIME, given, Guidance(2.0), StepControls((control, control))
    )
    q, _ = through(unet)
    assert [len(seen) for *_, seen in control.seen] == [2, 2]
    assert torch.equal(torch.cat([seen for *_, seen in control.seen]), q[2:])


def test_each_part_and_the_unconditional_rows_may_have_their_own_control(rows) -> None:
    latents, positive, negative = rows
    given = StepConditioning(make_parts(positive), negative)
    controls = StepControls((Shift(1.0), Shift(2.0)), Shift(-5.0))
    unet = Recorder()
    guided_prediction(RunCall(unet), latents, TIME, given, Guidance(2.0), controls)
    _, change = through(unet)
    expected = torch.tensor([-5.0, -5.0, 1.0, 1.0, 2.0, 2.0])
    torch.testing.assert_close(change.mean(dim=(1, 2, 3)), expected, atol=1e-5, rtol=0)


def test_without_guidance_the_control_is_handed_on_as_it_is(rows) -> None:
    latents, positive, _ = rows
    unet, control = Recorder(), Shift(1.0)
    controls = StepControls((control,))
    guided_prediction(RunCall(unet), latents, TIME, one(positive, None), Guidance(0.0), controls)
    assert unet.calls[0][3] is control


@pytest.mark.parametrize("wrong", [{"scale": -1.0}, {"scale": float("nan")}, {"rescale": 1.5}])
def test_impossible_guidance_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match=f"guidance_{next(iter(wrong))}"):
        Guidance(**wrong)
