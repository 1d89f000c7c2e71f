"""What a model's folder says about how it is best run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdcore.checkpoint.kind import ModelKind
from sdcore.checks import check_int
from sdcore.diffusion.guidance import Guidance
from sdcore.diffusion.presets import (
    find_preset,
    preset_of_notes,
    preset_of_settings,
    scale_of_preset,
)
from sdcore.diffusion.sampler_names import canonical_name
from sdcore.diffusion.scheduler_config import TIMES_LIMIT
from sdcore.diffusion.steps import check_share
from sdcore.errors import FileError, UsageError
from sdcore.files.folder import ModelIndex
from sdcore.files.jsonfile import read_json
from sdcore.size import check_side
from sdcore.text.known_words import KnownWords, read_known_words

FILE_NAME = "sampling.json"

# For models trained down to pure noise, which guidance overexposes: Lin et al. 2023
# (arXiv:2305.08891), section 3.4.
ZERO_SNR_RESCALE = 0.7


@dataclass(frozen=True)
class ModelDefaults:
    """How a model is run when the call does not say.

    An optional sampling.json in the model's folder holds any of these but the last three.

    Attributes:
        strength: how much of a picture is painted anew, see `TextToImage.__call__`.
        scheduler: a sampler's name, see `sdcore.make_scheduler`; None is the folder's own.
        width, height: pixels; None is what the UNet was trained on.
        name: of the model, for the settings in a picture.
        zeros_for_no_prompt: a missing negative prompt is zeros, not the text of "" (SDXL base).
        words: what it was taught to read, from the words.json in its folder; None is every word.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    strength: float = 0.8
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    name: str = ""
    zeros_for_no_prompt: bool = False
    words: KnownWords | None = None

    def choose(self, **choices: Any) -> ModelDefaults:
        """These, with every choice that is not None in place of the default."""
        return replace(self, **{k: v for k, v in choices.items() if v is not None})

    def with_preset(self, name: str, *, told: bool = False) -> ModelDefaults:
        """These, with the steps, guidance and scheduler of a preset.

        Args:
            name: in `sdcore.diffusion.presets.PRESETS`.
            told: the UNet is told the guidance scale.

        Raises:
            UsageError: there is no such preset.
        """
        preset = find_preset(name)
        scale = scale_of_preset(preset, told)
        return replace(self, steps=preset.steps, guidance_scale=scale, scheduler=preset.scheduler)


def read_defaults(
    folder: Path, index: ModelIndex, kind: ModelKind, notes: Mapping[str, str] | None = None
) -> ModelDefaults:
    """The defaults of a model.

    They are told by its kind, by the preset that its settings or notes name, and before these by
    its folder's sampling.json; its words by its words.json.

    Args:
        notes: of the header of a single file.
    """
    scheduler = _settings(folder, "scheduler/scheduler_config.json")
    unet = _settings(folder, "unet/config.json")
    zero_snr = bool(scheduler.get("rescale_betas_zero_snr", False))
    defaults = ModelDefaults(
        guidance_scale=5.0 if kind.pooled_text else 7.5,
        guidance_rescale=ZERO_SNR_RESCALE if zero_snr else 0.0,
        strength=0.3 if kind.refiner else 0.8,  # as in diffusers
        name=folder.resolve().name,
        zeros_for_no_prompt=bool(index.settings.get("force_zeros_for_empty_prompt", False)),
        words=read_known_words(folder),
    )
    preset = preset_of_notes(notes or {}) or preset_of_settings(scheduler, unet)
    if preset is not None:
        told = unet.get("time_cond_proj_dim") is not None
        defaults = defaults.with_preset(preset, told=told)
    path = folder / FILE_NAME
    if not path.is_file():
        return defaults
    settings = read_json(path)
    known = [f.name for f in fields(ModelDefaults)][:-3]
    for key, value in settings.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise FileError(
                f"{path} has an unknown setting {key!r}.",
                f"It may hold: {', '.join(known)}.",
                f"Did you mean {near[0]!r}?" if near else "Remove it.",
            )
        _check_default(path, key, value)
    return replace(defaults, **settings)


def _settings(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _check_default(path: Path, key: str, value: Any) -> None:
    """Refuse what no job could say, before any weights are opened. Raises FileError."""
    try:
        if value is None or (key == "scheduler" and not isinstance(value, str)):
            kind = "text" if key == "scheduler" else "a number"
            raise UsageError(f"{key} is {value!r:.80}.", f"It must be {kind}.", "Correct it.")
        if key == "scheduler":
            canonical_name(value)
        elif key == "strength":
            check_share(key, value)
        elif key == "steps":
            check_int(key, value, 1, TIMES_LIMIT, hint="25 are usual.")
        elif key in ("width", "height"):
            check_side(value, key)
        else:
            part: dict[str, Any] = {key.removeprefix("guidance_"): value}
            Guidance(**part)
    except UsageError as error:
        raise FileError(f"{path}: {error.what}", error.why, "Correct the file.") from error
