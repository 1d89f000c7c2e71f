"""The models and files that cases share, and the notes that they take."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import calls
import numpy as np
import tiny_models
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


class Bench:
    """A folder with small models and files, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pipes: dict[str, Any] = {}

    def model(self, name: str) -> Path:
        """The folder of a random model, by its name in `tiny_models.WRITERS`."""
        path = self.folder / name
        if not path.exists():
            tiny_models.WRITERS[name](path)
        return path

    def pipe(self, name: str) -> Any:
        """A loaded model; cases leave it as it was."""
        if name not in self._pipes:
            self._pipes[name] = calls.load(None if name == "embedded" else self.model(name))
        return self._pipes[name]

    @cached_property
    def clouds(self) -> Image.Image:
        return clouds((64, 48))

    @cached_property
    def mask(self) -> Image.Image:
        """The right half is repainted, with a grey edge."""
        mask = Image.new("L", (64, 48))
        mask.paste(255, (32, 8, 56, 40))
        mask.paste(128, (28, 8, 32, 40))
        return mask

    @cached_property
    def picture(self) -> Path:
        self.clouds.save(self.folder / "clouds.png")
        return self.folder / "clouds.png"

    @cached_property
    def mask_file(self) -> Path:
        self.mask.save(self.folder / "mask.png")
        return self.folder / "mask.png"

    @cached_property
    def erased(self) -> Path:
        picture = self.clouds.convert("RGBA")
        picture.putalpha(Image.eval(self.mask, lambda level: 255 - level))
        picture.save(self.folder / "erased.png")
        return self.folder / "erased.png"

    def lora(self, spelling: str, model: str = "sd1", seed: int = 1, name: str = "") -> Path:
        """A LoRA file in a spelling of `tiny_models.lora_tensors`."""
        path = self.folder / "loras" / f"{name or spelling}.safetensors"
        if not path.exists():
            tiny_models.write_lora(path, self.model(model), spelling, seed)
        return path

    def embedding(self, model: str = "sd1") -> Path:
        """Two learned vectors called mark, or markxl for both encoders of SDXL."""
        path = self.folder / ("markxl.safetensors" if model == "sdxl" else "mark.safetensors")
        if not path.exists():
            tiny_models.write_embedding(path, xl=model == "sdxl")
        return path


def clouds(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A soft picture of many colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


class Notes:
    """What a case gives: name -> kind, SHA-256, and of texts the text itself."""

    def __init__(self, bench: Bench, keep: Path | None, case: str) -> None:
        self.bench, self.keep, self.case = bench, keep, case
        self.entries: dict[str, dict[str, str]] = {}

    def _add(self, name: str, kind: str, content: bytes, text: str | None = None) -> None:
        assert name not in self.entries, f"two entries are called {name}"
        entry = {"kind": kind, "sha256": hashlib.sha256(content).hexdigest()}
        self.entries[name] = entry if text is None else {**entry, "text": text}

    def result(self, result: Any, name: str = "") -> Any:
        """Pictures, latents and settings of a run; gives the result."""
        prefix = f"{name} " if name else ""
        self.numbers(f"{prefix}latents", result.latents, kind="latents")
        for number, image in enumerate(result.images):
            path = self.bench.folder / "noted.png"
            path.unlink(missing_ok=True)
            written = calls.get("save_png")(image, path, result.settings[number])
            self.file(written, f"{prefix}picture {number}")
        return result

    def picture(self, name: str, image: Image.Image) -> None:
        head = f"{image.width}x{image.height} {image.mode}\n".encode()
        self._add(f"{name} pixels", "pictures", head + image.tobytes())
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            stem = re.sub(r"[^\w.]+", "-", f"{self.case}-{name}")
            image.save(self.keep / f"{stem}.png")

    def file(self, path: Path, name: str) -> None:
        """A picture file: its pixels, and apart from them each text that it carries."""
        with Image.open(path) as image:
            image.load()
            texts = dict(getattr(image, "text", {}))
            self.picture(name, image)
        for key, text in sorted(texts.items()):
            self.text(f"{name} {key}", text, kind="texts in pictures")

    def numbers(self, name: str, tensor: Tensor, kind: str = "numbers") -> None:
        self._add(name, kind, _bytes(tensor))

    def text(self, name: str, text: str, kind: str = "texts") -> None:
        """A text; JSON one field a line, and without the folder of this run."""
        text = text.replace(str(self.bench.folder), "FOLDER")
        try:
            shown = json.dumps(json.loads(text), indent=0, ensure_ascii=True)
        except ValueError:
            shown = text
        self._add(name, kind, text.encode("utf-8", "surrogatepass"), shown)

    def tensors(self, name: str, path: Path) -> None:
        """The weights in a .safetensors file, in any order, and its header's notes."""
        found = load_file(path)
        lines = [f"{key} {hashlib.sha256(_bytes(found[key])).hexdigest()}" for key in sorted(found)]
        self._add(f"{name} tensors", "weights", "\n".join(lines).encode())
        with safe_open(path, "pt") as file:
            self.text(f"{name} notes", json.dumps(file.metadata(), sort_keys=True))


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    plain = tensor.view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)
    return f"{tensor.dtype} {tuple(tensor.shape)}\n".encode() + plain.numpy().tobytes()
