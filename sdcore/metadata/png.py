"""PNG files that say how they were made, and that are never half-written nor overwritten.

Two text chunks: `parameters`, in the form that Stable Diffusion web UI writes and most tools read,
and `sdcore`, the same and more as JSON, which is exact. Read are these and those of other programs,
see texts.py. Whatever a picture says is data: it has limits, nothing in it is executed, no path in
it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sdcore.errors import UsageError
from sdcore.files.atomic import write_new
from sdcore.job.budget import Budget
from sdcore.job.job import GENEROUS
from sdcore.job.record import ImageSettings
from sdcore.metadata.comfy import recipe_of_graph
from sdcore.metadata.invoke import INVOKE_TEXTS, recipe_of_invoke
from sdcore.metadata.other_tools import (
    EASY_TEXTS,
    recipe_of_easy,
    recipe_of_json,
    recipe_of_novelai,
)
from sdcore.metadata.parameters import write_parameters
from sdcore.metadata.recipe import Recipe, recipe_of_settings
from sdcore.metadata.texts import no_settings, read_texts
from sdcore.metadata.web_ui import recipe_of_parameters

if TYPE_CHECKING:
    from PIL.Image import Image


def save_png(image: Image, path: Path, settings: ImageSettings | None = None) -> Path:
    """Write a picture and its settings; a number is added to the name where `path` exists.

    Returns:
        the path that was written.

    Raises:
        FileError: the folder cannot be written.
    """
    return write_new(path, lambda draft: write_png(image, draft, settings))


def write_png(image: Image, file: Path | BinaryIO, settings: ImageSettings | None = None) -> None:
    """Write a picture and its settings into a file, whatever was in it."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if settings is not None:
        # A lone surrogate has no place in a file; the JSON carries it.
        parameters = write_parameters(settings).encode("utf-8", "replace").decode()
        text.add_text("parameters", parameters)
        text.add_text("sdcore", settings.to_json())
    image.save(file, format="PNG", pnginfo=text)


def read_settings(path: Path, budget: Budget = GENEROUS) -> ImageSettings:
    """The settings in a PNG that `save_png` wrote, with this budget. FileError where there are
    none."""
    texts = read_texts(path)
    if "sdcore" not in texts:
        raise no_settings(path, f"It holds {', '.join(texts)} and no sdcore text.")
    try:
        return ImageSettings.from_json(texts["sdcore"], budget)
    except ValueError as error:
        why = f"{error}".removesuffix(".")
        raise no_settings(path, f"Its sdcore text cannot be used: {why}.") from error


def read_recipe(path: Path, budget: Budget = GENEROUS) -> Recipe:
    """How to paint a picture again, from what the program that painted it wrote into it.

    Ours comes first, then ComfyUI's graph as it ran; where it cannot be followed, or there is none,
    the `parameters` text beside it, and then the graph as it was drawn.

    Args:
        budget: what a record of ours may ask for; others have the usual one.

    Raises:
        FileError: as `read_texts`; or no text can be followed, with the reason.
    """
    texts = read_texts(path)
    if "sdcore" in texts:
        return recipe_of_settings(read_settings(path, budget))
    failed: list[str] = []
    for name, read in _readers(texts):
        try:
            recipe = read()
        except ValueError as error:
            why = f"{error.what} {error.why}" if isinstance(error, UsageError) else f"{error}"
            failed.append(f"its text {name!r} cannot be followed: {why.removesuffix('.')}")
            continue
        return replace(recipe, differences=(*failed, *recipe.differences))
    why = "; ".join(failed) or f"it holds {', '.join(texts)}, which say nothing of it"
    raise no_settings(path, f"{why[0].upper()}{why[1:]}.")


def _readers(texts: dict[str, str]) -> Iterator[tuple[str, Callable[[], Recipe]]]:
    """What to read, and how, the most exact first."""
    easy = any(name in texts for name in EASY_TEXTS)
    if "prompt" in texts and not easy:
        yield "prompt", partial(recipe_of_graph, texts["prompt"])
    if "parameters" in texts:
        yield "parameters", partial(recipe_of_parameters_text, texts["parameters"])
    named = next((name for name in INVOKE_TEXTS if name in texts), None)
    if named is not None:
        yield named, partial(recipe_of_invoke, texts)
    if "workflow" in texts:
        yield "workflow", partial(recipe_of_graph, texts["workflow"])
    if "Comment" in texts:
        yield "Comment", partial(recipe_of_novelai, texts)
    if easy:
        yield "Stable Diffusion model", partial(recipe_of_easy, texts)


def recipe_of_parameters_text(text: str) -> Recipe:
    """The recipe in a `parameters` text: the web UI's, or JSON of SwarmUI or Fooocus.

    Raises:
        ValueError: it cannot be followed.
    """
    return recipe_of_json(text) or recipe_of_parameters(text)
