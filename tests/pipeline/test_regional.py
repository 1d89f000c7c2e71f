"""Regions of a job: the bits of the control alone, in a record, with edits, from the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from sdcore import (
    Job,
    PromptEdit,
    Region,
    Regions,
    RegionSettings,
    Size,
    TextToImage,
    job_from_dict,
    job_to_dict,
)
from sdcore.app import paint
from sdcore.errors import UsageError
from sdcore.prompt.tokens import read_tokens

FOX = RegionSettings("a red fox", (0, 0, 0.5, 1), "blurry")
TREE = RegionSettings("a tree", (0.5, 0.25, 1, 1))
JOB = Job(
    *("grass", "bad"), seed=3, steps=2, size=Size(64, 48), dialect="a1111", regions=(FOX, TREE)
)


@pytest.fixture(scope="module")
def pipe(sd_folder):
    return TextToImage.from_pretrained(sd_folder)


def test_they_paint_what_the_control_paints_and_are_in_the_record(pipe) -> None:
    result = pipe.paint(JOB)
    boxes = [Region(each.prompt, each.box, None, each.negative_prompt) for each in JOB.regions]
    control = Regions("grass", boxes, negative_prompt="bad")
    assert (control.prompt, control.negative_prompt) == (JOB.text, JOB.negative_text)
    same = replace(JOB, prompt=JOB.text, negative_prompt=JOB.negative_text, regions=())
    expected = pipe.paint(same, control)
    assert result.images[0].tobytes() == expected.images[0].tobytes()
    assert result.images[0].tobytes() != pipe.paint(same).images[0].tobytes()
    settings = result.settings[0]
    assert settings.beyond == () and settings.job.regions == JOB.regions
    again = job_from_dict(json.loads(json.dumps(job_to_dict(settings.job))))
    assert pipe.paint(again).images[0].tobytes() == result.images[0].tobytes()


def test_an_edit_goes_before_them(pipe) -> None:
    jobs = [JOB, replace(JOB, prompt="snow")]
    edit = PromptEdit(read_tokens([job.text for job in jobs], pipe.tokenizer, "a1111"))
    result = pipe.paint(jobs, edit)
    alone = pipe.paint(jobs)
    assert result.images[0].tobytes() == alone.images[0].tobytes()
    assert result.images[1].tobytes() != alone.images[1].tobytes()
    assert result.settings[1].beyond == ("control",)


def test_prompts_of_other_lengths_are_not_painted_at_once(pipe) -> None:
    long = replace(JOB, prompt="fox " * 100)
    with pytest.raises(UsageError, match="different lengths"):
        pipe.paint([JOB, long])
    assert pipe.paint(long).images


def test_the_command_paints_the_same(pipe, sd_folder, tmp_path) -> None:
    flags = ["--model", str(sd_folder), "--seed", "3", "--steps", "2", "--size", "64x48"]
    flags += ["--negative-prompt", "bad", "--dialect", "a1111", "--output", str(tmp_path / "a.png")]
    flags += ["--region", "a red fox@0,0,0.5,1", "--region", "a tree@0.5,0.25,1,1"]
    assert paint.main(["grass", *flags]) == 0
    job = replace(JOB, regions=(replace(FOX, negative_prompt=""), TREE))
    with Image.open(tmp_path / "a.png") as found:
        assert found.tobytes() == pipe.paint(job).images[0].tobytes()
    again = ["--model", str(sd_folder), "--from", str(tmp_path / "a.png")]
    assert paint.main([*again, "--output", str(tmp_path / "b.png")]) == 0
    one, other = (Image.open(tmp_path / name).tobytes() for name in ("a.png", "b.png"))
    assert one == other


@pytest.mark.parametrize(
    ("regions", "dialect", "why"),
    [
        ([FOX], "plain", "BREAK"),
        ([FOX], "comfy", "a1111"),
        ([FOX] * 33, "a1111", "32 at most"),
        ([("a", (0, 0, 1, 1))], "a1111", "RegionSettings"),
    ],
)
def test_what_cannot_be_painted_is_refused_with_the_job(regions, dialect, why) -> None:
    with pytest.raises(UsageError, match=why):
        Job("grass", dialect=dialect, regions=regions)


def test_boxes_and_prompts_of_a_region_are_checked(pipe) -> None:
    for box in ((0, 0, 0, 1), (0, 0, 2, 1), (0, 0, 1), "0011", (0, 0, float("nan"), 1), None):
        with pytest.raises(UsageError, match="box"):
            RegionSettings("a fox", box)  # pyright: ignore
    for prompt in ("", " ", 3):
        with pytest.raises(UsageError, match="no prompt"):
            RegionSettings(prompt, (0, 0, 1, 1))  # pyright: ignore
    with pytest.raises(UsageError, match="overlap"):
        pipe.paint(replace(JOB, regions=(FOX, replace(TREE, box=(0.2, 0, 1, 1)))))
    for text in ("a fox", "a fox@1,2", "a fox@0,0,0,0", "@0,0,1,1"):
        with pytest.raises(SystemExit):
            paint.main(["grass", "--dialect", "a1111", "--region", text])
