"""What a scan found, and that in lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdcore.size import Size
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.data.buckets import Fit
from sdcore.training.data.captions import full_caption
from sdcore.training.data.items import Fault, Item, Note
from sdcore.training.data.settings import DataSettings

_SHOWN = 10
_CAPTIONS = 4
_LONGEST = 300  # letters of a caption


@dataclass(frozen=True)
class Scanned:
    """A picture that can be trained on.

    size: upright, before anything is cut.
    digest: of its bytes; pixels: the least digest of all pictures of the scan that show the same.
    fit: what it becomes.
    """

    item: Item
    size: Size
    digest: str
    pixels: str
    fit: Fit
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What a source holds.

    pictures: those that are trained on, class pictures last; `held_out` are for validation alone.
    skipped: what cannot be trained on, and why.
    notes: what somebody should know, of pictures and of other files.
    counts: pictures found; captions found and missing; captions that were cut.
    factor: pixels of a side for each latent.
    """

    pictures: tuple[Scanned, ...]
    held_out: tuple[Scanned, ...]
    skipped: tuple[Fault, ...]
    notes: tuple[Note, ...]
    counts: dict[str, int]
    settings: DataSettings
    factor: int

    def buckets(self) -> dict[Size, int]:
        """Bucket -> pictures in it, those that are repeated counted once."""
        counted = Counter(picture.fit.bucket for picture in self.pictures)
        return {b: counted[b] for b in sorted(counted, key=lambda b: b.width_height)}

    def summary(self, tokenizer: Tokenizer | None = None) -> str:
        """What was found, used and skipped; captions as the model's tokens; buckets; notes."""
        return "\n".join(_lines(self, tokenizer))


def _lines(scan: Scan, tokenizer: Tokenizer | None) -> Iterator[str]:
    counts = scan.counts
    own = [picture for picture in scan.pictures if not picture.item.prior]
    seen = sum(picture.item.repeats for picture in own)
    skipped = len({fault.name for fault in scan.skipped})
    yield f"pictures   {counts['found']} found, {len(own)} used, {skipped} skipped" + (
        f", {len(scan.held_out)} held out for validation" if scan.held_out else ""
    )
    if seen != len(own):
        yield f"           {seen} samples in an epoch, with repeats"
    if counts["prior"]:
        yield f"class      {counts['prior']} pictures that keep the class"
    yield from _some(scan.skipped, "  skipped  ")
    cut = counts["captions cut"] if tokenizer is not None else "unknown how many"
    missing = counts["captions missing"]
    yield f"captions   {counts['captions']} found, {missing} missing, {cut} cut"
    for picture in _spread(own, _CAPTIONS):
        shown = _tokens(full_caption(picture.item), tokenizer)
        yield f"  {Fault(picture.item.name, '', shown)}"
    yield from _buckets(scan)
    if scan.notes:
        kinds = Counter(note.kind for note in scan.notes)
        yield "notes      " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield from _some(scan.notes, "  ")


def _buckets(scan: Scan) -> Iterator[str]:
    pictures = scan.pictures
    yield f"buckets    {len(scan.buckets())} sizes, and the pictures in each"
    for bucket, count in scan.buckets().items():
        there = [p for p in pictures if p.fit.bucket == bucket]
        most = max(p.fit.resized.width / p.size.width for p in there)
        least = min(p.fit.kept() for p in there)
        enlarged = f", enlarged up to {most:.2f} times" if most > 1 else ""
        cut = f", up to {1 - least:.0%} cut off" if least < 0.995 else ""
        yield f"  {bucket!s:<11} {count}{enlarged}{cut}"


def _some(faults: Sequence[Fault], start: str) -> Iterator[str]:
    for fault in faults[:_SHOWN]:
        yield f"{start}{fault}"
    if faults[_SHOWN:]:
        yield f"{start}and {len(faults) - _SHOWN} more"


def _spread(pictures: Sequence[Scanned], count: int) -> list[Scanned]:
    """So many of the pictures, from all over the source."""
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[i * (len(pictures) - 1) // (count - 1)] for i in range(count)]


def _tokens(text: str, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r} ..."
    pieces = tokenizer.pieces(text)
    room = tokenizer.max_length - 2
    shown = " | ".join(text[piece.start : piece.end].strip() for piece in pieces[:room])
    return f"{shown or '(nothing)'}  ({min(len(pieces), room)} of {room} tokens)"
