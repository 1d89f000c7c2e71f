"""The files that a training leaves behind, which other programs open.

lora               kohya (the web UI, ComfyUI, diffusers, sdcore), diffusers, peft
full               a folder in diffusers' layout, a single file
textual_inversion  kohya (the web UI's file), diffusers
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sdcore.adapters.embedding_saving import save_embedding
from sdcore.adapters.lora_peft import PEFT_WEIGHTS
from sdcore.adapters.lora_saving import save_lora
from sdcore.checkpoint.defaults import FILE_NAME as SAMPLING
from sdcore.checkpoint.loading import save_folder
from sdcore.checkpoint.single_file import save_single_file
from sdcore.diffusion.schedulers import with_settings
from sdcore.errors import UsageError
from sdcore.files.atomic import replace_file
from sdcore.pipeline.text_to_image import EMBEDDED
from sdcore.text.known_words import FILE_NAME as WORDS
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.folder import CHECKPOINTS
from sdcore.training.methods import Method, learned_rows
from sdcore.training.peft_layers import changes_of
from sdcore.training.sharding import undivided
from sdcore.training.state import newest_step

FORMATS = {  # the first is written where none is named
    "lora": ("kohya", "diffusers", "peft"),
    "full": ("folder", "single_file"),
    "textual_inversion": ("kohya", "diffusers"),
}
_KOHYA_ALONE = ("loha", "lokr")  # kinds that no other format has


_OURS = ("best", "cache", "checkpoints", "samples")  # folders in that of a run
_LONGEST = 180  # bytes of a name; endings and what drafts are called come on top


def output_name(settings: FinetuneSettings) -> str:
    """What files are called, without their endings."""
    return settings.output.name or Path(settings.run.folder).resolve().name or "trained"


def output_path(settings: FinetuneSettings, name: str, form: str) -> Path:
    """Where a format is written; of several folders, the UNet's.

    The format that is usual has the plain name.
    """
    folder = Path(settings.run.folder)
    if form in ("folder", "peft"):
        return folder / (name if form == "folder" else f"{name}-unet")
    usual = form in (FORMATS[settings.method][0], "single_file")
    return folder / f"{name}{'' if usual else f'.{form}'}.safetensors"


def check_output(settings: FinetuneSettings) -> None:
    """Refuse what could not be written at the end, before the first step.

    Raises:
        UsageError: a format that the method does not have, a name that is a path, or something is
            there already that this run has not written.
    """
    known = FORMATS[settings.method]
    for form in settings.output.formats:
        if form not in known:
            raise UsageError(
                f"The format {form} is not one of {settings.method}.",
                f"It is written as {' or '.join(known)}.",
                "Change output.formats, or leave it out.",
            )
        if settings.method == "lora" and settings.lora.kind in _KOHYA_ALONE and form != "kohya":
            raise UsageError(
                f"The format {form} has no {settings.lora.kind}.",
                "It has LoRA and DoRA alone.",
                "Use output.formats=[kohya], or another lora.kind.",
            )
    _check_names(settings)


def _check_names(settings: FinetuneSettings) -> None:
    name = settings.output.name
    if name and (name != Path(name).name or name[0] == "." or not name.isprintable()):
        raise UsageError(
            f"The setting output.name cannot be {name!r}.",
            "It names files in run.folder, without their endings.",
            "Use a word without / that begins with no dot.",
        )
    name = output_name(settings)
    if len(os.fsencode(name)) > _LONGEST:
        raise UsageError(
            "The files cannot be named so.",
            f"{name:.40}... has more than {_LONGEST} bytes.",
            "Set output.name to something shorter.",
        )
    begun = newest_step(Path(settings.run.folder) / CHECKPOINTS) > 0
    for form in settings.output.formats or FORMATS[settings.method][:1]:
        path = output_path(settings, name, form)
        if form == "folder" and name in _OURS:
            why = f"A run keeps something else in its folder {name}."
            raise UsageError(f"{path} cannot be written.", why, "Set output.name to another word.")
        model = settings.model
        if path.exists() and (not begun or (os.path.exists(model) and path.samefile(model))):
            raise UsageError(
                f"{path} is there already.",
                "It would be replaced at the end, and no run in this folder has written it.",
                "Move it away, or set output.name or run.folder to another one.",
            )


@dataclass(frozen=True)
class Export:
    """What was trained, about to be written; the network holds the weights that are meant.

    Attributes:
        name: theirs, without suffix.
        facts: strings for the header.
    """

    method: Method
    settings: FinetuneSettings
    name: str
    facts: Mapping[str, str]

    def write(self) -> list[Path]:
        """Write it in each format that the settings name; the paths.

        Raises:
            FileError: the disk is full, or the folder cannot be written.
        """
        kind = self.settings.method
        writers = {"lora": self._lora, "full": self._full, "textual_inversion": self._word}
        return [writers[kind](form) for form in self.settings.output.formats or FORMATS[kind][:1]]

    def _path(self, form: str) -> Path:
        return output_path(self.settings, self.name, form)

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.settings.output.dtype)

    def _lora(self, form: str) -> Path:
        method = self.method
        changes = {
            place: change.at(torch.device("cpu"), self._dtype)
            for part in method.adapted
            for place, change in changes_of(method.pipe.part(part), part).items()
        }
        if form == "peft":  # of one network each, in a folder with its settings
            for part in method.adapted:
                mine = {place: change for place, change in changes.items() if place.part == part}
                folder = self._path(form).with_name(f"{self.name}-{part}")
                save_lora(folder / PEFT_WEIGHTS, mine, spelling=form)
            return self._path(form)
        save_lora(self._path(form), changes, spelling=form, metadata=self.facts)
        return self._path(form)

    def _full(self, form: str) -> Path:
        pipe = self.method.pipe.replace(unet=undivided(self.method.pipe.unet))
        if self.settings.noise.zero_terminal_snr:  # trained down to pure noise, it begins there
            changed = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            pipe = pipe.replace(scheduler=with_settings(pipe.scheduler, **changed))
        if form == "single_file":
            path = self._path(form)
            save_single_file(pipe, path, dtype=self._dtype, metadata=self.facts)
            return path
        model = self.settings.model
        source, target = Path(EMBEDDED if model == "embedded" else model), self._path(form)
        save_folder(pipe, target, dtype=self._dtype)
        for said in (SAMPLING, WORDS):  # how the model is best run, and the words that it knows
            if (source / said).is_file():
                replace_file(target / said, partial(shutil.copyfile, source / said))
        return target

    def _word(self, form: str) -> Path:
        pipe = self.method.pipe
        vectors = {
            part: learned_rows(pipe.part(part)).detach().cpu().to(self._dtype)
            for part in pipe.kind.text_encoders
        }
        return save_embedding(
            self._path(form),
            self.settings.inversion.token,
            vectors,
            spelling="web_ui" if form == "kohya" else form,
            metadata=self.facts,
        )[0]
