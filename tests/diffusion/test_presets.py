"""Presets: which notes and settings name one, and what it sets."""

from __future__ import annotations

import json
import shutil

import pytest

from sdcore import TextToImage
from sdcore.diffusion.levels import Trained
from sdcore.diffusion.presets import PRESETS, preset_of_notes, preset_of_settings
from sdcore.diffusion.schedulers import make_scheduler, set_steps, visited_levels
from sdcore.errors import UsageError
from tests.diffusion.test_schedulers import SD15
from tests.tiny import told_the_scale


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_begins_with_pure_noise(name, steps) -> None:
    scheduler = make_scheduler(PRESETS[name].scheduler, SD15)
    set_steps(scheduler, steps)
    most = Trained.of(make_scheduler("ddim", SD15).alphas_cumprod).most
    assert visited_levels(scheduler)[0] == pytest.approx(most, rel=1e-4)


@pytest.mark.parametrize(
    ("notes", "name"),
    [
        ({"modelspec.title": "Stable Diffusion XL Turbo 1.0"}, "turbo"),
        ({"modelspec.title": "juggernautXL_v9_Lightning_4S"}, "lightning"),
        ({"ss_output_name": "Hyper-SDXL-8steps-lora"}, "hyper"),
        ({"ss_output_name": "lcm_lora_sdxl"}, "lcm"),
        ({"modelspec.title": "TCD-SDXL-LoRA"}, "tcd"),
        ({"modelspec.title": "Hyperrealism, turbocharged"}, None),
        ({"modelspec.title": "a merge of Turbo and Lightning"}, None),
        ({"modelspec.author": "lcm"}, None),
        ({}, None),
    ],
)
def test_notes_name_a_preset_or_none(notes, name) -> None:
    assert preset_of_notes(notes) == name


def test_settings_name_a_preset_or_none() -> None:
    turbo = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    assert preset_of_settings(turbo, {}) == "turbo"
    assert preset_of_settings({**turbo, "prediction_type": "v_prediction"}, {}) is None
    assert preset_of_settings({**turbo, "timestep_spacing": "leading"}, {}) is None
    assert preset_of_settings({"_class_name": "LCMScheduler"}, {}) == "lcm"
    assert preset_of_settings({"_class_name": "TCDScheduler"}, {}) == "tcd"
    assert preset_of_settings(SD15, {"time_cond_proj_dim": 256}) == "lcm"
    assert preset_of_settings(SD15, {}) is None


def test_a_model_is_run_as_its_folder_or_the_caller_says(sd_folder, tmp_path) -> None:
    plain = TextToImage.from_pretrained(sd_folder)
    made = plain.with_preset("Lightning")
    job = made("a cat", seed=1).jobs[0]
    assert (job.steps, job.guidance_scale, job.scheduler) == (4, 1.0, "euler trailing")
    assert made("a cat", seed=1, steps=2).jobs[0].steps == 2, "the call comes first"
    assert plain.defaults.steps == 25, "the model itself is as before"
    with pytest.raises(UsageError, match="turbo or lightning or hyper or lcm or tcd"):
        plain.with_preset("ligthning")

    folder = told_the_scale(sd_folder, tmp_path / "lcm")
    job = TextToImage.from_pretrained(folder)("a cat", seed=1).jobs[0]
    assert (job.steps, job.guidance_scale, job.scheduler) == (4, 8.0, "lcm")
    (folder / "sampling.json").write_text(json.dumps({"steps": 6}))
    assert TextToImage.from_pretrained(folder).defaults.steps == 6, "what the folder says itself"
    shutil.rmtree(folder)


def test_a_short_run_that_begins_late_is_warned_of(sd_folder, recwarn) -> None:
    pipe = TextToImage.from_pretrained(sd_folder)
    said = r"4 steps of 'euler' begin at noise level 4\.\d+, not at 14\.6.*'euler sgm uniform'"
    with pytest.warns(UserWarning, match=said):
        pipe("a cat", seed=1, steps=4, scheduler="euler")
    recwarn.clear()
    pipe("a cat", seed=1, steps=4, scheduler="euler sgm uniform")
    pipe("a cat", seed=1, steps=9, scheduler="euler")
    assert not [each for each in recwarn if "noise level" in str(each.message)]
