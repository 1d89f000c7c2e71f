"""Guidance in a part of the noise levels alone."""

from __future__ import annotations

import pytest
import torch

from sdcore import Job, TextToImage
from sdcore.app.flags import read_interval
from sdcore.diffusion.guidance import Guidance
from sdcore.errors import UsageError
from sdcore.job.record import ImageSettings, job_from_dict, job_to_dict
from tests.painting import paint

HOW = {"seed": 1, "steps": 5, "scheduler": "ddim", "guidance_scale": 6.0}


@pytest.fixture(scope="module")
def sd(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def rows_of_each_step(pipe: TextToImage, **how) -> list[int]:
    """How many rows the UNet is called with at each step: two where guidance is used."""
    counts: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[2].text)))
    try:
        paint(pipe, "a cat", **how)
    finally:
        hook.remove()
    return counts


def test_guidance_runs_where_the_interval_says(sd) -> None:
    assert rows_of_each_step(sd, **HOW) == [2, 2, 2, 2, 2]
    # times 801, 601, 401, 201, 1 of 1000: 0.2, 0.4, 0.6, 0.8 and 1.0 of the noise is gone
    assert rows_of_each_step(sd, **HOW, guidance_interval=(0.3, 0.7)) == [1, 2, 2, 1, 1]


def test_the_whole_interval_is_guidance_and_none_of_it_is_none(sd) -> None:
    plain = paint(sd, "a cat", **HOW).latents
    assert torch.equal(paint(sd, "a cat", **HOW, guidance_interval=(0.0, 1.0)).latents, plain)
    alone = paint(sd, "a cat", **{**HOW, "guidance_scale": 1.0}).latents
    assert torch.equal(paint(sd, "a cat", **HOW, guidance_interval=(0.0, 0.01)).latents, alone)
    part = paint(sd, "a cat", **HOW, guidance_interval=(0.3, 0.7)).latents
    assert not torch.equal(part, plain) and not torch.equal(part, alone)


def test_an_end_of_1_has_the_last_step_also_at_time_0() -> None:
    guidance = Guidance(5.0, interval=(0.3, 1.0))
    assert [guidance.at(cleaned).active for cleaned in (0.2, 0.3, 0.9, 1.0)] == [False] + 3 * [True]
    assert not Guidance(5.0, interval=(0.3, 0.9)).at(0.9).active


def test_it_is_recorded_and_read_again(sd) -> None:
    job = Job("a cat", seed=1, steps=2, guidance_interval=(0.25, 0.75))
    assert job_from_dict(job_to_dict(job)) == job
    settings = sd.paint(job).settings[0]
    assert ImageSettings.from_json(settings.to_json()) == settings
    assert "guidance_interval" not in sd.paint(Job("a cat", seed=1, steps=1)).settings[0].to_json()
    assert read_interval("0.25-0.75") == (0.25, 0.75)


@pytest.mark.parametrize(
    "interval", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.8, 0.2), None, 0.5, (0.2,), "01"]
)
def test_an_interval_that_is_none_is_refused(interval) -> None:
    with pytest.raises(UsageError, match="guidance_interval"):
        Guidance(5.0, 0.0, interval)
    with pytest.raises(UsageError, match="guidance_interval"):
        Job("a cat", guidance_interval=interval)
