"""Jobs: what they check, which are equal, and how they read and write."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from sdcore import TextToImage
from sdcore.checkpoint.model import LoraOnModel
from sdcore.errors import UsageError
from sdcore.job.adapters import EmbeddingSettings, HiresSettings, LoraSettings
from sdcore.job.job import Job, as_jobs, check_alike, make_jobs
from sdcore.job.record import job_from_dict, job_to_dict, source_settings
from sdcore.job.sources import Handover, Latents, Noise, Picture
from sdcore.size import Size, SizeConditioning

RED, BLUE = Image.new("RGB", (24, 16), "red"), Image.new("RGB", (24, 16), "blue")
WHITE = Image.new("L", (24, 16), 255)
FULL = Job(
    "a (fox:1.2)",
    "bad",
    seed=5,
    steps=7,
    guidance_scale=3.5,
    guidance_rescale=0.7,
    scheduler="euler a",
    size=Size(64, 48),
    dialect="a1111",
    clip_skip=1,
    attention="chunked",
    loras=(LoraSettings("ink", 0.5, 0.25, "ab"),),
    embeddings=(EmbeddingSettings("word", "cd"),),
    hires=HiresSettings(128, 96, 0.5, 3, "latents"),
    denoising_end=0.8,
    size_conditioning=SizeConditioning((1, 2), (3, 4), (5, 6), 7.0),
    tiled=True,
    steps_before=2,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt is not text"),
        ({"negative_prompt": 3}, "negative prompt is not text"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_rescale": 1.5}, "guidance_rescale"),
        ({"scheduler": "eular"}, "eular"),
        ({"dialect": "a1112"}, "a1112"),
        ({"attention": "magic"}, "magic"),
        ({"clip_skip": True}, "clip_skip"),
        ({"denoising_end": 1.0}, "denoising_end"),
        ({"steps_before": -1}, "steps_before"),
        ({"source": RED}, "source is of type Image"),
        ({"size": (64, 64)}, "size is of type tuple"),
        ({"hires": HiresSettings(8, 8, 0.5, upscale="magic")}, "magic"),
        ({"hires": 2}, "hires is of type int"),
        ({"loras": 2}, "loras is of type int"),
        ({"loras": ("ink",)}, "loras is of type str"),
        ({"embeddings": (None,)}, "embeddings is of type NoneType"),
        ({"size_conditioning": (64, 64)}, "size_conditioning is of type tuple"),
        ({"tiled": "no"}, "tiled is 'no'"),
    ],
)
def test_a_job_checks_itself(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Job(**{"prompt": "a fox", **fields})
    assert error.value.why and error.value.hint


def test_lists_become_tuples_so_that_a_job_stays_as_it_is_and_can_be_compared() -> None:
    lists: dict[str, Any] = {"loras": [LoraSettings("ink", 0.5, 0.5)], "guidance_interval": [0, 1]}
    job = Job("a fox", **lists)
    assert job == Job("a fox", loras=(LoraSettings("ink", 0.5, 0.5),))
    assert hash(job) and job.guidance_interval == (0, 1)


@pytest.mark.parametrize("jobs", ["a fox", ["a fox"], None, 3])
def test_what_is_painted_are_jobs(jobs: Any) -> None:
    with pytest.raises(UsageError, match="no job but of type") as error:
        as_jobs(jobs)
    assert 'Job("a fox")' in error.value.hint
    assert as_jobs(iter([Job("a"), Job("b")])) == [Job("a"), Job("b")]


def test_a_job_is_frozen_and_numbers_of_numpy_are_ints() -> None:
    job = Job("a fox", seed=np.int64(3), steps=np.int8(4))  # pyright: ignore[reportArgumentType]
    assert (type(job.seed), type(job.steps)) == (int, int)
    with pytest.raises(FrozenInstanceError):
        job.seed = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_sources_are_equal_when_their_content_is() -> None:
    ones, twos = torch.ones(4, 2, 3), torch.full((4, 2, 3), 2.0)
    alike = [
        (Noise(), Noise()),
        (Noise(ones), Noise(ones.clone())),
        (Picture(RED, 0.5, WHITE), Picture(RED.copy(), 0.5, WHITE.copy())),
        (Latents(ones), Latents(ones.double())),
        (Handover(ones, 0.5), Handover(ones.clone(), 0.5)),
    ]
    for one, other in alike:
        assert one == other and hash(one) == hash(other)
        assert Job("a", source=one) == Job("a", source=other)
    others = [
        *(Noise(), Noise(ones), Noise(twos), Latents(ones), Latents(twos), Latents(ones, 0.5)),
        *(Handover(ones, 0.5), Handover(ones, 0.6), Picture(RED), Picture(BLUE)),
        *(Picture(RED, 0.5), Picture(RED, mask=WHITE), Picture(RED, mask=WHITE, only_masked=4)),
        Picture(Image.new("RGB", (16, 24), "red")),
    ]
    assert len(set(others)) == len(others)


def test_jobs_are_made_prompt_by_prompt() -> None:
    jobs = make_jobs(["a", "b"], negative_prompt=["x", "y"], seed=3, images_per_prompt=2, steps=4)
    assert [(job.prompt, job.negative_prompt, job.seed) for job in jobs] == [
        ("a", "x", 3), ("a", "x", 4), ("b", "y", 5), ("b", "y", 6),
    ]  # fmt: skip
    assert {job.steps for job in jobs} == {4}
    jobs = make_jobs(["a", "b"], seed=[8, 1], images_per_prompt=2, image=[RED, BLUE])
    assert [job.seed for job in jobs] == [8, 9, 1, 2]
    assert jobs[0].source is jobs[1].source and jobs[0].source != jobs[2].source
    drawn = make_jobs("a", images_per_prompt=3)
    assert len({job.seed for job in drawn}) == 3 and None not in {job.seed for job in drawn}
    assert make_jobs("a")[0].seed != make_jobs("a")[0].seed


def test_jobs_that_differ_elsewhere_are_not_painted_at_once() -> None:
    check_alike(make_jobs(["a", "b"], seed=3, image=[RED, BLUE]))
    for field, value in {"steps": 3, "dialect": "comfy", "loras": FULL.loras}.items():
        with pytest.raises(UsageError, match=f"different {field}"):
            check_alike([Job("a"), replace(Job("b"), **{field: value})])
    with pytest.raises(UsageError, match="kinds of sources"):
        check_alike([Job("a"), Job("a", source=Picture(RED))])
    with pytest.raises(UsageError, match="no job"):
        check_alike([])


def test_a_job_survives_json() -> None:
    assert job_from_dict(job_to_dict(FULL)) == FULL
    assert job_from_dict({"prompt": "a fox"}) == Job("a fox")


@given(prompt=some.text(), negative=some.none() | some.text(), seed=some.integers(0, 2**63 - 1))
def test_any_prompt_survives_json(prompt: str, negative: str | None, seed: int) -> None:
    job = Job(prompt, negative, seed)
    assert job_from_dict(job_to_dict(job)) == job


def test_a_picture_is_named_by_its_hash_and_handed_over_beside() -> None:
    source = Picture(RED, 0.5, WHITE, 4)
    record = source_settings(source, source.strength)
    assert record is not None and record.mask is not None
    data = {**job_to_dict(Job("a fox")), "source": vars(record)}
    pictures = {record.image: RED, record.mask: WHITE}
    assert job_from_dict(data, pictures) == Job("a fox", source=source)
    with pytest.raises(UsageError, match="a picture that is not here"):
        job_from_dict(data)


@pytest.mark.parametrize(
    "source",
    [Picture(RED), Picture(RED, 0.5, WHITE, 4), Latents(torch.ones(4, 2, 3)), Noise()],
)
def test_a_job_and_what_it_begins_from_survive_json(source: Any) -> None:
    job = Job("a fox", source=source)
    contents: dict[str, Any] = {}
    if isinstance(source, Picture):
        contents = {source.image_hash: RED, source.mask_hash or "": WHITE}
    elif isinstance(source, Latents):
        contents = {source.latents_hash: source.latents}
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job))), contents) == job


@pytest.mark.parametrize("source", [Noise(torch.ones(4, 2, 3)), Handover(torch.ones(4, 2, 3), 0.5)])
def test_what_json_cannot_say_is_not_left_out_silently(source: Any) -> None:
    with pytest.raises(UsageError, match="cannot become JSON"):
        job_to_dict(Job("a fox", source=source))


@pytest.mark.parametrize("data", ["a fox", None, [1]])
def test_json_that_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(UsageError, match="The job is of type"):
        job_from_dict(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "'prompt' is missing"),
        ({"prompt": "a", "width": 64}, "width and height are not both there"),
        ({"prompt": "a", "sead": 3}, "'sead' is unknown; the nearest known one is 'seed'"),
        ({"prompt": "a", "seed": "3"}, "seed is '3'"),
        ({"prompt": "a", "width": 64.5, "height": 64}, "width is 64.5"),
        ({"prompt": "a", "hires": {"width": 8}}, "'hires.height' is missing"),
    ],
)
def test_json_that_is_no_job_is_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="cannot be read") as error:
        job_from_dict(data)
    assert message in error.value.why


def test_json_of_a_job_that_cannot_be_painted_is_refused_as_the_job_is() -> None:
    with pytest.raises(UsageError) as own:
        Job("a", steps=0)
    with pytest.raises(UsageError, match="steps is 0") as error:
        job_from_dict({"prompt": "a", "steps": 0})
    assert error.value.args == own.value.args


def test_a_job_that_names_adapters_is_painted_with_these_or_not_at_all(sd_folder) -> None:
    pipe = TextToImage.from_pretrained(sd_folder)
    on = LoraOnModel(sd_folder, "ink", "abcd", 0.5, 0.5, False, ())
    with_ink = pipe.replace(loras=(on,))
    for lora in (LoraSettings("ink", 0.5, 0.5), LoraSettings("ink", 0.5, 0.5, "ab")):
        result = with_ink.paint(Job("a fox", steps=1, seed=1, loras=(lora,)))
        assert result.settings[0].job.loras == (LoraSettings("ink", 0.5, 0.5, "abcd"),)
    others = LoraSettings("ink", 0.6, 0.5), LoraSettings("ink", 0.5, 0.5, "ff")
    for lora in (*others, LoraSettings("pen", 0.5, 0.5)):
        with pytest.raises(UsageError, match="other LoRAs than the model has"):
            with_ink.paint(Job("a fox", steps=1, loras=(lora,)))
    with pytest.raises(UsageError, match="the model has none"):
        pipe.paint(Job("a fox", steps=1, loras=(LoraSettings("ink", 0.5, 0.5),)))
