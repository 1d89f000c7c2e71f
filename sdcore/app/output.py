"""Files that the commands write: where to, under which names, and pictures in a grid."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.errors import FileError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.pipeline.result import TextToImageResult


def save(result: TextToImageResult, output: Path) -> Iterator[Image]:
    """Write each picture with its settings and print its path; gives the pictures."""
    from sdcore.metadata.png import save_png

    for image, settings in zip(result.images, result.settings, strict=True):
        path = output if is_file(output) else output / f"{slug(settings.job.prompt)}.png"
        print(save_png(image, path, settings), flush=True)
        yield image


def save_grid(images: Sequence[Image], rows: int, columns: int, output: Path) -> Path:
    """Write all pictures as one, on white."""
    from PIL import Image

    from sdcore.metadata.png import save_png

    if rows > 1 and columns == 1:  # one picture of each prompt: nearly a square
        columns = int(len(images) ** 0.5 + 0.999)
        rows = -(-len(images) // columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for place, image in enumerate(images):
        grid.paste(image, (place % columns * width, place // columns * height))
    path = output.with_stem(f"{output.stem}-grid") if is_file(output) else output / "grid.png"
    return save_png(grid, path)


def is_file(path: Path) -> bool:
    """Whether --output names a PNG file and not a folder; UsageError for other kinds of file."""
    if path.suffix.lower() == ".png":
        return not path.is_dir()
    if path.suffix and not path.is_dir():
        raise UsageError(
            f"--output {path} cannot be written.",
            "Pictures are PNG files, which keep their settings.",
            "Use a name that ends in .png, or a folder.",
        )
    return False


def check_output(path: Path) -> None:
    """Refuse before painting what could not be written after it."""
    folder = path.parent if is_file(path) else path
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(
            f"--output {path} cannot be written.",
            f"{folder} is not a folder that you may write to.",
            "Choose another folder.",
        )


def slug(prompt: str) -> str:
    """The prompt's first words as a file name on every system."""
    kept = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
    return "-".join(kept)[:60].rstrip("-") or "image"
