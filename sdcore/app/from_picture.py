"""--from: the flags that a picture's own text stands for.

Flags given beside --from come first. What the picture says is data: its model and its LoRAs are
names, looked for only where --model, --lora and --lora-folder point.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app import adapters
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore import TextToImage
    from sdcore.metadata.image_settings import ImageSettings
    from sdcore.metadata.recipe import Recipe
    from sdcore.pipeline.text_to_image import TextToImageResult

_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LARGEST_BATCH = 64
_CHANGES = (
    *("negative_prompt", "seed", "steps", "guidance_scale", "guidance_rescale", "dialect", "size"),
    *("width", "height", "scheduler", "clip_skip", "images", "batch_size", "attention", "hires"),
)
_SAME_NAMES = ("negative_prompt", "seed", "steps", "guidance_scale", "guidance_rescale", "dialect")


def add_from_flag(parser: argparse.ArgumentParser) -> None:
    text = "paint a picture again, from what its file says; other flags come first (default: no)"
    parser.add_argument("--from", dest="source", type=Path, metavar="PICTURE", help=text)
    parser.set_defaults(place=None)


def read_source(options: argparse.Namespace) -> Recipe | None:
    """What the picture of --from says; None without the flag."""
    if options.source is None:
        return None
    from sdcore.metadata.png import read_recipe

    recipe = read_recipe(options.source)
    if recipe.settings is not None and recipe.settings.source is not None:
        raise UsageError(
            f"--from {options.source} cannot be used here.",
            "It was painted from another picture, which the file does not hold.",
            "Use `sdcore image` with that picture.",
        )
    if options.model is None and not _is_embedded(recipe):
        known = repr(recipe.model) if recipe.model else "a model that it does not name"
        digits = f" (hash {recipe.model_hash[:10]})" if recipe.model_hash else ""
        raise UsageError(
            f"--from {options.source} needs --model.",
            f"The picture was painted with {known:.200}{digits}; a name in a picture is not looked "
            "for on this computer.",
            "Name the folder or the file of that model.",
        )
    return recipe


def fill(
    options: argparse.Namespace, recipe: Recipe | None
) -> tuple[argparse.Namespace, Recipe | None]:
    """The flags with those that were not given taken from the picture.

    The recipe that comes back names the LoRAs that are missing among its differences.
    """
    if recipe is None:
        return options, None
    recipe = adapters.without_missing(options, recipe)
    filled = copy.copy(options)
    given = {name: getattr(recipe, name) for name in _SAME_NAMES}
    if options.size is None and options.width is None and options.height is None:
        given |= {"width": recipe.width, "height": recipe.height}
    own = recipe.settings is not None and recipe.settings.own_scheduler
    given["scheduler"] = None if own else recipe.scheduler
    if recipe.settings is not None:
        given["precision"] = _PRECISIONS.get(recipe.settings.precision)
        given["attention"] = recipe.settings.attention
        given["prediction_type"] = recipe.settings.prediction_type
    for name, value in given.items():
        if getattr(filled, name) is None:
            setattr(filled, name, value)
    _repeat_batch(options, filled, recipe)
    if filled.hires is None and recipe.hires is not None:
        strength = options.hires_strength or recipe.hires.strength
        filled.hires = replace(recipe.hires, strength=strength)
    filled.lora = adapters.with_recipe(options, recipe)
    filled.prompts = options.prompts or [recipe.prompt]
    return filled, recipe


def more_arguments(options: argparse.Namespace, recipe: Recipe | None) -> dict[str, Any]:
    """Arguments of the pipeline for which there is no flag, or one that can only be set."""
    if recipe is None or recipe.settings is None:
        return {"tiled": options.tiled}
    from sdcore.sampling.sizes import SizeConditioning

    settings = recipe.settings
    sizes = {
        "size_conditioning": settings.size,
        "negative_size_conditioning": settings.negative_size,
    }
    told = {name: size and SizeConditioning(**vars(size)) for name, size in sizes.items()}
    return {"tiled": options.tiled or settings.tiled, **told}


def _repeat_batch(options: argparse.Namespace, filled: argparse.Namespace, recipe: Recipe) -> None:
    """As many images at once as there were: their number changes the last digits of each."""
    place, count = recipe.settings.batch if recipe.settings else (0, 1)
    first = (recipe.seed or 0) - place
    changed = options.prompts or any(getattr(options, name) is not None for name in _CHANGES)
    if changed or count == 1 or not 0 <= place < count <= _LARGEST_BATCH or first < 0:
        return
    filled.images = filled.batch_size = count
    filled.seed, filled.place = first, place
    print(
        f"{count} images are painted and one is kept, as it was one of {count} painted at once; "
        "--batch-size 1 paints it alone, the same but for the last digits",
        file=sys.stderr,
    )


def kept(
    options: argparse.Namespace, results: Iterable[TextToImageResult]
) -> Iterator[TextToImageResult]:
    """The results, or of a batch that is repeated only the picture that was asked for."""
    for result in results:
        if options.place is None:
            yield result
        else:
            one = slice(options.place, options.place + 1)
            yield replace(
                result,
                images=result.images[one],
                latents=result.latents[one],
                settings=result.settings[one],
            )


def fit(
    options: argparse.Namespace, recipe: Recipe | None, pipe: TextToImage
) -> argparse.Namespace:
    """What depends on the model that was loaded; tells what cannot be the same."""
    if recipe is None:
        return options
    fitted = copy.copy(options)
    if options.clip_skip is None:
        fitted.clip_skip = recipe.clip_skip_for(xl=pipe.kind.penultimate)
    print(f"from {options.source}: a picture by {recipe.origin}", file=sys.stderr)
    beyond = _beyond(recipe.settings) if recipe.settings else []
    for why in (*recipe.differences, *beyond, *_other_model(options, recipe, pipe)):
        print(f"  not the same: {why}", file=sys.stderr)
    return fitted


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


def _other_model(options: argparse.Namespace, recipe: Recipe, pipe: TextToImage) -> list[str]:
    """In words, if the model is not the picture's as far as its hash tells, or else its name."""
    from sdcore.files.hashes import weights_hash
    from sdcore.metadata.recipe import SDCORE
    from sdcore.pipeline.text_to_image import EMBEDDED

    path = Path(options.model) if options.model else EMBEDDED
    ours, theirs = pipe.defaults.name, recipe.model_hash
    # The hash of the other tools is that of a single file.
    if theirs and (path.is_file() or (path.is_dir() and recipe.origin == SDCORE)):
        found = weights_hash(path, options.variant)
        if found.startswith(theirs):
            return []
        return [f"the model: its hash is {found[:10]}, the picture's {theirs[:10]}"]
    if recipe.model and recipe.model != ours:
        return [f"the model: it is {ours!r:.80}, the picture's {recipe.model!r:.80}"]
    return [f"the hash of the model ({theirs[:10]}) is that of a single file"] if theirs else []
