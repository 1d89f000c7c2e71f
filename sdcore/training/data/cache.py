"""Latents and text states on disk: each under a name that says all that it depends on.

An entry is a safetensors file with the hash of its numbers. It is written whole or not at all, read
with its hash, and made anew where it is damaged. Several processes may share a folder.

Shapes: C channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors.torch import load, save  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sdcore.errors import FileError, NonFiniteError, warn
from sdcore.files.atomic import replace_file
from sdcore.files.opening import read_bytes
from sdcore.files.weights import is_finite
from sdcore.training.data.buckets import Fit
from sdcore.training.data.pictures import pixels
from sdcore.training.data.scan import Progress
from sdcore.training.data.scanned import Scanned

_VERSION = "1"  # of how pixels are made of pictures, and of the files
_LIMIT = 1 << 30


class TensorCache:
    """Tensors by what they depend on.

    Args:
        folder: made when missing.
        kind: what they are, such as `latents`.
        key: all that every entry depends on: hash of the weights, dtype, versions.
    """

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self.folder, self.kind, self.key = folder / kind, kind, key

    def path(self, facts: Mapping[str, Any]) -> Path:
        """Where the entry of these facts lies."""
        text = json.dumps([_VERSION, self.kind, self.key, facts], sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def read(self, facts: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The tensors of an entry; None where there is none that is whole."""
        path = self.path(facts)
        if not path.exists():
            return None
        try:
            return _unpack(read_bytes(path, _LIMIT))
        except (FileError, ValueError) as error:
            why = error.why if isinstance(error, FileError) else f"{error}"
            warn(f"{path} is damaged and is made anew: {why}")
            return None

    def write(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors. FileError where the disk is full; NonFiniteError where one is no number."""
        broken = [name for name, tensor in tensors.items() if not is_finite(tensor.float())]
        if broken:
            raise NonFiniteError(
                f"The {self.kind} of {facts.get('name', 'a sample')} are not finite.",
                f"NaN or infinity in {', '.join(broken)}.",
                "Encode in float32 or bfloat16, or take another autoencoder.",
            )
        data = _pack(tensors)
        replace_file(self.path(facts), lambda path: path.write_bytes(data))


class LatentCache:
    """Latents of pictures, encoded one at a time, so that no batch can change them.

    Args:
        folder: shared by all caches.
        key: hash of the autoencoder's weights, its dtype, and versions of what computes.
        encode: pixels (1, 3, H, W) in [-1, 1] -> latents (1, C, h, w).
    """

    def __init__(self, folder: Path, key: str, encode: Callable[[Tensor], Tensor]) -> None:
        self._cache = TensorCache(folder, "latents", key)
        self._encode, self._lock = encode, Lock()

    def latents(self, scanned: Scanned, fit: Fit, flip: bool = False) -> Tensor:
        """(C, h, w) of a picture, out of the cache or made for it. FileError as `pixels`."""
        facts = self._facts(scanned, fit, flip)
        kept = self._cache.read(facts)
        if kept is not None:
            return kept["latents"]
        image = pixels(scanned, fit, flip)  #                              (3, H, W)
        with self._lock, torch.no_grad():  # threads of `Examples` share the network
            latents = self._encode(image[None])[0].detach().cpu().contiguous()  # (C, h, w)
        self._cache.write(facts, {"latents": latents})
        return latents

    def fill(
        self,
        pictures: Sequence[Scanned],
        progress: Progress | None = None,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Make what is missing, before the first step.

        Args:
            pictures: whose middles are cut; both ways round where they are flipped.
            part, parts: this process makes every so-many-th.
        """
        work = [
            (p, flip)
            for p in pictures
            for flip in ((False, True) if p.item.look.flip else (False,))
        ]
        for done, (picture, flip) in enumerate(work, start=1):
            if done % parts == part:
                self.latents(picture, picture.fit, flip)
            if progress is not None:
                progress(done, len(work))

    def _facts(self, scanned: Scanned, fit: Fit, flip: bool) -> dict[str, Any]:
        return {
            "content": scanned.digest,
            "resized": fit.resized.width_height,
            "bucket": fit.bucket.width_height,
            "crop": fit.crop,
            "flip": flip,
            "background": scanned.item.look.background,
        }

    def path(self, scanned: Scanned, fit: Fit, flip: bool = False) -> Path:
        """Where the latents of a picture lie."""
        return self._cache.path(self._facts(scanned, fit, flip))


class TextCache:
    """What text encoders make of captions, by the token ids that they read.

    Args:
        key: hash of the text encoders' weights, their dtype, and versions of what computes.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._cache = TensorCache(folder, "texts", key)

    def states(
        self, ids: Iterable[Sequence[int]], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors of a caption, out of the cache or made for it.

        Args:
            ids: those that each text encoder reads.
            make: computes them; called where there are none.
        """
        facts = {"ids": [list(map(int, row)) for row in ids]}
        kept = self._cache.read(facts)
        if kept is not None:
            return kept
        with torch.no_grad():
            made = {name: t.detach().cpu().contiguous() for name, t in make().items()}
        self._cache.write(facts, made)
        return made


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file whose header has the hash of what follows it."""
    body = _body(save(dict(tensors)))
    return save(dict(tensors), {"blake2b": _hash(body)})


def _unpack(data: bytes) -> dict[str, Tensor]:
    """What `_pack` packed. ValueError where it is not as it was."""
    try:
        length = int.from_bytes(data[:8], "little")
        notes = json.loads(data[8 : 8 + length])["__metadata__"]
        good = notes["blake2b"] == _hash(_body(data))
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise ValueError("its numbers are not as they were written.")
    return load(data)


def _body(data: bytes) -> bytes:
    return data[8 + int.from_bytes(data[:8], "little") :]


def _hash(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
