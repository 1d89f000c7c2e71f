"""The scan: every picture, mask and caption judged before the first step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from sdcore.errors import FileError, UsageError, warn
from sdcore.size import Size
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.data.buckets import MOST_ASPECT, Fit, Rungs, fit, make_rungs, nearest
from sdcore.training.data.captions import full_caption
from sdcore.training.data.content import (
    MOST_BYTES,
    Content,
    content_digest,
    examine,
    pixel_digest,
    unreadable,
)
from sdcore.training.data.items import Blob, Fault, Found, Item, Note
from sdcore.training.data.scan_cache import ScanCache
from sdcore.training.data.scanned import Scan, Scanned
from sdcore.training.data.settings import DataSettings

Progress = Callable[[int, int], object]  # done, of how many
_NAMED = 20


def scan(
    items: Found,
    settings: DataSettings,
    cache: Path | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    factor: int = 8,
    threads: int = 0,
    progress: Progress | None = None,
) -> Scan:
    """Judge all items.

    Args:
        items: what `read_items` gave.
        settings: with a resolution.
        cache: a folder in which findings are kept; None keeps none.
        tokenizer: finds captions that are too long for the model.
        factor: pixels of a side for each latent.
        threads: that decode pictures; 0 is one for each core.

    Raises:
        FileError: names all pictures that cannot be used, where they are not to be skipped, or are
            too many; or no picture is left.
        UsageError: the settings name no resolution.

    Warns:
        UserWarning: pictures are skipped.
    """
    known = ScanCache(cache, settings.source)
    threads = threads or _cores()
    contents = _contents(items, known, threads, progress)
    judge = _Judge(settings, factor, contents, tokenizer)
    listed = {fault.name for fault in items.faults}
    faults = list(items.faults)
    pictures: list[Scanned] = []
    for item in items:
        found = judge.faults(item)
        if item.name in listed:  # what is wrong with its caption was found when it was read
            found = [fault for fault in found if not fault.kind.startswith("caption ")]
        faults += found
        if not found and item.name not in listed:
            pictures.append(judge.scanned(item))
    pictures = _same_pixels(pictures, contents, known, threads)
    digests = {content.digest for content in contents.values()}
    known.save({blob.place() for blob in contents}, digests)
    notes = [*items.notes, *(n for picture in pictures for n in picture.notes)]
    notes += _duplicates(pictures)
    _refuse(faults, len({*listed, *(i.name for i in items)}), settings)
    kept, held = _hold_out(pictures, settings.held_out)
    if not any(not picture.item.prior for picture in kept):
        raise _nothing_left(sum(not item.prior for item in items), faults, held)
    counts = _counts(items, notes)
    return Scan(kept, held, tuple(faults), tuple(notes), counts, settings, factor)


def _contents(
    items: Sequence[Item], known: ScanCache, threads: int, progress: Progress | None
) -> dict[Blob, Content]:
    """What each picture and mask holds; each is read once."""
    blobs = list(dict.fromkeys(b for i in items for b in (i.blob, i.mask) if b is not None))

    def look(blob: Blob) -> Content:
        try:
            stamp = blob.stamp()
            found = known.known(blob.place(), stamp)
            if found is not None:
                return found
            data = blob.read(MOST_BYTES)
        except FileError as error:
            return unreadable(error)
        found = known.of_content(content_digest(data)) or examine(data)
        known.add(blob.place(), stamp, found)
        return found

    contents: dict[Blob, Content] = {}
    with ThreadPoolExecutor(threads) as pool:
        for blob, content in zip(blobs, pool.map(look, blobs), strict=True):
            contents[blob] = content
            if progress is not None:
                progress(len(contents), len(blobs))
    return contents


def _same_pixels(
    pictures: Sequence[Scanned], contents: dict[Blob, Content], known: ScanCache, threads: int
) -> list[Scanned]:
    """The pictures, each with the least digest of all that show the same.

    Only pictures that begin alike are decoded for it.
    """
    alike: dict[str, dict[str, Scanned]] = {}  # top -> digest -> one of its pictures
    for picture in pictures:
        top = contents[picture.item.blob].top
        alike.setdefault(top, {}).setdefault(picture.digest, picture)
    doubtful = [p for some in alike.values() if len(some) > 1 for p in some.values()]

    def look(picture: Scanned) -> str:
        content = contents[picture.item.blob]
        if not content.pixels:
            pixels = pixel_digest(picture.item.blob.read(MOST_BYTES))
            content = known.update(replace(content, pixels=pixels))
        return content.pixels

    with ThreadPoolExecutor(threads) as pool:
        shown = dict(zip((p.digest for p in doubtful), pool.map(look, doubtful), strict=True))
    least: dict[str, str] = {}
    for digest, pixels in shown.items():
        least[pixels] = min(digest, least.get(pixels, digest))
    return [replace(p, pixels=least[shown[p.digest]]) if p.digest in shown else p for p in pictures]


class _Judge:
    """Faults and notes of items, once their contents are known."""

    def __init__(
        self,
        settings: DataSettings,
        factor: int,
        contents: dict[Blob, Content],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.settings, self.factor, self.contents = settings, factor, contents
        self.tokenizer = tokenizer
        self._rungs: dict[int, Rungs] = {}
        self._fits: dict[tuple[int | None, Size], Fit | None] = {}

    def faults(self, item: Item) -> list[Fault]:
        content = self.contents[item.blob]
        found = [(content.kind, content.reason)] if content.kind else self._shape(item, content)
        if not content.kind:
            found += self._mask(item, content)
        found += self._caption(item)
        return [Fault(item.name, kind, reason) for kind, reason in found]

    def scanned(self, item: Item) -> Scanned:
        content = self.contents[item.blob]
        size = Size(content.width, content.height)
        fitted = self._fit(item, size)
        assert fitted is not None  # else it has a fault
        notes = [Note(item.name, kind, text) for kind, text in self._remarks(item, content)]
        return Scanned(item, size, content.digest, content.digest, fitted, tuple(notes))

    def _buckets(self, item: Item) -> Rungs:
        resolution = item.look.resolution or self.settings.resolution
        if resolution is None:
            raise UsageError(
                "The resolution of the data is not known.",
                "Neither the settings nor the model say one.",
                "Set data.resolution.",
            )
        if resolution not in self._rungs:
            self._rungs[resolution] = make_rungs(self.settings, resolution, self.factor)
        return self._rungs[resolution]

    def _fit(self, item: Item, size: Size) -> Fit | None:
        """What a picture of a size becomes; most pictures are of few sizes."""
        place = (item.look.resolution, size)
        if place not in self._fits:
            self._fits[place] = fit(size, self.settings, self._buckets(item))
        return self._fits[place]

    def _shape(self, item: Item, content: Content) -> list[tuple[str, str]]:
        size = Size(content.width, content.height)
        aspect = max(size.width, size.height) / min(size.width, size.height)
        if aspect > MOST_ASPECT:
            reason = f"It is {size}, {aspect:.1f} times as long as wide; cut it to less than 8."
            return [("extreme shape", reason)]
        if self._fit(item, size) is None:
            least = nearest(size, self._buckets(item)[-1])
            most = self.settings.most_enlarged
            reason = f"It is {size}; to fill {least} it would be enlarged more than {most:g} times."
            return [("too small", reason)]
        return []

    def _mask(self, item: Item, content: Content) -> list[tuple[str, str]]:
        if item.look.alpha_mask:
            reason = "It has no transparency to be its mask."
            return [] if content.alpha else [("mask missing", reason)]
        if item.mask is None:
            wanted = self.settings.masks and not item.prior
            return [("mask missing", "It has no mask of its name.")] if wanted else []
        mask = self.contents[item.mask]
        if mask.kind:
            return [("mask damaged", f"Its mask: {mask.reason}")]
        if (mask.width, mask.height) != (content.width, content.height):
            ours, theirs = Size(content.width, content.height), Size(mask.width, mask.height)
            return [("mask size", f"It is {ours}, its mask {theirs}.")]
        if mask.black:
            return [("mask black", "Its mask is black everywhere: nothing would be learned.")]
        return []

    def _caption(self, item: Item) -> list[tuple[str, str]]:
        if self.settings.captions == "none" or item.prior or full_caption(item):
            return []
        if item.caption is None:
            return [("caption missing", "It has no caption.")]
        return [("caption empty", "Its caption is empty.")]

    def _remarks(self, item: Item, content: Content) -> list[tuple[str, str]]:
        remarks = list(content.remarks)
        caption, full = item.caption, full_caption(item)
        if self.settings.captions != "none" and not item.prior:
            if not caption:
                remarks.append(("caption bare", f"It has no caption of its own: {full!r} is all."))
            elif sum(map(str.isalnum, caption)) < 2 and not any(c > "\u2e80" for c in caption):
                remarks.append(("caption near empty", f"Its caption is {caption!r}."))
        cut = caption_cut(full, self.tokenizer) if self.tokenizer is not None else ""
        if cut:
            remarks.append(("caption cut", f"Its caption is too long; cut is: {cut!r:.300}"))
        return remarks


def caption_cut(text: str, tokenizer: Tokenizer) -> str:
    """The end of a caption that has no room among the model's tokens; "" where all of it has."""
    room = tokenizer.max_length - 2
    if len(text.encode("utf-8", "replace")) <= room:  # a token is a byte or more
        return ""
    pieces = tokenizer.pieces(text)
    return text[pieces[room].start :] if len(pieces) > room else ""


def _duplicates(pictures: Iterable[Scanned]) -> list[Note]:
    """A note for each picture that shows the same as an earlier one."""
    first: dict[str, Scanned] = {}
    notes: list[Note] = []
    for picture in pictures:
        earlier = first.setdefault(picture.pixels, picture)
        if earlier is picture:
            continue
        same = earlier.digest == picture.digest
        kind = "duplicate file" if same else "duplicate pixels"
        text = f"It is the same {'file' if same else 'picture'} as {earlier.item.name}."
        notes.append(Note(picture.item.name, kind, text))
    return notes


def _hold_out(
    pictures: Sequence[Scanned], count: int
) -> tuple[tuple[Scanned, ...], tuple[Scanned, ...]]:
    """(trained on, held out): chosen by content, so that new pictures change little of the choice.

    Of pictures that show the same, all are held out or none.
    """
    own = {picture.pixels for picture in pictures if not picture.item.prior}

    def draw(pixels: str) -> bytes:
        return hashlib.blake2b(f"held out/{pixels}".encode()).digest()

    chosen = set(sorted(own, key=draw)[:count])
    held = tuple(p for p in pictures if p.pixels in chosen and not p.item.prior)
    return tuple(p for p in pictures if p.pixels not in chosen), held


def _refuse(faults: Sequence[Fault], total: int, settings: DataSettings) -> None:
    """Fail on faults where they are not to be skipped, or are too many."""
    if not faults:
        return
    names = {fault.name for fault in faults}
    lines = [str(fault).rstrip(".") for fault in faults[:_NAMED]]
    lines += [f"and {len(faults) - _NAMED} more"] if faults[_NAMED:] else []
    shown = "".join(f"\n       {line};" for line in lines).rstrip(";")
    what = f"{len(names)} of {total} pictures of {settings.source} cannot be used."
    if settings.on_bad_sample == "fail":
        hint = "Mend or remove them, or set data.on_bad_sample to skip."
        raise FileError(what, f"These are the reasons:{shown}.", hint)
    if len(names) > settings.most_bad * total:
        why = f"No more than {settings.most_bad:.0%} may be skipped:{shown}."
        raise FileError(what, why, "Mend or remove them, or raise data.most_bad.")
    warn(f"{what} They are skipped:{shown}.")


def _nothing_left(count: int, faults: Sequence[Fault], held: Sequence[Scanned]) -> FileError:
    why = f"Of {count}, {len({f.name for f in faults})} are skipped and {len(held)} held out."
    if not count:
        why = "All that there are keep the class; none is one's own."
    hint = "Add pictures, or lower data.held_out."
    return FileError("No picture is left to train on.", why, hint)


def _counts(items: Iterable[Item], notes: Iterable[Note]) -> dict[str, int]:
    own = [item for item in items if not item.prior]
    return {
        "found": len(own),
        "prior": sum(item.prior for item in items),
        "captions": sum(bool(item.caption) for item in own),
        "captions missing": sum(not item.caption for item in own),
        "captions cut": sum(note.kind == "caption cut" for note in notes),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
