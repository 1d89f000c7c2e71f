"""LoRAs and embeddings by name: which files, and how much of each, for which job.

Names, from a prompt or a picture, are looked for among the files of --lora, --lora-folder and
--models-dir; a name is never opened as a path.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.app.model_folders import ModelFolders
from sdcore.errors import FileError, UsageError
from sdcore.files.header import open_header

if TYPE_CHECKING:
    from sdcore.adapters.lora_file import Lora
    from sdcore.adapters.textual_inversion import Embedding
    from sdcore.job.adapters import EmbeddingSettings, LoraSettings
    from sdcore.job.job import Job
    from sdcore.metadata.recipe import Recipe
    from sdcore.pipeline.text_to_image import TextToImage
    from sdcore.prompt.text import LoraTag


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that a flag names, and how much of it; None is not said, which is 1."""

    path: Path
    weight: float | None = None

    @property
    def name(self) -> str:
        return self.path.stem


def read_lora_flag(text: str) -> LoraFile:
    """FILE or FILE:WEIGHT. A colon that no number follows belongs to the file's name."""
    path, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        return LoraFile(Path(text))
    if not path or not math.isfinite(weight):
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE or FILE:WEIGHT")
    return LoraFile(Path(path), weight)


@dataclass(frozen=True)
class Adapters:
    """The files that names may stand for.

    Attributes:
        loras: used for every prompt.
        folder: where the LoRAs lie that prompts and pictures name.
        embeddings: learned words.
        allow_partial: use LoRAs of which only a part fits the model.
        folders: of --models-dir and the settings file, where names are looked for last.
    """

    loras: tuple[LoraFile, ...] = ()
    folder: Path | None = None
    embeddings: tuple[Path, ...] = ()
    allow_partial: bool = False
    folders: ModelFolders = field(default_factory=ModelFolders)

    def check(self) -> None:
        """Refuse files that are not there or cannot be read. Raises FileError."""
        named = [("lora", lora.path) for lora in self.loras]
        for flag, path in (*named, *(("embedding", path) for path in self.embeddings)):
            if not path.expanduser().exists():
                raise FileError(
                    f"--{flag} {path} is missing.", "There is no such file.", "Check its name."
                )
        if self.folder is not None and not self.folder.expanduser().is_dir():
            raise FileError(
                f"--lora-folder {self.folder} is no folder.",
                "LoRAs that prompts name are looked for in it.",
                "Name the folder that holds your LoRA files.",
            )
        for lora in self.loras:
            _read_lora(lora.path)
        for path in self.embeddings:
            _read_embedding(path)

    def known(self) -> Mapping[str, Path]:
        """Every LoRA that a name may stand for. FileError where two files have one name."""
        elsewhere = self.folders.names("loras")
        named = elsewhere | {lora.name: lora.path for lora in self.loras}
        if self.folder is None:
            return named
        in_folder: dict[str, Path] = {}
        for path in sorted(self.folder.expanduser().rglob("*.safetensors")):
            other = in_folder.setdefault(path.stem, path)
            if other != path and path.stem not in {lora.name for lora in self.loras}:
                raise FileError(
                    f"Two LoRAs are called {path.stem!r}.",
                    f"They are {other} and {path}.",
                    "Rename one of them, or give the one that is meant with --lora.",
                )
        return elsewhere | in_folder | {lora.name: lora.path for lora in self.loras}

    def find(self, name: str, known: Mapping[str, Path] | None = None) -> Path:
        """The file for a name. UsageError, with the nearest name, where there is none.

        Args:
            known: what `known` gives, where several names are looked for.
        """
        if known is None:
            known = self.known()
        if name in known:
            return known[name]
        found = self.folders.find("loras", name) or _by_alias(name, known)
        if found is not None:
            return found
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        where = "LoRAs in prompts are looked for in --lora-folder and --models-dir; none is given"
        if self.folder or self.folders.places:
            places = [self.folder] if self.folder else []
            places += self.folders.places.get("loras", ())
            where = f"{', '.join(map(str, places)) or '--models-dir'} holds no such file"
        raise UsageError(
            f"There is no LoRA {name!r:.80}.",
            f"The prompt or the picture names it; {where}.",
            f"Did you mean {near[0]!r}?" if near else "Give it with --lora, or its --lora-folder.",
        )

    def choose(
        self, tags: Iterable[LoraTag], of_picture: Sequence[LoraSettings] = ()
    ) -> tuple[LoraSettings, ...]:
        """The LoRAs of one prompt.

        Args:
            tags: those that the prompt names, which come first.
            of_picture: a picture's; a weight that a flag gives comes before theirs.
        """
        from sdcore.job.adapters import LoraSettings

        chosen = {lora.name: replace(lora, hash="") for lora in of_picture}
        for lora in self.loras:
            if lora.weight is not None or lora.name not in chosen:
                weight = 1.0 if lora.weight is None else lora.weight
                chosen[lora.name] = LoraSettings(lora.name, weight, weight)
        tags = list(tags)
        known = self.known() if tags else None
        for tag in tags:
            self.find(tag.name, known)
            chosen[tag.name] = LoraSettings(tag.name, tag.unet, tag.text_encoder, blocks=tag.blocks)
        for lora in chosen.values():
            if lora.blocks:
                from sdcore.adapters.lora_blocks import read_blocks

                read_blocks(lora.blocks)
        return tuple(chosen.values())

    def embedding_settings(self, dialect: str, *texts: str) -> tuple[EmbeddingSettings, ...]:
        """The embeddings as a job names them: those of flags, and those that its texts call."""
        from sdcore.files.hashes import file_hash
        from sdcore.job.adapters import EmbeddingSettings

        read = [_read_embedding(path) for path in self._embedding_files(dialect, texts).values()]
        return tuple(EmbeddingSettings(one.name, file_hash(one.path)) for one in read)

    def _embedding_files(self, dialect: str, texts: Sequence[str]) -> dict[str, Path]:
        """Name -> file: of --embedding, and what texts call as the web UI and ComfyUI do."""
        files = {path.stem: path for path in self.embeddings}
        if not self.folders.places.get("embeddings"):
            return files
        text = "\n".join(texts)
        if dialect == "comfy":
            for name in re.findall(r"\bembedding:([^\s,()]+)", text):
                found = self.folders.find("embeddings", name)
                if found is not None:
                    files.setdefault(found.stem, found)
        elif dialect.startswith("a1111"):
            for name, path in self.folders.names("embeddings").items():
                if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
                    files.setdefault(path.stem, path)
        return files

    def without_missing(self, recipe: Recipe) -> Recipe:
        """The recipe without what is not here of its LoRAs and embeddings; its differences name it.

        A run of ours is repeated with all of them or not at all: there a missing one is a
        UsageError.
        """
        from sdcore.files.hashes import tensor_hash
        from sdcore.metadata.recipe import SDCORE

        known = self.known()
        kept: list[LoraSettings] = []
        differences: list[str] = []
        prompt = recipe.job.prompt
        for lora in recipe.job.loras:
            path = known.get(lora.name)
            if path is None and recipe.origin == SDCORE:
                self.find(lora.name)
            if path is None:
                differences.append(f"LoRA {lora.name!r:.80} is not here; see --lora-folder")
                prompt = re.sub(rf"<lora:{re.escape(lora.name)}(:[^<>]*)?>", "", prompt)
                continue
            kept.append(lora)
            if lora.hash and path.is_file() and not tensor_hash(path).startswith(lora.hash):
                differences.append(f"LoRA {lora.name!r:.80}: {path} is another file by its hash")
        differences += self._other_embeddings(recipe)
        job = replace(recipe.job, prompt=prompt, loras=tuple(kept))
        return replace(recipe, job=job, differences=(*recipe.differences, *differences))

    def _other_embeddings(self, recipe: Recipe) -> list[str]:
        """In words, which of the picture's embeddings are not here."""
        from sdcore.files.hashes import file_hash
        from sdcore.metadata.recipe import SDCORE

        here = self.folders.names("embeddings")
        here |= {path.stem: path.expanduser() for path in self.embeddings}
        found: list[str] = []
        for embedding in recipe.job.embeddings:
            path = here.get(embedding.name)
            if path is None and recipe.origin == SDCORE:
                raise UsageError(
                    f"The embedding {embedding.name!r:.80} is not given.",
                    "The picture was painted with it.",
                    f"Add --embedding with the file {embedding.name:.80}.safetensors.",
                )
            if path is None:
                found.append(f"embedding {embedding.name!r:.80} is not here; see --embedding")
            elif path.is_file() and not file_hash(path).startswith(embedding.hash):
                found.append(
                    f"embedding {embedding.name!r:.80}: {path} is another file by its hash"
                )
        return found

    def with_embeddings(self, pipe: TextToImage, jobs: Sequence[Job]) -> TextToImage:
        """The pipeline with the learned words, which prompts call as the jobs' dialect does."""
        texts = [text for job in jobs for text in (job.text, job.negative_text or "")]
        files = self._embedding_files(jobs[0].dialect, texts)
        if not files:
            return pipe
        from sdcore.adapters.textual_inversion import apply_embeddings, unused_words
        from sdcore.errors import warn

        read = [_read_embedding(path) for path in files.values()]
        learned = apply_embeddings(pipe, read, dialect=jobs[0].dialect)
        for word in unused_words(learned, *texts):
            warn(f"no prompt says {word!r}, so its embedding has no effect")
        return learned

    def with_loras(self, pipe: TextToImage, job: Job) -> TextToImage:
        """The pipeline with a job's LoRAs."""
        if not job.loras:
            return pipe
        from sdcore.adapters.lora import LoraWeight, apply_loras

        read = [_read_lora(self.find(lora.name)) for lora in job.loras]
        weights = [LoraWeight(lora.unet, lora.text, lora.blocks) for lora in job.loras]
        return apply_loras(
            pipe,
            list(zip(read, weights, strict=True)),
            allow_partial=self.allow_partial,
            dialect=job.dialect,
        )


def _read_lora(path: Path) -> Lora:
    """A LoRA, read once for all batches, and anew where its file has changed."""
    try:
        found = path.expanduser().stat()
    except OSError:
        return _read_version(path, 0, 0)  # which says what is wrong with it
    return _read_version(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=32)
def _read_version(path: Path, changed: int, size: int) -> Lora:
    from sdcore.adapters.lora_file import read_lora

    return read_lora(path)


def _read_embedding(path: Path) -> Embedding:
    from sdcore.adapters.textual_inversion import read_embedding

    return read_embedding(path)


def _by_alias(name: str, known: Mapping[str, Path]) -> Path | None:
    """The one LoRA that its trainer gave this name (`ss_output_name`), as the web UI finds it."""
    found: set[Path] = set()
    for path in set(known.values()):
        with suppress(FileError):  # a damaged one beside it is no reason
            if open_header(path).metadata.get("ss_output_name") == name:
                found.add(path)
    return found.pop() if len(found) == 1 else None
