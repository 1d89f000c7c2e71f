"""Textual inversion files, written.

web UI, ComfyUI  emb_params (n, D); for SDXL's two text encoders clip_l and clip_g
diffusers        the token itself is the key; a file for each text encoder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sdcore.adapters.textual_inversion import LONGEST_WORD, VECTORS_OF
from sdcore.errors import NonFiniteError, UsageError
from sdcore.files.atomic import replace_files
from sdcore.files.weights import is_finite, tensors_writer

SPELLINGS = ("web_ui", "diffusers")


def save_embedding(
    path: str | Path,
    token: str,
    vectors: Mapping[str, Tensor],
    *,
    spelling: str = "web_ui",
    metadata: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Write a learned word as a file that `read_embedding` and other programs read.

    Args:
        token: the word in a prompt that stands for the vectors. The web UI and ComfyUI call it by
            the file's name.
        vectors: (n, D) for each text encoder, by its name in a model: `text_encoder`, and
            `text_encoder_2` for SDXL.
        spelling: `web_ui`, one file, which ComfyUI reads too; or `diffusers`, a file for each text
            encoder: the second one has `_2` after its name, for `load_textual_inversion` with that
            encoder and tokenizer.
        metadata: strings for the header.

    Returns:
        the files.

    Raises:
        UsageError: no vectors, of other shapes, or a token or file name that cannot be.
        NonFiniteError: a vector is NaN or infinite.
        FileError: the file cannot be written.
    """
    path = Path(path)
    _check(path, token, vectors, spelling)
    rows = {part: v.detach().to("cpu", torch.float32).contiguous() for part, v in vectors.items()}
    for part, tensor in rows.items():
        if not is_finite(tensor):
            raise NonFiniteError(
                f"The vectors of {token!r:.80} cannot be saved.",
                f"NaN or infinity in those for the {part}.",
                "Keep the last good ones.",
            )
    notes = {**(metadata or {}), "name": token, "format": "pt"}
    files: dict[str, dict[str, Tensor]] = {}
    if spelling == "diffusers":
        for part, tensor in rows.items():
            files[f"{path.stem}{part.removeprefix('text_encoder')}{path.suffix}"] = {token: tensor}
    elif list(rows) == ["text_encoder"]:
        files[path.name] = {"emb_params": rows["text_encoder"]}
    else:
        files[path.name] = {VECTORS_OF[part]: tensor for part, tensor in rows.items()}
    writers = {name: tensors_writer(tensors, notes) for name, tensors in files.items()}
    replace_files(path.parent, writers)
    return tuple(path.with_name(name) for name in files)


def _check(path: Path, token: str, vectors: Mapping[str, Tensor], spelling: str) -> None:
    word = token.strip() == token and token.isprintable() and 0 < len(token) <= LONGEST_WORD
    shapes = {part: tuple(tensor.shape) for part, tensor in vectors.items()}
    counts = {shape[0] for shape in shapes.values() if len(shape) == 2 and all(shape)}
    fits = bool(shapes) and set(shapes) <= set(VECTORS_OF) and len(counts) == 1
    fits = fits and all(len(shape) == 2 for shape in shapes.values())
    if not word:
        why, hint = f"Its word is {token!r:.80}.", "Choose a word of printable letters."
    elif not fits:
        why = f"Its vectors are {shapes}."
        hint = f"Give as many (n, D) for each, under {' and '.join(VECTORS_OF)}."
    elif spelling not in SPELLINGS or path.suffix != ".safetensors":
        why = f"It is spelling={spelling!r:.40}, file name {path.name!r:.80}."
        hint = f"Use {' or '.join(SPELLINGS)} and a name that ends in .safetensors."
    else:
        return
    raise UsageError("The textual inversion cannot be saved.", why, hint)
