"""PNG files that say how they were made, and that are never half-written nor overwritten.

Two text chunks: `parameters`, in the form that Stable Diffusion web UI writes and most tools read,
and `sdcore`, the same and more as JSON, which is exact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore import __version__
from sdcore.errors import FileError

if TYPE_CHECKING:
    from PIL.Image import Image

_KARRAS = " karras"
# Names that the web UI shows where they are not ours in capitals.
_SAMPLER_NAMES = {"pndm": "PLMS", "euler": "Euler", "euler a": "Euler a", "heun": "Heun"}
_SAMPLER_NAMES |= {"unipc": "UniPC"}


@dataclass(frozen=True)
class ImageSettings:
    """Everything that one image depends on, apart from the model's weights and the machine."""

    prompt: str
    negative_prompt: str | None
    seed: int
    steps: int
    guidance_scale: float
    guidance_rescale: float
    scheduler: str
    width: int
    height: int
    clip_skip: int
    model: str
    precision: str

    def to_json(self) -> str:
        return json.dumps({"version": __version__, **asdict(self)}, ensure_ascii=False)

    def to_parameters(self) -> str:
        """The web UI's text: prompt, negative prompt, one line of settings."""
        sampler, karras, _ = self.scheduler.partition(_KARRAS)
        pairs = {
            "Steps": self.steps,
            "Sampler": _SAMPLER_NAMES.get(sampler, sampler.upper()),
            "Schedule type": "Karras" if karras else None,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            # The web UI counts from 1 where diffusers and we count skipped layers.
            "Clip skip": self.clip_skip + 1 if self.clip_skip else None,
            "CFG rescale": f"{self.guidance_rescale:g}" if self.guidance_rescale else None,
            "RNG": "CPU",
            "Version": f"sdcore {__version__}",
        }
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        shown = (f"{key}: {_quote(value)}" for key, value in pairs.items() if value is not None)
        return "\n".join([*lines, ", ".join(shown)])


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def save_png(image: Image, path: Path, settings: ImageSettings | None = None) -> Path:
    """Write a picture and its settings; a number is added to the name where `path` exists.

    The file is written beside its target, synced, and then given its name, so that no reader ever
    sees half a picture.

    Returns:
        the path that was written.

    Raises:
        FileError: the folder cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if settings is not None:
        text.add_text("parameters", settings.to_parameters())
        text.add_text("sdcore", settings.to_json())
    draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                image.save(file, format="PNG", pnginfo=text)
                file.flush()
                os.fsync(file.fileno())
            return _give_name(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(
            f"{path} could not be written.",
            f"{error.strerror or error}",
            "Choose a folder that you may write to, with space left.",
        ) from error


def read_settings(path: Path) -> dict[str, object]:
    """The settings in a PNG that `save_png` wrote."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return json.loads(image.info["sdcore"])
    except FileNotFoundError as error:
        raise FileError(
            f"{path} is missing.", "There is no such file.", "Check the name."
        ) from error
    except (OSError, UnidentifiedImageError, KeyError, ValueError, TypeError) as error:
        raise FileError(
            f"{path} does not say how it was made.",
            f"It has no readable sdcore text ({type(error).__name__}).",
            "Use a PNG written by sdcore that no other program has saved since.",
        ) from error


def _give_name(draft: Path, path: Path) -> Path:
    for target in _numbered(path):
        try:
            # A link, unlike a rename, refuses to replace a file that another process just wrote.
            os.link(draft, target)
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if target.exists():
                continue
            os.rename(draft, target)
        return target
    raise AssertionError("unreachable")


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 1
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
