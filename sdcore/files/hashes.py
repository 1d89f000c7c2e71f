"""Hashes by which files are told apart, as the public tools take them.

Stable Diffusion web UI shows the first 10 digits for a model, and 12 for a LoRA or an embedding.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sdcore.errors import FileError
from sdcore.files.opening import open_file

_HEADER_LENGTH = 8
LEGACY_WINDOW = (0x100000, 0x10000)  # where the web UI's first hash of a file began, and its length
LEGACY_DIGITS = 8


def file_hash(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal. Raises FileError."""
    return _hash(path, from_tensors=False)


def tensor_hash(path: Path) -> str:
    """SHA-256 of a safetensors file behind its header, so that notes in it do not count.

    kohya's trainers write it into the header as `sshs_model_hash`. Raises FileError.
    """
    return _hash(path, from_tensors=True)


def legacy_hash(path: Path) -> str:
    """The web UI's first hash of a file: 8 digits, of 64 KiB at 1 MiB alone. Raises FileError."""
    start, length = LEGACY_WINDOW
    with open_file(path) as file:
        file.seek(start)
        return hashlib.sha256(file.read(length)).hexdigest()[:LEGACY_DIGITS]


def weights_hash(path: Path, variant: str | None = None) -> str:
    """SHA-256 of a model's one file, or of the UNet's in a folder, by which models mostly differ.

    Args:
        variant: as in `TextToImage.from_pretrained`.

    Raises:
        FileError: nothing there that could be hashed.
    """
    if not path.is_dir():
        return file_hash(path)
    ending = re.escape(f".{variant}") if variant else ""
    name = re.compile(rf"diffusion_pytorch_model{ending}(-\d+-of-\d+)?\.safetensors")
    files = sorted(file for file in (path / "unet").glob("*") if name.fullmatch(file.name))
    if not files:
        why = f"Its folder unet holds no {name.pattern}."
        hint = "Check the folder and the variant."
        raise FileError(f"{path} has no weights to hash.", why, hint)
    digests = [file_hash(file) for file in files]
    return digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _hash(path: Path, *, from_tensors: bool) -> str:
    with open_file(path) as file:
        if from_tensors:
            length = int.from_bytes(file.read(_HEADER_LENGTH), "little")
            file.seek(_HEADER_LENGTH + min(length, path.stat().st_size))
        return hashlib.file_digest(file, "sha256").hexdigest()
