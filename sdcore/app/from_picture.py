"""--from: the jobs that a picture's own text stands for.

Flags beside --from come first. What the picture says is data: its model and its LoRAs are names,
looked for only where --model, --lora and --lora-folder point.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app.command import tell
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.app.adapters import Adapters
    from sdcore.app.model_choice import ModelChoice
    from sdcore.job.job import Job
    from sdcore.job.record import ImageSettings
    from sdcore.metadata.recipe import Recipe
    from sdcore.pipeline.result import TextToImageResult
    from sdcore.pipeline.text_to_image import TextToImage

_LARGEST_BATCH = 64
# Flags beside those of a job with which the batch of a picture is not painted again.
_CHANGES = ("size", "width", "height", "images", "batch_size", "hires")


def add_from_flag(parser: argparse.ArgumentParser) -> None:
    text = "paint a picture again, from what its file says; other flags come first (default: no)"
    parser.add_argument("--from", dest="from_picture", type=Path, metavar="PICTURE", help=text)


@dataclass(frozen=True)
class Again:
    """A picture that is painted again.

    Attributes:
        recipe: what it says, without the adapters that are not here.
        model: that the flags name.
        images: how many are painted, as it was one of so many painted at once.
        place: which of them is kept; None keeps all.
    """

    path: Path
    recipe: Recipe
    model: ModelChoice
    images: int = 1
    place: int | None = None

    @property
    def job(self) -> Job:
        return self.recipe.job

    def settings(self, *, keep_size: bool) -> dict[str, Any]:
        """The fields of its job, as arguments of `make_jobs`."""
        other = ("prompt", "source", "hires", "loras", "embeddings")
        names = [field.name for field in fields(self.job) if field.name not in other]
        settings = {name: getattr(self.job, name) for name in names}
        if not keep_size:
            settings["size"] = None
        if self.place is not None:
            settings["seed"] = (self.job.seed or 0) - self.place
        return settings

    def model_choice(self, model: ModelChoice) -> ModelChoice:
        """The model of the flags, run as the picture says where they do not."""
        from sdcore.app.model_choice import PRECISION_OF_TYPE

        settings = self.recipe.settings
        if settings is None:
            return model
        return replace(
            model,
            precision=model.precision or PRECISION_OF_TYPE.get(settings.precision),
            prediction_type=model.prediction_type or settings.prediction_type,
            attention=model.attention or _backend("attention", settings.job.attention),
            convolution=model.convolution or _backend("convolution", settings.job.convolution),
        )

    def fitted(self, jobs: Sequence[Job], pipe: TextToImage, *, keep_clip_skip: bool) -> list[Job]:
        """What depends on the model that was loaded; says what cannot be the same."""
        tell(f"from {self.path}: a picture by {self.recipe.origin}")
        settings = self.recipe.settings
        beyond = _beyond(settings) if settings else []
        for why in (*self.recipe.differences, *beyond, *self._other_model(pipe)):
            tell(f"  not the same: {why}")
        if keep_clip_skip:
            return list(jobs)
        skip = self.recipe.clip_skip_for(pipe.kind.penultimate)
        return [replace(job, clip_skip=skip) for job in jobs]

    def kept(self, result: TextToImageResult) -> TextToImageResult:
        """The result, or of a batch that is repeated only the picture that was asked for."""
        if self.place is None:
            return result
        one = slice(self.place, self.place + 1)
        return replace(
            result,
            images=result.images[one],
            latents=result.latents[one],
            jobs=result.jobs[one],
            settings=result.settings[one],
        )

    def _other_model(self, pipe: TextToImage) -> list[str]:
        """In words, if the model is not the picture's by its hash, or else by its name."""
        from sdcore.files.hashes import weights_hash
        from sdcore.metadata.recipe import SDCORE
        from sdcore.pipeline.text_to_image import EMBEDDED

        recipe = self.recipe
        path = Path(self.model.name) if self.model.name else EMBEDDED
        ours, theirs = pipe.defaults.name, recipe.model_hash
        # The hash of the other tools is that of a single file.
        if theirs and (path.is_file() or (path.is_dir() and recipe.origin == SDCORE)):
            found = weights_hash(path, self.model.variant)
            if found.startswith(theirs):
                return []
            return [f"the model: its hash is {found[:10]}, the picture's {theirs[:10]}"]
        if recipe.model and recipe.model != ours:
            return [f"the model: it is {ours!r:.80}, the picture's {recipe.model!r:.80}"]
        return [f"the hash of the model ({theirs[:10]}) is that of a single file"] if theirs else []


def _backend(kind: str, name: str) -> str:
    """The backend that painted the picture, where it runs here; else what is fastest."""
    from sdcore import attention_choice, convolution

    room = {"attention": attention_choice, "convolution": convolution}[kind]
    if name == "auto" or (missing := room.unavailable(name)) is None:
        return name
    tell(f"not the same: the {kind} was {name}: {missing}")
    return "auto"


def read(options: argparse.Namespace, adapters: Adapters, prompts: Sequence[str]) -> Again | None:
    """What the picture of --from says; None without the flag."""
    if options.from_picture is None:
        return None
    from sdcore.app.flags import budget, job_settings, model_choice
    from sdcore.metadata.png import read_recipe

    recipe = read_recipe(options.from_picture, budget(options))
    if recipe.settings is not None and recipe.settings.source is not None:
        raise UsageError(
            f"--from {options.from_picture} cannot be used here.",
            "It was painted from another picture, which the file does not hold.",
            "Use `sdcore image` with that picture.",
        )
    if options.model is None and not _is_embedded(recipe):
        known = repr(recipe.model) if recipe.model else "a model that it does not name"
        digits = f" (hash {recipe.model_hash[:10]})" if recipe.model_hash else ""
        raise UsageError(
            f"--from {options.from_picture} needs --model.",
            f"The picture was painted with {known:.200}{digits}; a name in a picture is not looked "
            "for on this computer.",
            "Name the folder or the file of that model.",
        )
    again = Again(options.from_picture, adapters.without_missing(recipe), model_choice(options))
    changes = {name for name in _CHANGES if getattr(options, name) is not None}
    settings = {name for name in job_settings(options) if name != "budget"}
    changed = bool(prompts or changes or settings)
    return again if changed else _as_one_of_a_batch(again)


def _as_one_of_a_batch(again: Again) -> Again:
    """The last digits of a picture depend on the batch, so all of it is painted again."""
    settings = again.recipe.settings
    place, count = settings.batch if settings else (0, 1)
    first = (again.job.seed or 0) - place
    if count == 1 or not 0 <= place < count <= _LARGEST_BATCH or first < 0:
        return again
    tell(
        f"{count} images are painted and one is kept, as it was one of {count} painted at once; "
        "--batch-size 1 paints it alone, the same but for the last digits"
    )
    return replace(again, images=count, place=place)


def _beyond(settings: ImageSettings) -> list[str]:
    """What a run of ours had that cannot be had again from its picture alone."""
    found = [f"it was painted with {name}=, which no file holds" for name in settings.beyond]
    if settings.refiner is not None:
        name, share = settings.refiner.model, settings.refiner.switch_at
        found.append(f"the refiner {name!r:.80} painted the steps from {share:g} on")
    return found


def _is_embedded(recipe: Recipe) -> bool:
    from sdcore.metadata.recipe import SDCORE
    from sdcore.pipeline.text_to_image import EMBEDDED

    return recipe.origin == SDCORE and recipe.model == EMBEDDED.name
