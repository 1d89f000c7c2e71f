"""Presets: how models of few steps are run, by the words of those who published them.

| preset    | published by                                              |
|-----------|-----------------------------------------------------------|
| turbo     | Sauer et al. 2023 (arXiv 2311.17042), SD-Turbo, SDXL-Turbo |
| lightning | Lin et al. 2024 (arXiv 2402.13929), SDXL-Lightning        |
| hyper     | Ren et al. 2024 (arXiv 2404.13686), Hyper-SD              |
| lcm       | Luo et al. 2023 (arXiv 2310.04378), LCM and LCM-LoRA      |
| tcd       | Zheng et al. 2024 (arXiv 2402.19159), TCD-LoRA            |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcore.checks import check_choice


@dataclass(frozen=True)
class Preset:
    """How a model of few steps is run; a guidance scale of 1 is none."""

    steps: int
    guidance_scale: float
    scheduler: str


PRESETS = {
    "turbo": Preset(1, 1.0, "euler a trailing"),
    "lightning": Preset(4, 1.0, "euler trailing"),
    "hyper": Preset(4, 1.0, "ddim trailing"),
    "lcm": Preset(4, 1.0, "lcm"),
    "tcd": Preset(4, 1.0, "tcd"),
}
# A UNet that is told the guidance scale was trained with scales of this size.
_TOLD_SCALE = 8.0
# What people write of their files. A word counts alone or between marks, not within another.
_NOTES = ("modelspec.title", "modelspec.description", "ss_output_name", "ss_base_model_version")
_WORD = re.compile(rf"(?<![a-z])({'|'.join(PRESETS)})(?![a-z])", re.IGNORECASE)
_OF_CLASSES = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}


def find_preset(name: str) -> Preset:
    """The preset of a name. UsageError for one that there is not."""
    known = str(name).lower()
    check_choice("preset", known, tuple(PRESETS))
    return PRESETS[known]


def preset_of_notes(notes: Mapping[str, str]) -> str | None:
    """The preset that a weight file's notes name; None where they name none, or several."""
    found = {word.lower() for key in _NOTES for word in _WORD.findall(notes.get(key, ""))}
    return found.pop() if len(found) == 1 else None


def preset_of_settings(scheduler: Mapping[str, Any], unet: Mapping[str, Any]) -> str | None:
    """The preset that a folder's settings tell of.

    LCM and TCD by the scheduler, or by a UNet that is told the guidance scale; SD-Turbo and
    SDXL-Turbo were published with an ancestral scheduler whose steps are spread by "trailing".
    """
    if unet.get("time_cond_proj_dim") is not None:
        return "lcm"
    name = scheduler.get("_class_name")
    spread = scheduler.get("timestep_spacing"), scheduler.get("prediction_type", "epsilon")
    if name == "EulerAncestralDiscreteScheduler" and spread == ("trailing", "epsilon"):
        return "turbo"
    return _OF_CLASSES.get(str(name))


def scale_of_preset(preset: Preset, told: bool) -> float:
    """The guidance scale of a preset; `told` is for a UNet that is told it."""
    return _TOLD_SCALE if told else preset.guidance_scale
