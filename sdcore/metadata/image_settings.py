"""What one image depends on, apart from the machine: a record, exact as JSON.

The JSON is versioned and strict both ways: what is read back is equal to what was written, whatever
the prompt holds, and a field that this version does not know is an error that names it.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sdcore import __version__
from sdcore.checks import as_finite
from sdcore.files.jsonfile import parse_json_object

FORMAT = 1


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA that was applied.

    Attributes:
        name: the file's name without folder and suffix.
        unet, text: how much of it, in the UNet and in the text encoders.
        hash: SHA-256 of the file's tensors, see `sdcore.files.hashes`.
    """

    name: str
    unet: float
    text: float
    hash: str


@dataclass(frozen=True)
class EmbeddingSettings:
    """A textual inversion that was there: its file's name without suffix, SHA-256 of the file."""

    name: str
    hash: str


@dataclass(frozen=True)
class SourceSettings:
    """The picture that a run began from.

    Attributes:
        image: SHA-256 of its RGB pixels as the run used them.
        strength: 0 to 1, how much of it was painted anew.
        mask: SHA-256 of the mask's pixels; None without one.
        only_masked: pixels of padding around the mask where only that part was painted, or None.
    """

    image: str
    strength: float
    mask: str | None = None
    only_masked: int | None = None


@dataclass(frozen=True)
class HiresSettings:
    """The second pass at a higher resolution; `width` and `height` of the settings are the first's.

    `steps` None is as many as in the first pass; `upscale` is `pixels` or `latents`.
    """

    width: int
    height: int
    strength: float
    steps: int | None = None
    upscale: str = "pixels"


@dataclass(frozen=True)
class RefinerSettings:
    """The model that painted the last steps, and the share of the steps before it."""

    model: str
    switch_at: float


@dataclass(frozen=True)
class SizeSettings:
    """SDXL's numbers, (height, width) or (top, left) in pixels; `aesthetic` is the refiner's."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]
    aesthetic: float | None = None


@dataclass(frozen=True)
class ImageSettings:
    """Everything that one image depends on, apart from the machine.

    Attributes:
        clip_skip: as diffusers counts: 0 leaves no layer out.
        model: the name of its folder or file.
        precision: of the weights, such as float32.
        own_scheduler: it was the model's own, as published; `scheduler` then says its kind.
        attention: the backend that was asked for.
        dialect: how the prompt's marks were read, see `sdcore.prompt`.
        prediction_type: what the model was said to predict; None is what its file says.
        model_hash: SHA-256 of the weights, where it was asked for.
        size, negative_size: None where SDXL's numbers follow from width and height.
        tiled: the autoencoder worked in tiles.
        batch: which image it was, of how many painted at once: it changes the last digits.
        beyond: arguments of the run that this record cannot hold.
    """

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
    own_scheduler: bool = False
    attention: str = "auto"
    dialect: str = "plain"
    prediction_type: str | None = None
    model_hash: str | None = None
    loras: tuple[LoraSettings, ...] = ()
    embeddings: tuple[EmbeddingSettings, ...] = ()
    source: SourceSettings | None = None
    hires: HiresSettings | None = None
    refiner: RefinerSettings | None = None
    size: SizeSettings | None = None
    negative_size: SizeSettings | None = None
    tiled: bool = False
    batch: tuple[int, int] = (0, 1)
    beyond: tuple[str, ...] = ()

    def to_json(self) -> str:
        """ASCII alone, so that any prompt survives, lone surrogates too."""
        return json.dumps({"format": FORMAT, "version": __version__, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ImageSettings:
        """The settings that `to_json` wrote.

        Raises:
            ValueError: with the reason in one line: no JSON object, a newer format, or a field that
                is missing, unknown or of another type.
        """
        data = parse_json_object(text.encode("utf-8", "surrogatepass"))
        format_number, version = data.pop("format", FORMAT), data.pop("version", "unknown")
        if format_number != FORMAT:
            raise ValueError(
                f"it has the format {format_number!r:.40}, written by sdcore {version!s:.40}; "
                f"this version reads {FORMAT}"
            )
        return _read(cls, data, "")


def _read(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the type that an annotation names."""
    if get_origin(kind) is UnionType:  # X | None
        return None if value is None else _read(get_args(kind)[0], value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_record(kind, value, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = get_args(kind)
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(value)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in pairs)
    if kind is float and as_finite(value) is not None:
        return value
    if kind is not float and type(value) is kind:
        return value
    raise ValueError(f"{where} is {value!r:.60}, which it cannot be")


def _read_record(kind: Any, value: dict[str, Any], where: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"; the nearest known one is {near[0]!r}" if near else ""
            raise ValueError(f"the field {prefix + name!r:.80} is unknown{meant}")
    for name, field in known.items():
        if name not in value and field.default is MISSING:
            raise ValueError(f"the field {prefix + name!r} is missing")
    kinds = get_type_hints(kind)
    return kind(**{name: _read(kinds[name], v, prefix + name) for name, v in value.items()})
