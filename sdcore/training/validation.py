"""What a fine-tuning shows of itself: pictures, a word's heatmap, drift, and a held-out loss.

Nothing is loaded for it: the modules that are trained paint. Everything is the same each time:
prompts, seeds, times and noises.

    samples/step-000100.png   a row of pictures, one for each prompt; of step 0, the model as it was
    samples/heat-000100.png   the same with the word's heatmap laid over
    samples/grid.png          all rows so far
    samples/samples.json      which is which
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdcore.checkpoint.kind import FAMILIES
from sdcore.checks import as_finite
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.errors import UsageError, warn
from sdcore.files.atomic import json_writer, replace_files
from sdcore.image.grid import labelled_grid
from sdcore.job.job import make_jobs
from sdcore.pipeline.image_heatmaps import heatmaps_of_image
from sdcore.prompt.tokens import read_tokens
from sdcore.training.network import CaptionReader
from sdcore.training.objective import Objective, draw_noise
from sdcore.training.run import Run

if TYPE_CHECKING:
    from sdcore.pipeline.text_to_image import TextToImage
    from sdcore.training.data.examples import ExampleBatch
    from sdcore.training.finetune_settings import ValidationSettings

TIMES = (50, 200, 400, 600, 800)  # of 1000, at which the held-out loss is computed
_HEAT_TIMES = (300, 500)
_OTHERS = {  # whether the model is of a family that knows everything
    True: ["a photo of a cat", "a photo of a house"],
    False: [
        "a cat in flat style on a light blue background",
        "a house in flat style on a white background",
    ],
}


class Validation:
    """Looks at a run now and then.

    Args:
        run, pipe: what is trained, and what paints with it.
        prompts: that are painted.
        word: whose heatmap is drawn where a prompt says it; "" for none.
        held_out: batches that are never trained on; latents: theirs (B, C, h, w);
            seen: what the UNet reads of noisy ones.
        masked: pictures with their captions and subjects' masks (1, H, W), for the share of the
            word's attention inside.
    """

    def __init__(
        self,
        run: Run,
        pipe: TextToImage,
        objective: Objective,
        read: CaptionReader,
        settings: ValidationSettings,
        *,
        prompts: Sequence[str],
        word: str,
        held_out: Sequence[ExampleBatch],
        latents: Callable[[ExampleBatch], Tensor],
        seen: Callable[[ExampleBatch, Tensor, int, int], Tensor],
        masked: Sequence[tuple[Image.Image, str, Tensor]],
    ) -> None:
        self.run, self.pipe, self.objective, self.read = run, pipe, objective, read
        self.settings, self.word = settings, word
        self.others = settings.other_prompts or _OTHERS[pipe.kind.family in FAMILIES.values()]
        self.prompts, self.held_out, self.masked = list(prompts), held_out, masked
        self.latents, self.seen = latents, seen
        self.folder = run.folder / "samples"
        self.best, self.without_better = self._remembered()

    def look(self, step: int) -> bool:
        """Paint and measure after `step` steps; whether the run should stop, as it gets no better.

        Only the main process does it; the others wait.
        """
        was_training = self.run.module.training
        self.run.module.eval()
        try:
            with self.run.averaged(), torch.no_grad():
                row = self._row(step) if self.run.is_main else {}
        finally:
            self.run.module.train(was_training)
        if row:
            self.run.write("evaluation.jsonl", {"step": step, **row})
        return bool(self.run.processes.largest(self.hopeless))

    @property
    def hopeless(self) -> bool:
        """Whether the held-out loss has not fallen for as many looks as `patience`."""
        patience = self.settings.patience
        return bool(patience) and self.without_better >= patience

    def _row(self, step: int) -> dict[str, float]:
        row = self._measures()
        if self.prompts:
            row |= self._paint(step)
        self._count(row.get("validation_loss"))
        return row

    # --- numbers ---------------------------------------------------------------------------------

    def _measures(self) -> dict[str, float]:
        row: dict[str, float] = {}
        if self.held_out:
            row["validation_loss"] = round(self._loss(), 6)
        if self.masked and self.word:
            row["attention_in_subject"] = round(self._share(), 4)
        return row

    def _loss(self) -> float:
        """The mean error on what is held out, at fixed times and noises."""
        total, count = 0.0, 0
        last = len(self.objective.alphas_cumprod)
        for number, batch in enumerate(self.held_out):
            batch = batch.to(self.run.device)
            latents = self.latents(batch)
            text = self.read(batch.captions, self.run.device)
            noise = draw_noise(latents.shape, self.settings.seed, number).to(latents.device)
            for time in (t * last // 1000 for t in TIMES):
                noised = self.objective.add_noise(latents, noise, time)
                seen = self.seen(batch, noised.latents, self.settings.seed, number)
                with self.run.autocast():
                    answer = self.run.module(seen, time, text, batch.time_ids)
                total += float(self.objective.errors(answer, noised).sum())
                count += len(latents)
        return total / count

    def _share(self) -> float:
        """How much of the word's attention lies inside the subjects' masks, 0 to 1."""
        shares: list[float] = []
        for image, caption, mask in self.masked:
            heatmaps = heatmaps_of_image(self.pipe, image, caption, _HEAT_TIMES)
            heat = heatmaps.of(self.word, size=(mask.shape[1], mask.shape[2]))
            shares.append(float((heat * mask[0]).sum() / heat.sum()))
        return sum(shares) / len(shares)

    # --- pictures --------------------------------------------------------------------------------

    def _paint(self, step: int) -> dict[str, float]:
        pictures: list[Image.Image] = []
        heats: list[Image.Image] = []
        for prompt in self.prompts:
            picture, heat = self._paint_one(prompt)
            pictures.append(picture)
            heats.append(heat or picture)
        others = [self._paint_one(prompt)[0] for prompt in self.others]
        files = {f"step-{step:06d}.png": _row(pictures).save}
        if self.word:
            files[f"heat-{step:06d}.png"] = _row(heats).save
        if others:
            files[f"other-{step:06d}.png"] = _row(others).save
        replace_files(self.folder, files)
        self._write_grid(pictures[0].size)
        drift = self._drift(step)
        return {} if drift is None else {"drift_of_others": round(drift, 5)}

    def _paint_one(self, prompt: str) -> tuple[Image.Image, Image.Image | None]:
        """A picture, and where the word is read in it, where the prompt says it."""
        tokenizers = [tokenizer for tokenizer, _ in self.pipe.readers]
        tokens = [read_tokens(prompt, tokenizer, "plain") for tokenizer in tokenizers]
        heatmaps = WordHeatmaps(tokens)
        (job,) = make_jobs(
            [prompt],
            seed=self.settings.seed,
            steps=self.settings.steps,
            guidance_scale=self.settings.guidance_scale,
        )
        control = heatmaps if self.word and self.word in prompt else None
        (picture,) = self.pipe.paint(job, control, progress=False).images
        if control is None:
            return picture, None
        try:
            return picture, heatmaps.overlay(picture, self.word)
        except UsageError:  # the word was cut off
            return picture, None

    def _drift(self, step: int) -> float | None:
        """How far pictures of other prompts have moved: mean difference, 0 to 1."""
        first, last = (_opened(self.folder / f"other-{number:06d}.png") for number in (0, step))
        if first is None or last is None or first.size != last.size:
            return None
        before, now = (np.asarray(sheet, dtype=np.float32) for sheet in (first, last))
        return float(np.abs(before - now).mean()) / 255

    def _write_grid(self, size: tuple[int, int]) -> None:
        """All rows so far on one sheet, and what they are for the report."""
        rows: list[dict[str, object]] = []
        pictures: list[list[Image.Image]] = []
        for path in sorted(self.folder.glob("step-*.png")):
            if not (number := path.stem.removeprefix("step-")).isdecimal():
                continue  # somebody's own
            sheet = _opened(path)
            if sheet is None:
                continue
            step = int(number)
            heat = path.with_name(path.name.replace("step-", "heat-"))
            row: dict[str, object] = {
                "step": step,
                "file": path.name,
                "heatmap": heat.name if heat.exists() else "",
            }
            rows.append(row)
            pictures.append(_cut(sheet, size))
        names = ["before" if not row["step"] else f"step {row['step']}" for row in rows]
        grid = labelled_grid(pictures, self.prompts, names, side=96)
        listed = {"rows": rows, "prompts": self.prompts, "word": self.word}
        replace_files(self.folder, {"grid.png": grid.save, "samples.json": json_writer(listed)})

    # --- the best so far -------------------------------------------------------------------------

    def _count(self, loss: float | None) -> None:
        if loss is None:
            return
        if loss < self.best:
            self.best, self.without_better = loss, 0
            self.run.keep_best()
        else:
            self.without_better += 1

    def _remembered(self) -> tuple[float, int]:
        """The best loss of the run so far, and how many looks came after it."""
        path = self.run.folder / "evaluation.jsonl"
        best, since = math.inf, 0
        if path.is_file():
            for line in path.read_text("utf-8", errors="replace").splitlines():
                loss = _loss_of(line)
                if loss is not None:
                    best, since = (loss, 0) if loss < best else (best, since + 1)
        return best, since


def _opened(path: Path) -> Image.Image | None:
    """A sheet of pictures; None where it is gone or torn: a run does not stop for it."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as sheet:
            return sheet.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow's word for a PNG that is none
        warn(f"{path} is damaged and is left out: {error}")
        return None


def _loss_of(line: str) -> float | None:
    """The held-out loss of a row; None where it has none or is damaged."""
    try:
        return as_finite(json.loads(line)["validation_loss"])
    except (ValueError, KeyError, TypeError):
        return None


def _row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, side by side."""
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for column, picture in enumerate(pictures):
        row.paste(picture, (column * width, 0))
    return row


def _cut(row: Image.Image, size: tuple[int, int]) -> list[Image.Image]:
    """The pictures of a row."""
    width, height = size
    return [row.crop((x, 0, x + width, height)) for x in range(0, row.width - width + 1, width)]
