"""PNG files that say how they were made, and that are never half-written nor overwritten.

Two text chunks: `parameters`, in the form that Stable Diffusion web UI writes and most tools read,
and `sdcore`, the same and more as JSON, which is exact. Read are these and ComfyUI's, from PNG, and
what the web UI puts into the EXIF comment of JPEG and WebP. Whatever a picture says is data: it has
limits, nothing in it is executed, no path in it is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sdcore.errors import FileError, warning_filter
from sdcore.files.atomic import write_new
from sdcore.files.opening import open_file
from sdcore.job.record import ImageSettings
from sdcore.metadata.comfy import recipe_of_graph
from sdcore.metadata.parameters import write_parameters
from sdcore.metadata.recipe import Recipe, recipe_of_settings
from sdcore.metadata.web_ui import recipe_of_parameters

if TYPE_CHECKING:
    from PIL.Image import Image

# The web UI's text, ours, ComfyUI's graph.
TEXTS = ("parameters", "sdcore", "prompt")
LONGEST_TEXT = 4 << 20
_MOST_PIXELS = 64 << 20
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286


def save_png(image: Image, path: Path, settings: ImageSettings | None = None) -> Path:
    """Write a picture and its settings; a number is added to the name where `path` exists.

    Returns:
        the path that was written.

    Raises:
        FileError: the folder cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if settings is not None:
        # A lone surrogate has no place in a file; the JSON carries it.
        parameters = write_parameters(settings).encode("utf-8", "replace").decode()
        text.add_text("parameters", parameters)
        text.add_text("sdcore", settings.to_json())
    return write_new(path, lambda draft: image.save(draft, format="PNG", pnginfo=text))


def read_texts(path: Path) -> dict[str, str]:
    """What a PNG, JPEG or WebP says about how it was made: those of `TEXTS` that are there.

    Where a PNG has a text twice, the last one counts.

    Raises:
        FileError: no such file, no such picture, a text over 4 MiB, or nothing said.
    """
    with open_file(path) as file:
        try:
            texts = _texts(file)
        except MemoryError:
            raise
        except Exception as error:  # Pillow has no short list of errors for damaged files
            why = " ".join(str(error).split()) or type(error).__name__
            raise _no_settings(path, f"It cannot be read as a picture: {why:.200}.") from error
    if not texts:
        raise _no_settings(path, f"It holds none of the texts {', '.join(TEXTS)}.")
    for name, text in texts.items():
        if len(text) > LONGEST_TEXT:
            raise _no_settings(path, f"Its text {name!r} is over {LONGEST_TEXT >> 20} MiB.")
    return texts


def read_settings(path: Path) -> ImageSettings:
    """The settings in a PNG that `save_png` wrote. FileError where there are none."""
    texts = read_texts(path)
    if "sdcore" not in texts:
        raise _no_settings(path, f"It holds {', '.join(texts)} and no sdcore text.")
    try:
        return ImageSettings.from_json(texts["sdcore"])
    except ValueError as error:
        raise _no_settings(path, f"Its sdcore text cannot be used: {error}.") from error


def read_recipe(path: Path) -> Recipe:
    """How to paint a picture again, from ours, ComfyUI's or the web UI's text, in this order.

    Raises:
        FileError: as `read_texts`; or the text cannot be followed, with the reason.
    """
    texts = read_texts(path)
    if "sdcore" in texts:
        return recipe_of_settings(read_settings(path))
    name = "prompt" if "prompt" in texts else "parameters"
    try:
        read = recipe_of_graph if name == "prompt" else recipe_of_parameters
        return read(texts[name])
    except ValueError as error:
        raise _no_settings(path, f"Its text {name!r} cannot be followed: {error}.") from error


def _texts(file: BinaryIO) -> dict[str, str]:
    from PIL import Image

    with (
        warning_filter("ignore", module=r"PIL\."),  # about EXIF values that are not asked for
        warning_filter("error", Image.DecompressionBombWarning),
        Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image,
    ):
        found = {name: image.info[name] for name in TEXTS if name in image.info}
        if not found and image.format == "PNG" and image.width * image.height <= _MOST_PIXELS:
            image.load()  # some programs write their text behind the pixels
            found = {name: image.info[name] for name in TEXTS if name in image.info}
        if not found:
            comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
            found = {"parameters": _decode_comment(comment)} if comment else {}
    return {name: str(text) for name, text in found.items() if str(text).strip()}


def _decode_comment(comment: bytes | str) -> str:
    """The text of an EXIF UserComment: 8 bytes that name the code, then the text."""
    if isinstance(comment, str):
        return comment
    code, text = comment[:8], comment[8:]
    if code.startswith(b"UNICODE"):
        # UTF-16; the web UI writes the high byte first, and some tools do not.
        swapped = text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if swapped else "utf-16-be", "replace")
    return text.decode("utf-8", "replace") if code.startswith(b"ASCII") else ""


def _no_settings(path: Path, why: str) -> FileError:
    return FileError(
        f"{path} does not say how it was made.",
        why,
        "Use a picture as sdcore, Stable Diffusion web UI or ComfyUI saved it.",
    )
