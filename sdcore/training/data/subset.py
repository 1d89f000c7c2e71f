"""How the pictures of one folder are read: what a source's settings and its folders say of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sdcore.errors import FileError
from sdcore.training.data.items import Blob, CaptionOptions, Item, PictureOptions
from sdcore.training.data.settings import DataSettings

ALPHA = "alpha"


@dataclass(frozen=True)
class Subset:
    """How pictures of a folder, or of a part of a source, become items.

    captions: `auto`, `file`, `name` or `none`, as in the settings.
    fallback: the caption of a picture that has none of its own; None where that is a fault.
    masks: the folder where masks lie.
    prefix: what the names of its items begin with.
    """

    options: CaptionOptions
    look: PictureOptions
    captions: str = "auto"
    extensions: tuple[str, ...] = ("txt", "caption")
    fallback: str | None = None
    masks: Path | None = None
    repeats: int = 1
    prior: bool = False
    prefix: str = ""

    def item(self, name: str, blob: Blob, caption: str | None, mask: Blob | None = None) -> Item:
        """A picture of this subset."""
        return Item(name, blob, caption, mask, self.repeats, self.prior, self.options, self.look)


def subset_of(settings: DataSettings) -> Subset:
    """What the settings say of all pictures. FileError where the folder of masks is missing."""
    options = CaptionOptions(
        trigger=settings.trigger,
        prefix=settings.prefix,
        dropout=settings.dropout,
        shuffle_tags=settings.shuffle_tags,
        keep_tags=settings.keep_tags,
        tag_separator=settings.tag_separator,
    )
    look = PictureOptions(
        background=settings.background,
        crop=settings.crop,
        flip=settings.flip,
        alpha_mask=settings.masks == ALPHA,
    )
    return Subset(
        options,
        look,
        captions=settings.captions,
        extensions=settings.caption_extensions,
        masks=_mask_folder(settings),
        repeats=settings.repeats,
    )


def _mask_folder(settings: DataSettings) -> Path | None:
    if settings.masks in ("", ALPHA):
        return None
    places = [Path(settings.masks), Path(settings.source) / settings.masks]
    for place in places:
        if os.path.isdir(place):
            return place
    tried = " nor ".join(f"{place!s:.200}" for place in dict.fromkeys(places))
    raise FileError(
        f"The folder of masks {settings.masks:.200} is missing.",
        f"There is no folder {tried}.",
        'Set data.masks to a folder, to "alpha", or to nothing.',
    )
