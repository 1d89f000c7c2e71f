"""What every training recipe shares: settings, learning rate, metrics file, checkpoints, resume.

A recipe is a loop of its own (`pretrain_*.py`); `Run` gives it a place, a step to start from and a
way to stop and go on without a trace: N steps straight are, bit for bit, k steps, a kill and N - k.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from sdcore.errors import NonFiniteError, UsageError, exit_on_error
from sdcore.training.muon import Muon, weight_matrices
from sdcore.training.settings import AnySettings, Settings, load_settings, read_yaml, save_settings
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
    steps: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: of weight matrices; see muon.py
    warmup_steps: int = 200
    decay_share: float = 0.3  # the last share of the steps, over which the rate falls to zero
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0  # 0: no moving average
    seed: int = 0
    precision: Literal["no", "bf16"] = "bf16"
    threads: int = 0  # 0: as many as torch takes
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 1000
    keep: int = 2


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
    """

    def __init__(self, settings: Settings, loop: RunSettings, module: nn.Module) -> None:
        self.loop, self.folder = loop, Path(loop.folder)
        if loop.threads:
            torch.set_num_threads(loop.threads)
        self.accelerator = Accelerator(mixed_precision=loop.precision)
        if self.accelerator.num_processes > 1:
            raise UsageError(
                f"a run in {self.accelerator.num_processes} processes",
                "a recipe trains in one process, on one device",
                "start it without accelerate launch, or with --num_processes 1",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.module = module.to(self.accelerator.device)
        self.average = Average(self.module, loop.ema_decay) if loop.ema_decay else None
        self.optimizers = make_optimizers(self.module, loop)
        self.step = self._resume(settings)
        save_settings(settings, self.folder / "resolved.yaml")
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
        self.accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.loop.max_grad_norm)
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"step {self.step}: gradient norm {norm}",
                "the loss or its gradient is not finite",
                "lower the learning rate, or resume with precision: 'no'",
            )
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.module.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.module, self.step)
        return float(norm)

    def log(self, **metrics: float) -> None:
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

    def write(self, name: str, row: dict) -> None:
        """Append a JSON line to a file of the run and show it."""
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        tqdm.write(" ".join(f"{key} {value:.6g}" for key, value in row.items()))

    def checkpoint(self) -> None:
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
        old, new = (flat(values) for values in (read_yaml(path), settings.model_dump(mode="json")))
        changed = [
            f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key not in MAY_CHANGE
        ]
        if changed:
            raise UsageError(
                f"{self.folder} holds a run with other settings",
                "; ".join(changed[:3]) + (f"; {len(changed) - 3} more" if changed[3:] else ""),
                "use a new run.folder, or the old settings: --config " + str(path),
            )


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


def flat(values: dict, path: str = "") -> dict[str, object]:
    """{"run": {"steps": 3}} -> {"run.steps": 3}."""
    result: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{path}{key}.")
        else:
            result[f"{path}{key}"] = value
    return result


def make_optimizers(module: nn.Module, loop: RunSettings) -> dict[str, torch.optim.Optimizer]:
    """Name in a checkpoint -> optimizer; each trained parameter belongs to one of them.

    Of AdamW's, matrices decay; biases, norms and other vectors do not.
    """
    matrices = weight_matrices(module) if loop.optimizer == "muon" else []
    taken = {id(weight) for weight in matrices}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": loop.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(
            groups,
            lr=loop.learning_rate,
            betas=(0.9, 0.99),
            fused=True,  # one pass over the weights: a twelfth of a step on two cores
        )
    }
    if matrices:
        optimizers["muon"] = Muon(matrices, loop.learning_rate, loop.weight_decay)
    return optimizers


def main(
    recipe: Callable[[AnySettings], None], model: type[AnySettings], config: str, doc: str
) -> None:
    """The command line of a recipe: `--config file.yaml key.path=value ...`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=config, help="settings file (default: %(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that differ"
    )
    arguments = parser.parse_args()
    with exit_on_error():
        recipe(load_settings(model, arguments.config, arguments.overrides))
