"""What a scan knows already: the findings of pictures, by their content, and where they were seen.

A file is not read again where its size, inode and both its times are as they were. Times are too
coarse to trust for a file that was changed just before it was read; such a file is read, but a
picture of known content need not be decoded again.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any, cast

import PIL

from sdcore.training.data.checked_json import read_checked, write_checked
from sdcore.training.data.content import Content
from sdcore.training.data.items import Stamp

_VERSION = f"2/{PIL.__version__}"  # another Pillow may see other faults
_COARSE = 2_000_000_000  # nanoseconds; FAT and some network drives count in two seconds


class ScanCache:
    """Findings on disk, in one file for each source.

    Args:
        folder: None keeps nothing.
        source: what is scanned.
    """

    def __init__(self, folder: Path | None, source: str) -> None:
        name = hashlib.blake2b(source.encode("utf-8", "replace"), digest_size=8).hexdigest()
        self.path = folder / f"scan-{name}.json" if folder is not None else None
        self._started = time.time_ns()
        self._seen: dict[str, tuple[Stamp, str]] = {}
        self._contents: dict[str, Content] = {}
        self._changed = False
        if self.path is not None and self.path.is_file():
            self._read(self.path)

    def known(self, place: str, stamp: Stamp | None) -> Content | None:
        """The finding of a file that is as it was; None where it has to be read."""
        seen = self._seen.get(place)
        if seen is None or stamp is None or seen[0] != stamp:
            return None
        return self._contents.get(seen[1])

    def of_content(self, digest: str) -> Content | None:
        """The finding of a picture of this content, wherever it was."""
        return self._contents.get(digest)

    def add(self, place: str, stamp: Stamp | None, content: Content) -> None:
        """Remember a finding; `stamp` was taken before the file was read."""
        if not content.digest:
            return
        self._changed |= content.digest not in self._contents
        self._contents[content.digest] = content
        # Windows gives the time of creation where others give that of any change.
        if stamp is None or os.name == "nt" or max(stamp[2:]) > self._started - _COARSE:
            return
        self._changed = True
        self._seen[place] = (stamp, content.digest)

    def update(self, content: Content) -> Content:
        """Know more of a content."""
        self._changed = True
        self._contents[content.digest] = content
        return content

    def save(self, places: set[str], digests: set[str]) -> None:
        """Write what is known of these places and contents; others are gone from the source."""
        if self.path is None or not (self._changed or self._seen.keys() - places):
            return
        seen = {place: row for place, row in self._seen.items() if place in places}
        contents = [
            astuple(content) for content in self._contents.values() if content.digest in digests
        ]
        write_checked(self.path, {"version": _VERSION, "seen": seen, "contents": contents})

    def _read(self, path: Path) -> None:
        kept = read_checked(path)
        if kept is None or kept["version"] != _VERSION:
            return
        for row in kept["contents"]:
            content = Content(*(_as_it_was(value) for value in row))
            self._contents[content.digest] = content
        for place, (stamp, digest) in kept["seen"].items():
            self._seen[place] = tuple(stamp), digest


def _as_it_was(value: Any) -> Any:
    """A value of a `Content`, in which JSON has made lists of tuples."""
    if not isinstance(value, list):
        return value
    return tuple(_as_it_was(part) for part in cast("list[Any]", value))
