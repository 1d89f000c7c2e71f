"""A record of one picture: its job, and the facts of the run; exact as JSON.

The JSON is versioned and strict both ways: what is read back is equal to what was written, whatever
the prompt holds, and a field that this version does not know is an error that names it. A record
holds no pixels: what a picture began from is in it by its hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from PIL.Image import Image
from torch import Tensor

from sdcore import __version__
from sdcore.checks import as_finite
from sdcore.errors import UsageError
from sdcore.files.jsonfile import parse_json_object
from sdcore.image.canvas import TOUCHED
from sdcore.job.budget import Budget
from sdcore.job.job import GENEROUS, Job
from sdcore.job.sources import Handover, Latents, Noise, Picture, Source
from sdcore.size import Size

FORMAT = 1
# The fields of a job that have another name in JSON.
_NAMES = {"size_conditioning": "size", "negative_size_conditioning": "negative_size"}
# What a job begins from is written in another way; what it may ask for is not for a file to say.
_NO_RECORD = ("source", "budget")
# The fields of a job that the first format always had; later ones are there where they are not the
# default.
_FIRST = (
    *("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "guidance_rescale"),
    *("scheduler", "size", "dialect", "clip_skip", "attention", "loras", "embeddings", "hires"),
    *("size_conditioning", "negative_size_conditioning", "tiled"),
)


@dataclass(frozen=True)
class SourceSettings:
    """The picture or the latents that a run began from.

    Attributes:
        image: SHA-256 of its RGB pixels, or of the latents, as the run used them.
        strength: 0 to 1, how much of it was painted anew; None, in a job alone, is the model's.
        mask: SHA-256 of the mask's pixels; None without one.
        only_masked: pixels of padding around the mask where only that part was painted, or None.
        mask_cells: what counted of the mask, see `Picture`.
    """

    image: str
    strength: float | None
    mask: str | None = None
    only_masked: int | None = None
    mask_cells: str = TOUCHED


@dataclass(frozen=True)
class RefinerSettings:
    """The model that painted the last steps, and the share of the steps before it."""

    model: str
    switch_at: float


@dataclass(frozen=True)
class ImageSettings:
    """Everything that one image depends on, apart from the machine.

    Attributes:
        job: what was asked for, with the model's defaults filled in and without pixels; its
            `scheduler` is None where the model's own ran, as published.
        sampler: the name of the scheduler that ran.
        model: the name of its folder or file.
        precision: of the weights, such as float32.
        prediction_type: what the model was said to predict; None is what its file says.
        model_hash: SHA-256 of the weights, where it was asked for.
        source: what it began from; None is noise.
        noise_levels: the schedule whose levels the run visited, told by the levels themselves; see
            `sdcore.diffusion.schedulers.levels_name`.
        batch: which image it was, of how many painted at once: it changes the last digits.
        beyond: arguments of the run that this record cannot hold.
    """

    job: Job
    sampler: str
    model: str
    precision: str
    prediction_type: str | None = None
    model_hash: str | None = None
    source: SourceSettings | None = None
    refiner: RefinerSettings | None = None
    noise_levels: str | None = None
    batch: tuple[int, int] = (0, 1)
    beyond: tuple[str, ...] = ()

    def to_json(self) -> str:
        """ASCII alone, so that any prompt survives, lone surrogates too."""
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["own_scheduler"] = self.job.scheduler is None
        job = job_to_dict(replace(self.job, scheduler=self.sampler, source=Noise()))
        data = {"format": FORMAT, "version": __version__, **job, **facts}
        return json.dumps(data, default=asdict)

    @classmethod
    def from_json(cls, text: str, budget: Budget = GENEROUS) -> ImageSettings:
        """The settings that `to_json` wrote.

        Args:
            budget: of its job, which no record holds.

        Raises:
            ValueError: with the reason in one line: no JSON object, a newer format, or a field that
                is missing, unknown or of another type, or asks for more than the budget.
        """
        data = parse_json_object(text.encode("utf-8", "surrogatepass"))
        format_number, version = data.pop("format", FORMAT), data.pop("version", "unknown")
        if format_number != FORMAT:
            raise ValueError(
                f"it has the format {format_number!r:.40}, written by sdcore {version!s:.40}; "
                f"this version reads {FORMAT}"
            )
        kinds = _kinds(cls)
        facts = {name: data.pop(name) for name in _FACTS if name in data}
        own = _read(bool, data.pop("own_scheduler", False), "own_scheduler")
        job = _job_of(data, budget, others=(*_FACTS, "own_scheduler"), needed=_ALWAYS)
        for name in ("model", "precision"):
            if name not in facts:
                raise ValueError(f"the field {name!r} is missing")
        read = {name: _read(kinds[name], value, name) for name, value in facts.items()}
        assert job.scheduler is not None
        return cls(replace(job, scheduler=None if own else job.scheduler), job.scheduler, **read)


_FACTS = tuple(
    field.name for field in fields(ImageSettings) if field.name not in ("job", "sampler")
)


def source_settings(source: Source, strength: float | None) -> SourceSettings | None:
    """A source by its hashes; None for noise, and for a run that goes on."""
    if isinstance(source, Noise | Handover) or strength is None:
        return None
    return _by_hashes(source, strength)


def _by_hashes(source: Picture | Latents, strength: float | None) -> SourceSettings:
    if isinstance(source, Latents):
        return SourceSettings(source.latents_hash, strength)
    mask = source.mask_hash, source.only_masked, source.mask_cells
    return SourceSettings(source.image_hash, strength, *mask)


def job_to_dict(job: Job) -> dict[str, Any]:
    """A job's fields as JSON has them; a picture or latents that it begins from by their hashes.

    Raises:
        UsageError: it begins from noise of the caller's, or goes on from a run.
    """
    data: dict[str, Any] = {}
    if isinstance(job.source, Picture | Latents):
        data["source"] = _by_hashes(job.source, job.source.strength)
    elif job.source != Noise():
        raise UsageError(
            f"A job that begins from {type(job.source).__name__} latents cannot become JSON.",
            "They are numbers, of which JSON holds none.",
            "Keep the latents, and write the job with source=Noise().",
        )
    for field in fields(Job):
        value = getattr(job, field.name)
        later = field.name not in _FIRST
        if field.name in _NO_RECORD or (later and value == field.default):
            continue
        if field.name == "size":
            data |= {"width": value and value.width, "height": value and value.height}
        else:
            data[_NAMES.get(field.name, field.name)] = value
    return json.loads(json.dumps(data, default=asdict))


def job_from_dict(
    data: Mapping[str, Any],
    pictures: Mapping[str, Image | Tensor] | None = None,
    budget: Budget = GENEROUS,
) -> Job:
    """The job of a JSON object: the names of `Job`, but `width` and `height` for its size.

    Args:
        pictures: by their hashes, for a `source` that names one.
        budget: of the job, which no JSON holds.

    Raises:
        UsageError: a field that is unknown or of another type, a picture that is not there, or more
            than the budget.
    """
    if not isinstance(data, Mapping):
        raise UsageError(
            f"The job is of type {type(data).__name__}.",
            "It is a JSON object, which Python reads as a dict.",
            "Pass what json.loads gives.",
        )
    data = dict(data)
    begins = data.pop("source", None)
    try:
        job = _job_of(data, budget, others=("source",))
        record = _read(SourceSettings | None, begins, "source")
    except ValueError as error:
        if isinstance(error.__cause__, UsageError):  # a field can be read, and not be painted
            raise error.__cause__ from None
        raise UsageError(
            "The job cannot be read.",
            f"In it, {str(error).removesuffix('.')}.",
            "Use the names of sdcore.Job, with width and height for its size.",
        ) from error
    return job if record is None else replace(job, source=_source_of(record, pictures or {}))


def _source_of(record: SourceSettings, pictures: Mapping[str, Image | Tensor]) -> Source:
    image = pictures.get(record.image)
    mask = None if record.mask is None else pictures.get(record.mask)
    if image is None or (record.mask is not None and mask is None):
        missing = record.image if image is None else record.mask
        raise UsageError(
            "The job begins from a picture that is not here.",
            f"Its SHA-256 is {missing}.",
            "Hand the picture over with the job.",
        )
    if isinstance(image, Tensor):
        return Latents(image, record.strength)
    assert not isinstance(mask, Tensor)
    return Picture(image, record.strength, mask, record.only_masked, record.mask_cells)


# What a record says in any case.
_ALWAYS = (
    *("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "guidance_rescale"),
    *("scheduler", "width", "height", "clip_skip"),
)


def _job_of(
    data: Mapping[str, Any],
    budget: Budget,
    others: tuple[str, ...],
    needed: tuple[str, ...] = ("prompt",),
) -> Job:
    """Raises ValueError where a field is unknown, missing or of another type."""
    data = dict(data)
    kinds, known = _kinds(Job), _json_names()
    for name in data:
        if name not in known and name not in ("width", "height"):
            raise ValueError(_unknown(name, "", (*known, "width", "height", *others)))
    for name in needed:
        if name not in data:
            raise ValueError(f"the field {name!r} is missing")
    sides = [_read(int | None, data.pop(side, None), side) for side in ("width", "height")]
    values = {known[name]: _read(kinds[known[name]], v, name) for name, v in data.items()}
    width, height = sides
    if (width is None) != (height is None):
        raise ValueError("width and height are not both there")
    try:
        size = None if width is None or height is None else Size(width, height)
        return Job(**values, size=size, budget=budget)
    except UsageError as error:
        raise ValueError(f"{error.what} {error.why}") from error


@cache
def _kinds(record: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields; to resolve their names takes milliseconds."""
    return get_type_hints(record)


@cache
def _json_names() -> dict[str, str]:
    """The name in JSON -> the field of a job, but for its size and what it begins from."""
    names = [field.name for field in fields(Job) if field.name not in ("size", *_NO_RECORD)]
    return {_NAMES.get(name, name): name for name in names}


def _read(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the type that an annotation names."""
    if get_origin(kind) is UnionType:  # X | None
        return None if value is None else _read(get_args(kind)[0], value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_record(kind, cast("dict[str, Any]", value), where)
    if get_origin(kind) is tuple and isinstance(value, list):
        value, kinds = cast("list[Any]", value), get_args(kind)
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
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in known:
            raise ValueError(_unknown(name, prefix, tuple(known)))
    for name, field in known.items():
        if name not in value and field.default is MISSING:
            raise ValueError(f"the field {prefix + name!r} is missing")
    kinds = _kinds(kind)
    return kind(**{name: _read(kinds[name], v, prefix + name) for name, v in value.items()})


def _unknown(name: str, prefix: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(name, known, n=1)
    meant = f"; the nearest known one is {near[0]!r}" if near else ""
    return f"the field {prefix + name!r:.80} is unknown{meant}"
