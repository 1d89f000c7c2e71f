"""What every training recipe shares: settings, learning rate, metrics file, checkpoints, resume.

A recipe is a loop of its own (`pretrain_*.py`); `Run` gives it a place, a step to start from and a
way to stop and go on without a trace: N steps straight are, bit for bit, k steps, a kill and N - k.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from sdcore.errors import FileError, NonFiniteError, UsageError, name_some, warn
from sdcore.files.atomic import append_line, make_folder
from sdcore.files.locks import FolderLock
from sdcore.training.optimizers import make_optimizers
from sdcore.training.settings import Settings, flat, read_yaml, save_settings
from sdcore.training.state import (
    Average,
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


class RunSettings(Settings):
    """How long, how fast, where. Steps count optimizer updates."""

    folder: str  # everything the run writes
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: of weight matrices; see optimizers.py
    warmup_steps: int = Field(200, ge=0)
    decay_share: float = Field(0.3, ge=0, le=1)  # the last steps, over which the rate falls to zero
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=False)
    ema_decay: float = Field(0.0, ge=0, lt=1)  # 0: no moving average
    seed: int = Field(0, ge=0)
    precision: Literal["no", "bf16"] = "bf16"
    threads: int = Field(0, ge=0)  # 0: as many as torch takes
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    sample_every: int = Field(1000, ge=1)
    keep: int = Field(2, ge=1)  # so many of the newest checkpoints


# A run may be prolonged, moved and watched otherwise without becoming another run.
MAY_CHANGE = {
    f"run.{name}"
    for name in (
        *("folder", "steps", "decay_share", "keep", "threads"),
        *("log_every", "checkpoint_every", "sample_every"),
    )
}


def learning_rate(settings: RunSettings, step: int) -> float:
    """Linear warm-up, a plateau, a linear fall to zero over the last `decay_share` of the steps.

    The plateau lets a run be prolonged: resume from a checkpoint before the fall with more steps.
    """
    rise = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    fall = min(1.0, (settings.steps - step) / max(1.0, settings.decay_share * settings.steps))
    return settings.learning_rate * rise * fall


class Run:
    """One training run in one folder.

    Args:
        settings: checked settings of the whole recipe; written to `resolved.yaml`.
        loop: the part of them that is the run's.
        module: what is trained; its parameters are what the optimizer updates.

    Raises:
        UsageError: another run is at work in the folder, or it holds one with other settings.
        FileError: the folder cannot be written, or no checkpoint in it can be used.
    """

    def __init__(self, settings: Settings, loop: RunSettings, module: nn.Module) -> None:
        self.loop, self.folder = loop, Path(loop.folder)
        if loop.threads:
            torch.set_num_threads(loop.threads)
        self.accelerator = Accelerator(mixed_precision=loop.precision)
        if self.accelerator.num_processes > 1:
            raise UsageError(
                f"The run has {self.accelerator.num_processes} processes.",
                "A recipe trains in one process, on one device.",
                "Start it without accelerate launch.",
            )
        make_folder(self.folder)
        self.module = module.to(self.accelerator.device)
        self.average = Average(self.module, loop.ema_decay) if loop.ema_decay else None
        self.optimizers = make_optimizers(
            self.module,
            kind=loop.optimizer,
            learning_rate=loop.learning_rate,
            weight_decay=loop.weight_decay,
        )
        self._lock = _lock(self.folder)
        try:
            self.step = self._resume(settings)
            save_settings(settings, self.folder / "resolved.yaml")
        except BaseException:
            self._lock.release()
            raise
        self._started, self._first = time.monotonic(), self.step

    def steps(self) -> Iterator[int]:
        """The steps left; the learning rate is set before each, a checkpoint kept after some."""
        bar = tqdm(total=self.loop.steps, initial=self.step, disable=None, desc=self.folder.name)
        while self.step < self.loop.steps:
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(self.loop, self.step)
            yield self.step
            self.step += 1
            bar.update()
            if self.step % self.loop.checkpoint_every == 0 or self.step == self.loop.steps:
                self.checkpoint()

    def update(self, loss: torch.Tensor) -> float:
        """One optimizer update from `loss`; returns the gradient norm before clipping."""
        self.accelerator.backward(loss)  # pyright: ignore[reportUnknownMemberType]
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.loop.max_grad_norm)
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"The gradient norm is {norm} in step {self.step}.",
                "The loss or its gradient is not finite.",
                "Lower run.learning_rate, or use run.precision: 'no', in a new run.folder.",
            )
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.module.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.module, self.step)
        return float(norm)

    def log(self, **metrics: float | Tensor) -> None:
        """Append one line of metrics to `metrics.jsonl` every `log_every` steps, and print it."""
        if self.step % self.loop.log_every:
            return
        rate = (
            (self.step - self._first + 1)
            * self.loop.batch_size
            / (time.monotonic() - self._started)
        )
        row = {
            "step": self.step,
            **{k: round(float(torch.as_tensor(v).detach()), 6) for k, v in metrics.items()},
        }
        row |= {"images_per_second": round(rate, 1), "lr": learning_rate(self.loop, self.step)}
        self.write("metrics.jsonl", row)

    def write(self, name: str, row: Mapping[str, float]) -> None:
        """Append a JSON line to a file of the run and show it."""
        append_line(self.folder / name, json.dumps(dict(row)))
        tqdm.write(" ".join(f"{key} {value:.6g}" for key, value in row.items()))

    def checkpoint(self) -> None:
        """Keep all that is needed to go on from here."""
        parts = {"model": self.module.state_dict()}
        parts |= {name: optimizer_tensors(one) for name, one in self.optimizers.items()}
        if self.average:
            parts["average"] = self.average.tensors
        save_checkpoint(self.folder / "checkpoints", self.step, parts, self.loop.keep)

    def averaged(self) -> Averaged:
        """Context in which the module holds its averaged weights (samples, evaluation, export)."""
        return Averaged(self.module, self.average)

    def _resume(self, settings: Settings) -> int:
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return 0
        self._check_unchanged(settings)
        step, parts = load_checkpoint(checkpoint)
        self.module.load_state_dict(parts["model"])
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, parts[name])
        if self.average:
            self.average.tensors = {
                k: v.to(self.accelerator.device) for k, v in parts["average"].items()
            }
        print(f"resumed {checkpoint}")
        return step

    def _check_unchanged(self, settings: Settings) -> None:
        """Refuse to go on with settings that would make it another run."""
        path = self.folder / "resolved.yaml"
        if not path.exists():
            warn(f"{path} is gone; the settings are taken to be the same")
            return
        new = flat(settings.model_dump(mode="json"))
        try:
            old, why = flat(read_yaml(path)), None
        except FileError as error:
            old, why = {}, f"{error.what} {error.why}"
        lacking = sorted(new.keys() - old.keys())
        if lacking:
            raise FileError(
                f"{self.folder} holds a run whose settings cannot be read.",
                why or f"{path} lacks {name_some(lacking)}.",
                f"Where they are the same as before, remove {path} and start again.",
            )
        changed = [
            f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key not in MAY_CHANGE
        ]
        if changed:
            raise UsageError(
                f"{self.folder} holds a run with other settings.",
                "; ".join(changed[:3]) + (f"; {len(changed) - 3} more." if changed[3:] else "."),
                f"Use a new run.folder, or the old settings: those in {path}.",
            )


def _lock(folder: Path) -> FolderLock:
    """The folder, for one run alone."""
    try:
        return FolderLock(folder)
    except BlockingIOError as error:
        raise UsageError(
            f"Another run is at work in {folder}.",
            "Two runs would write over one another's checkpoints.",
            "Wait for its end, stop it, or use another run.folder.",
        ) from error


class Averaged:
    """Swaps the averaged weights in, and the trained ones back, also after an error."""

    def __init__(self, module: nn.Module, average: Average | None) -> None:
        self.module, self.average = module, average

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if self.average:
            for name, parameter in self.module.named_parameters():
                ours = self.average.tensors[name]
                kept = parameter.detach().clone()
                parameter.copy_(ours)
                ours.copy_(kept)
