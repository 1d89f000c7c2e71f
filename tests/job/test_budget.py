"""Budgets: what a request may ask for is refused by name, before anything of it is allocated."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcore import TextToImage
from sdcore.errors import FileError, MemoryLimitError, SdcoreError, UsageError
from sdcore.job.adapters import HiresSettings, LoraSettings
from sdcore.job.budget import Budget
from sdcore.job.job import Job, make_jobs
from sdcore.job.record import job_from_dict, job_to_dict
from sdcore.metadata.png import read_recipe
from sdcore.pipeline.memory import free_bytes, least_bytes
from sdcore.size import Size, SizeConditioning

MIB = 1 << 20


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def refused(ask: Callable[[], object], kind: type[SdcoreError] = UsageError) -> str:
    """What it is refused with; it allocates next to nothing."""
    tracemalloc.start()
    with pytest.raises(kind) as caught:
        ask()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB and len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "asked", "fields"),
    [
        ("letters", 20_001, {"prompt": "a" * 20_001}),
        ("letters", 20_001, {"negative_prompt": "a" * 20_001}),
        ("steps", 1001, {"steps": 1001}),
        ("steps", 10**9, {"hires": HiresSettings(64, 64, 0.5, 10**9)}),
        ("pixels", 2 * 10**9, {"size": Size(2 * 10**6, 1000)}),
        ("pixels", 10**12, {"hires": HiresSettings(10**6, 10**6, 0.5)}),
        ("adapters", 101, {"loras": (LoraSettings("a", 1, 1),) * 101}),
    ],
)
def test_a_job_is_refused_by_the_part_and_may_raise_it(
    part: str, asked: int, fields: dict[str, Any]
) -> None:
    fields = {"prompt": "a fox", **fields}
    said = refused(lambda: Job(**fields))
    assert f"{asked:,} {part}" in said and f"{part}={asked}" in said
    raised: dict[str, int] = {part: asked}
    Job(**fields, budget=Budget(**raised))


@pytest.mark.parametrize(
    "fields",
    [
        {"size": Size(10**5000, 8)},
        {"hires": HiresSettings(10**400, 10**400, 0.5)},
        {"size": Size(-8, 8)},
        {"size": Size("8", 8)},  # pyright: ignore[reportArgumentType]
        {"size_conditioning": SizeConditioning((10**400, 8), (0, 0), (8, 8))},
        {"size_conditioning": SizeConditioning((8, 8), (0, 0), (8, float("nan")))},  # pyright: ignore[reportArgumentType]
        {"budget": 3},
    ],
)
def test_what_is_no_size_or_budget_is_refused(fields: dict[str, Any]) -> None:
    refused(lambda: Job("a fox", **fields))


ODD = (10**400, -(10**400), 10**5000, [10**5000], {1: 2}, "x" * 100_000, math.nan, b"x", object())


def test_no_value_of_a_field_is_another_error() -> None:
    """Nor one that fills the terminal, or has more digits than Python writes out."""
    for name in [field.name for field in fields(Job)]:
        for value in ODD:
            try:
                Job(**{"prompt": "a fox", name: value})
            except UsageError as error:
                assert len(str(error)) < 2000, name


def test_no_side_of_a_picture_is_another_error() -> None:
    for side in (*ODD, -1, None):
        assert "multiple of" in refused(Size(side, 8).paintable)


def test_images_are_counted_before_there_are_lists() -> None:
    said = refused(lambda: make_jobs("a fox", images_per_prompt=10**9))
    assert "1,000,000,000 images" in said
    assert len(make_jobs("a fox", images_per_prompt=3, budget=Budget(images=3))) == 3


def test_no_record_holds_or_raises_a_budget() -> None:
    job = Job("a fox", steps=2000, budget=Budget(steps=2000))
    data = job_to_dict(job)
    assert "budget" not in data
    assert job_from_dict(data, budget=job.budget) == job
    for more in ({}, {"budget": {"steps": 9999}}):
        with pytest.raises(UsageError):
            job_from_dict({**data, **more})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("parameters", f"{'(a, ' * 10**6}\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 1"),
        ("sdcore", json.dumps({"prompt": "a" * 10**6})),
        ("parameters", "a\nSteps: 20, Sampler: Euler, Seed: 1, " + "b c: 1, " * 10 + "a" * 10**6),
    ],
)
def test_texts_of_pictures_have_the_usual_budget(tmp_path: Path, name: str, text: str) -> None:
    info, path = PngInfo(), tmp_path / "a.png"
    info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    tracemalloc.start()
    try:
        read_recipe(path)
    except FileError as error:
        assert len(str(error)) < 1500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MIB


def test_a_model_refuses_what_is_far_beyond_its_size(sd: TextToImage) -> None:
    large = Job("a fox", seed=1, steps=1, size=Size(8192, 8192))
    assert "67,108,864 pixels" in refused(lambda: sd.paint(large))
    again = replace(large, size=None, hires=HiresSettings(8192, 8192, 0.5))
    assert "67,108,864 pixels" in refused(lambda: sd.paint(again))


def test_memory_is_asked_for_before_it_is_taken(sd: TextToImage) -> None:
    job = Job("a fox", seed=1, steps=1, size=Size(512, 512), budget=Budget(memory=1000))
    assert "memory=" in refused(lambda: sd.paint(job), MemoryLimitError)
    one = least_bytes(sd, Size(64, 64), 1, tiled=True)
    assert least_bytes(sd, Size(128, 64), 3, tiled=True) == 6 * one
    assert least_bytes(sd, Size(64, 64), 1, tiled=False) >= one
    free = free_bytes(sd.device)
    assert free is None or free > 0


def test_tokens_are_counted_as_they_are_read(sd: TextToImage) -> None:
    long = Job("a fox " * 60, dialect="a1111", steps=1, seed=1)
    sd.paint(long)
    small = Budget(tokens=100)
    assert "tokens" in refused(lambda: sd.paint(replace(long, budget=small)))
    turns = Job("[a|b] fox", dialect="a1111", steps=40, seed=1, budget=Budget(tokens=200))
    sd.paint(turns)  # two texts, however often they are read
    several = [replace(long, prompt="a fox " * n) for n in (50, 120, 200, 300)]
    with pytest.raises(UsageError, match="of these lengths"):
        sd.paint([replace(job, budget=Budget(tokens=1000)) for job in several])


@pytest.mark.parametrize("text", ["", "steps", "steps=", "steps=-1", "stpes=3", "steps=1e9", "=3"])
def test_a_budget_in_letters_is_refused_with_its_parts(text: str) -> None:
    with pytest.raises(UsageError, match="letters, tokens, steps"):
        Budget.parse([text])
    assert Budget.parse(["steps=3", "pixels=1_000"]) == Budget(steps=3, pixels=1000)
