"""Settings of training data; each has a default that is right for a folder of pictures."""

from __future__ import annotations

from typing import Any, Literal, cast

from PIL import ImageColor
from pydantic import Field, field_validator, model_validator

from sdcore.training.settings import PathText, Settings

Layout = Literal["auto", "folder", "kohya", "metadata", "toml", "parquet", "webdataset", "hub"]
# Of names of pictures; what a file is tells its content.
ENDINGS = {"png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "avif", "apng"}
Captions = Literal["auto", "file", "name", "none"]


class PriorSettings(Settings):
    """Pictures of the class that a subject belongs to, so that the class is not forgotten.

    DreamBooth's prior preservation: Ruiz et al. 2022, arXiv:2208.12242, section 3.2.
    """

    source: PathText = Field(min_length=1)  # a folder; captions in it are not read
    prompt: str = Field(min_length=1)  # the class, such as "a photo of a dog"
    count: int = Field(200, ge=1, le=1_000_000)  # so many of its pictures are used
    weight: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)  # of their loss


class DataSettings(Settings):
    """Where pictures and captions are, and what is made of them.

    A plain string stands for its `source` alone.
    """

    source: PathText = Field(min_length=1)  # folder, .toml, .parquet, .tar, hub:owner/name
    layout: Layout = "auto"
    captions: Captions = "auto"  # auto: those that the layout has; name: of the file
    caption_extensions: tuple[str, ...] = ("txt", "caption")  # the first that is there is read
    text_column: str = ""  # of a table; "" finds the usual names
    image_column: str = ""

    resolution: int | None = Field(None, ge=8, le=16_384)  # side of the square; None: the model's
    buckets: bool = True  # sizes of other shapes and equal area; else all are cut to squares
    most_enlarged: float = Field(1.5, ge=1, le=16, allow_inf_nan=False)
    background: str = "#ffffff"  # under what is transparent
    crop: Literal["center", "random"] = "center"
    flip: bool = False  # half of the time, left to right
    masks: PathText = ""  # "alpha", or a folder of pictures with the same names: white is learned

    trigger: str = ""  # a word that stands in every caption
    prefix: str = ""
    dropout: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)  # share of empty captions
    shuffle_tags: bool = False
    keep_tags: int = Field(0, ge=0, le=1000)  # the first so many stay in their place
    tag_separator: str = Field(",", min_length=1, max_length=8)

    repeats: int = Field(1, ge=1, le=100_000)  # of each picture in an epoch
    held_out: int = Field(0, ge=0, le=100_000)  # pictures kept for the validation loss
    prior: PriorSettings | None = None

    on_bad_sample: Literal["fail", "skip"] = "fail"
    most_bad: float = Field(0.05, ge=0, le=1, allow_inf_nan=False)  # share that may be skipped
    cache: PathText = ""  # a folder; "" is the one that the run has for it
    cache_latents: bool = True
    workers: int = Field(0, ge=0, le=64)  # threads that prepare batches ahead of time

    @model_validator(mode="before")
    @classmethod
    def _from_source(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("caption_extensions", mode="before")
    @classmethod
    def _extensions(cls, value: object) -> object:
        names: Any = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return names
        endings = [str(name).strip().lstrip(".").lower() for name in cast("list[Any]", names)]
        if not all(endings) or not endings or {*endings} & ENDINGS:
            raise ValueError("endings of text files, such as txt, are meant")
        return tuple(endings)

    @field_validator("background")
    @classmethod
    def _background(cls, value: str) -> str:
        try:
            red, green, blue = ImageColor.getrgb(value)[:3]
        except ValueError as error:
            raise ValueError(f"{value!r} is no colour, such as #ffffff or white") from error
        return f"#{red:02x}{green:02x}{blue:02x}"
