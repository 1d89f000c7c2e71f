"""Data sets on the hub, read through `datasets`, which fetches and caches them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sdcore.errors import FileError, UsageError
from sdcore.training.data.columns import IMAGE, TEXT, choose_column
from sdcore.training.data.extras import extra
from sdcore.training.data.items import Found, Stamp
from sdcore.training.data.settings import DataSettings
from sdcore.training.data.subset import Subset
from sdcore.training.data.tables import cell_bytes, no_names, row_items

HUB = "hub:"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w\[\]:%+-]+))?")
_BYTES = ("binary", "large_binary")


@dataclass(frozen=True)
class HubBlob:
    """The picture in one row of a data set."""

    name: str
    row: int
    column: str
    rows: Any = field(compare=False, repr=False)

    def read(self, limit: int) -> bytes:
        return cell_bytes(self.rows[self.row][self.column], limit, f"{self.name} row {self.row}")

    def place(self) -> str:
        return f"{self.name}:{self.column}:{self.row}"

    def stamp(self) -> Stamp | None:
        return None  # its content is hashed each time


def read_hub(source: str, settings: DataSettings, subset: Subset) -> Found:
    """The items of a data set `owner/name`, with `@revision` and `:split` where they are set.

    Raises:
        FileError: it cannot be fetched.
        UsageError: the name is none, its columns do not fit, or `datasets` is not installed.
    """
    match = _NAME.fullmatch(source.removeprefix(HUB))
    if match is None:
        raise UsageError(
            f"{source} names no data set.",
            "It is hub:owner/name, with @revision and :split behind it where they matter.",
            "Check the name on the hub.",
        )
    name, revision, split = match[1], match[2], match[3] or "train"
    datasets = extra("datasets", "data sets on the hub")
    try:
        rows = datasets.load_dataset(name, revision=revision, split=split)
    except Exception as error:  # datasets and what it stands on raise many kinds
        first = (str(error).splitlines() or [""])[0]
        raise FileError(
            f"The data set {name} could not be fetched.",
            f"{type(error).__name__}: {first:.300}.",
            "Check its name, its split and the network; gated ones need: hf auth login.",
        ) from error
    return dataset_items(rows, name, settings, subset)


def dataset_items(rows: Any, name: str, settings: DataSettings, subset: Subset) -> Found:
    """The items of a data set of `datasets`; pictures are not read yet. UsageError as above."""
    datasets = extra("datasets", "data sets on the hub")
    features = dict(rows.features)
    images = [n for n, f in features.items() if _holds_picture(f, datasets)]
    image = choose_column(settings.image_column, images, IMAGE, "data.image_column", name)
    if subset.captions == "name":
        raise no_names(name)
    captions: list[Any] = [subset.fallback or ""] * len(rows)
    if subset.captions != "none":
        texts = [
            n for n, f in features.items() if getattr(f, "dtype", "") in ("string", "large_string")
        ]
        text = choose_column(settings.text_column, texts, TEXT, "data.text_column", name)
        captions = list(rows[text])
    pictures = rows.select_columns([image])
    if isinstance(features[image], datasets.Image):
        pictures = pictures.cast_column(image, datasets.Image(decode=False))
    return row_items(captions, subset, name, lambda row: HubBlob(name, row, image, pictures))


def _holds_picture(feature: Any, datasets: Any) -> bool:
    """Whether a column holds pictures, or bytes that could be some."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in _BYTES
