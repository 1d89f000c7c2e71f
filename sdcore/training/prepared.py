"""A fine-tuning that is ready: what the loop takes, and what a run of it is of."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdcore.errors import FileError, UsageError
from sdcore.files.atomic import json_writer, replace_file
from sdcore.files.jsonfile import read_json
from sdcore.image.pictures import to_images
from sdcore.training.data.cache import TextCache
from sdcore.training.data.captions import full_caption
from sdcore.training.data.examples import ExampleBatch, Examples
from sdcore.training.data.order import Order
from sdcore.training.data.pictures import mask_pixels, pixels
from sdcore.training.data.scan import Scan
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.fingerprint import of_pictures
from sdcore.training.folder import CHECKPOINTS, check_room, check_unchanged, lock_folder
from sdcore.training.inpainting import mask_channels
from sdcore.training.methods import Method
from sdcore.training.network import CaptionReader
from sdcore.training.objective import Objective
from sdcore.training.optimizers import check_optimizer
from sdcore.training.processes import Processes, check_tracker
from sdcore.training.run import Run
from sdcore.training.state import latest_checkpoint, newest_step
from sdcore.training.validation import Validation

_DATA = "data.json"
_MASKED = 4  # pictures with masks in which a word's attention is measured


@dataclass
class Prepared:
    """A fine-tuning, ready to begin or to go on.

    Attributes:
        settings: complete.
        texts: cache of what text encoders that are not trained make of captions.
        chosen: a line for each thing that the settings left open.
        scheduler: the noise process of the model, as in a scheduler_config.json.
        base: what tells the model that is trained from others.
    """

    settings: FinetuneSettings
    method: Method
    scan: Scan
    order: Order
    examples: Examples
    texts: TextCache
    chosen: list[str]
    scheduler: dict[str, Any]
    processes: Processes
    base: str
    began: float = field(default_factory=time.time)

    @property
    def is_main(self) -> bool:
        return self.processes.is_main

    @property
    def word(self) -> str:
        """The word that is taught; "" where there is none."""
        settings = self.settings
        learned = settings.inversion.token if settings.method == "textual_inversion" else ""
        return settings.validation.word or learned or settings.data.trigger

    # --- what the loop takes ---------------------------------------------------------------------

    def prompts(self) -> list[str]:
        """What is painted now and then: the settings' prompts, or captions of the data."""
        how = self.settings.validation
        if self.method.pipe.kind.reads_mask:
            return []  # such a model paints into pictures, not from prompts alone
        listed = how.prompts or self.captions()
        if self.word and not how.prompts:
            listed = [*[text for text in listed if self.word in text], self.word]
        return list(dict.fromkeys(listed))[: how.images]

    def captions(self) -> list[str]:
        """What is said of one's own pictures, each once."""
        texts = [full_caption(p.item) for p in self.scan.pictures if not p.item.prior]
        return list(dict.fromkeys(filter(None, texts)))

    def validation(self, run: Run, objective: Objective, read: CaptionReader) -> Validation:
        """What looks at the run now and then."""
        return Validation(
            run,
            self.method.pipe,
            objective,
            read,
            self.settings.validation,
            prompts=self.prompts(),
            word=self.word,
            held_out=self.examples.held_out(),
            latents=self.latents,
            seen=self.seen,
            masked=list(self._masked()),
        )

    def _masked(self) -> Iterable[tuple[Any, str, Tensor]]:
        """Pictures whose subject's mask is known and whose caption says the word."""
        found = 0
        readable = not self.method.pipe.kind.reads_mask  # heatmaps_of_image has no mask to hand on
        for picture in self.scan.pictures if readable else ():
            masked = picture.item.mask is not None or picture.item.look.alpha_mask
            caption = full_caption(picture.item)
            if masked and self.word and self.word in caption and found < _MASKED:
                found += 1
                (image,) = to_images(pixels(picture, picture.fit, False)[None])
                yield image, caption, mask_pixels(picture, picture.fit, False)

    def latents(self, batch: ExampleBatch) -> Tensor:
        """The latents of a batch (B, C, h, w): those in it, or encoded now."""
        if batch.latents is not None:
            return batch.latents
        assert batch.pixels is not None
        encode = self.method.pipe.autoencoder.encode
        with torch.no_grad():  # one at a time, as for the cache: a batch rounds otherwise
            return torch.cat([encode(image[None]) for image in batch.pixels])

    def seen(self, batch: ExampleBatch, noisy: Tensor, seed: int, number: int) -> Tensor:
        """What the UNet reads: noisy latents, and of a model that fills holes a mask drawn anew."""
        if not self.method.pipe.kind.reads_mask:
            return noisy
        assert batch.pixels is not None, "the latents of such a model's pictures are not cached"
        more = mask_channels(self.method.pipe.autoencoder, batch.pixels, seed, number)
        return torch.cat([noisy, more], dim=1)

    def check(self, verify: bool = False) -> None:
        """Refuse now what the run would refuse at its beginning.

        Args:
            verify: read the checkpoints that are there, too.

        Raises:
            UsageError, FileError: what it is.
        """
        loop, folder = self.settings.run, Path(self.settings.run.folder)
        Objective(self.scheduler, self.settings.noise)
        check_optimizer(loop.optimizer)
        check_tracker(loop.tracker)
        if not self.is_main:
            return
        lock_folder(folder).release()
        if verify:
            latest_checkpoint(folder / CHECKPOINTS)
        step = newest_step(folder / CHECKPOINTS)
        if step:
            check_unchanged(folder, self.settings)
            self._check_same(folder)
        check_room(folder, self.method.network, loop, step)

    def record(self, run: Run) -> None:
        """Write what the run is of; refuse to go on with other data or another model.

        Raises:
            UsageError: a run of this folder began with others.
            FileError: what it began with cannot be read.
        """
        if run.step > 0:
            self._check_same(run.folder)
        if run.is_main:
            summary = self.scan.summary(self.method.pipe.readers[0][0]).splitlines()
            replace_file(run.folder / _DATA, json_writer({**self._what(), "summary": summary}))

    def _what(self) -> dict[str, str]:
        pictures = of_pictures((*self.scan.pictures, *self.scan.held_out))
        return {"pictures": pictures, "model": self.base}

    def _check_same(self, folder: Path) -> None:
        path = folder / _DATA
        if not path.exists():
            return
        try:
            before = read_json(path)
        except FileError as error:
            raise FileError(
                f"{path} is damaged.",
                f"It says what the run is of. {error.why}",
                "Where pictures, captions and model are as before, remove it and start again.",
            ) from error
        words = {"pictures": "pictures or captions", "model": "weights of the model"}
        changed = [words[n] for n, value in self._what().items() if before.get(n) != value]
        if changed:
            raise UsageError(
                f"{folder} holds a run with other {' and '.join(changed)}.",
                "To go on is exact only with the same pictures, captions and weights.",
                "Use a new run.folder, or put back what the run began with.",
            )
