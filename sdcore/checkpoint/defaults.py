"""What a model's folder says about how it is best run, and whether it is one that can be run."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdcore.diffusion.schedulers import canonical_name
from sdcore.errors import FileError, UsageError
from sdcore.files.folder import ModelIndex, read_model_index
from sdcore.files.jsonfile import read_json
from sdcore.text.known_words import KnownWords, read_known_words

FILE_NAME = "sampling.json"

# Part -> the classes of diffusers and transformers whose files can be read.
_REQUIRED = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": None,
}
_FIRST = ("tokenizer", "text_encoder")
_SECOND = {"tokenizer_2": _REQUIRED["tokenizer"], "text_encoder_2": _REQUIRED["text_encoder"]}
_NOT_RUN = ("safety_checker", "feature_extractor")
# For models trained down to pure noise, which guidance overexposes: Lin et al. 2023
# (arXiv:2305.08891), section 3.4.
ZERO_SNR_RESCALE = 0.7


@dataclass(frozen=True)
class ModelDefaults:
    """How a model is run when the call does not say.

    An optional sampling.json in the model's folder holds any of these but the last three.

    Attributes:
        strength: how much of a picture is painted anew, see `TextToImage.__call__`.
        scheduler: a name in `sdcore.diffusion.schedulers.SCHEDULERS`; None is the folder's own.
        width, height: pixels; None is what the UNet was trained on.
        name: of the model, for the settings in a picture.
        zeros_for_no_prompt: a missing negative prompt is zeros, not the text of "" (SDXL base).
        words: what it was taught to read, from the words.json beside it; None is every word.
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


def find_components(folder: Path) -> ModelIndex:
    """The folder's model_index.json, once it lists everything that painting needs.

    Raises:
        FileError: a part is missing or of a class that is not supported.
    """
    index = read_model_index(folder)
    wanted = dict(_REQUIRED)
    if any(name in index.components for name in _SECOND):
        wanted |= _SECOND
        if not any(name in index.components for name in _FIRST):  # SDXL's refiner
            wanted = {part: classes for part, classes in wanted.items() if part not in _FIRST}
    for part, classes in wanted.items():
        found = index.components.get(part)
        if found is None:
            there = ", ".join(index.components) or "nothing"
            raise FileError(
                f"{folder} has no {part}.",
                f"Its model_index.json ({index.pipeline}) lists: {there}.",
                "Use a Stable Diffusion 1.x, 2.x or XL model.",
            )
        if classes is not None and found not in classes:
            raise FileError(
                f"{folder}: the {part} is a {found}, which is not supported.",
                f"A {index.pipeline} was found where {' or '.join(classes)} can be read.",
                "Use a Stable Diffusion 1.x, 2.x or XL model.",
            )
    for part in index.components:
        if part not in wanted and part not in _NOT_RUN:
            raise FileError(
                f"{folder} has a part {part!r} that is not supported.",
                "The picture would not be the one that the model was made for.",
                "Use a Stable Diffusion 1.x, 2.x or XL model.",
            )
    return index


def read_defaults(folder: Path, index: ModelIndex) -> ModelDefaults:
    """The defaults of a folder, from its kind, its sampling.json and its words.json."""
    xl = "text_encoder_2" in index.components
    scheduler = folder / "scheduler" / "scheduler_config.json"
    zero_snr = scheduler.is_file() and read_json(scheduler).get("rescale_betas_zero_snr", False)
    defaults = ModelDefaults(
        guidance_scale=5.0 if xl else 7.5,
        guidance_rescale=ZERO_SNR_RESCALE if zero_snr else 0.0,
        strength=0.8 if "text_encoder" in index.components else 0.3,  # the refiner, as in diffusers
        name=folder.resolve().name,
        zeros_for_no_prompt=bool(index.settings.get("force_zeros_for_empty_prompt", False)),
        words=read_known_words(folder),
    )
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


def _check_default(path: Path, key: str, value: Any) -> None:
    number = (int, float)
    kinds: dict[str, tuple[type, ...]] = {"scheduler": (str,), "strength": number}
    kinds |= {"guidance_scale": number, "guidance_rescale": number}
    names = {str: "text", int: "a whole number", float: "a number"}
    expected = kinds.get(key, (int,))
    if isinstance(value, bool) or not isinstance(value, expected):
        raise FileError(
            f"{path}: {key} is {value!r}.",
            f"It must be {names[expected[-1]]}.",
            "Correct the file.",
        )
    if key == "scheduler":
        try:
            canonical_name(value)
        except UsageError as error:
            raise FileError(f"{path}: {error.what}", error.why, error.hint) from error
