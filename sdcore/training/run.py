"""What every training shares: a place, a step to start from, updates, metrics, checkpoints, resume.

A recipe or the fine-tuning is a loop of its own; `Run` lets it stop and go on without a trace: N
steps straight are, bit for bit, k steps, a kill and N - k.

    for step in run.steps():
        for each batch of the step:
            with run.autocast(): answer = run.network(...)
            run.backward(loss)
        run.log(loss=..., grad_norm=run.update())
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from tqdm import tqdm

from sdcore.errors import FileError, NonFiniteError, UsageError, name_some, warn
from sdcore.files.atomic import (
    append_line,
    make_folder,
    replace_file,
    replace_folder,
    text_writer,
)
from sdcore.files.locks import FolderLock
from sdcore.files.weights import tensors_writer
from sdcore.training.optimizers import make_optimizers
from sdcore.training.processes import Processes
from sdcore.training.run_settings import MAY_CHANGE, RunSettings, learning_rate
from sdcore.training.settings import Settings, flat, read_yaml, save_settings
from sdcore.training.state import (
    Average,
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    trained,
)

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SAFETY = 1.1  # of the disk space that checkpoints need


class Interrupted(Exception):
    """The run was asked to stop, finished its step and saved.

    Attributes:
        signal: that asked.
        step: how many steps are done.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal, self.step = number, step


class Run:
    """One training run in one folder.

    Args:
        settings: checked settings of the whole recipe; written to `resolved.yaml`.
        loop: the part of them that is the run's.
        module: what is trained: its parameters that take a gradient.
        rates: beginnings of parameter names -> factor of the learning rate; 1 for all others.
        parallel: whether the recipe may run in several processes: it then takes its batches by
            `processes.index`, calls `network`, and divides its loss by what all of them
            see.

    Attributes:
        step: of the update that comes next, counted from 0.
        network: what the loop calls: `module`, which with several processes joins gradients.

    Raises:
        UsageError: another run is at work in the folder, or it holds one with other settings.
        FileError: the folder cannot be written, has too little room, or no checkpoint in it can be
            used.
    """

    def __init__(
        self,
        settings: Settings,
        loop: RunSettings,
        module: nn.Module,
        *,
        rates: Mapping[str, float] | None = None,
        parallel: bool = False,
    ) -> None:
        self.loop, self.folder = loop, Path(loop.folder)
        if loop.threads:
            torch.set_num_threads(loop.threads)
        self.processes = Processes(loop.tracker, self.folder)
        if self.processes.count > 1 and not parallel:
            raise UsageError(
                f"The run has {self.processes.count} processes.",
                "A recipe trains in one process, on one device.",
                "Start it without accelerate launch.",
            )
        make_folder(self.folder)
        device = self.device
        self.module = module.to(device)
        self.average = Average(self.module, loop.ema_decay) if loop.ema_decay else None
        self.optimizers = make_optimizers(
            self.module,
            kind=loop.optimizer,
            learning_rate=loop.learning_rate,
            weight_decay=loop.weight_decay,
            rates=rates,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=loop.precision == "fp16")
        self._lock = _lock(self.folder) if self.is_main else None
        self._signal, self._finished = 0, False
        try:
            self.step = self._resume(settings)
            if self.is_main:
                self._check_room()
                save_settings(settings, self.folder / "resolved.yaml")
            self.processes.start_tracking(self.folder.name, flat(settings.model_dump(mode="json")))
        except BaseException:
            self.close()
            raise
        self.network = self.processes.joined(self.module)
        self._started, self._paused, self._first = time.monotonic(), 0.0, self.step
        self._bar: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.processes.is_main

    def close(self) -> None:
        """Give the folder back to others."""
        self.processes.end_tracking()
        if self._lock is not None:
            self._lock.release()

    # --- the loop --------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The steps left; the learning rate is set before each, a checkpoint kept after some.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the step was finished and saved. A second SIGINT
                stops at once.
        """
        bar: Any = tqdm(
            total=self.loop.steps,
            initial=self.step,
            disable=None if self.is_main else True,
            desc=self.folder.name,
            unit="step",
        )
        self._bar = bar
        with bar, self._signals():
            while self.step < self.loop.steps and not self._finished:
                rate = learning_rate(self.loop, self.step)
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["scale"]
                yield self.step
                self.step += 1
                bar.update()
                stopped = int(self.processes.largest(self._signal))  # of any process
                if stopped or self._finished or self._saves_now():
                    self.checkpoint()
                if stopped:
                    raise Interrupted(stopped, self.step)

    def finish(self, why: str) -> None:
        """End the run after this step, before all its steps are done."""
        self._finished = True
        if self.is_main:
            tqdm.write(f"the run ends here: {why}")

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which the networks compute in the precision of the run."""
        dtype = _TYPES.get(self.loop.precision)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def backward(self, loss: Tensor, names: Sequence[str] = ()) -> None:
        """Add a loss's gradients to those of this step.

        Args:
            names: of the samples, for the error.

        Raises:
            NonFiniteError: the loss is not finite, and the run does not skip such steps.
        """
        if not torch.isfinite(loss):
            if self.loop.on_non_finite == "stop" and not self._scaler.is_enabled():
                raise self._not_finite("loss", loss.item(), names)
            self._log_skipped("loss", loss.item(), names)
        self._scaler.scale(loss).backward()  # pyright: ignore[reportUnknownMemberType]

    def joining(self, last: bool) -> AbstractContextManager[Any]:
        """Context of forward and backward of one batch; after the last, gradients are joined."""
        return nullcontext() if last else self.processes.apart(self.network)

    def update(self, loss: Tensor | None = None, names: Sequence[str] = ()) -> float:
        """One optimizer update; returns the gradient norm before clipping.

        Args:
            loss: of a step of one batch, for which `backward` was not called.
            names: of the samples, for the error.

        Raises:
            NonFiniteError: loss or gradient are not finite, and the run does not skip such steps.
        """
        if loss is not None:
            self.backward(loss, names)
        for optimizer in self.optimizers.values():
            self._scaler.unscale_(optimizer)
        parameters = [parameter for _, parameter in trained(self.module)]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.loop.max_grad_norm))
        if math.isfinite(norm):
            for optimizer in self.optimizers.values():
                self._scaler.step(optimizer)  # pyright: ignore[reportUnknownMemberType]
        elif self._scaler.is_enabled():
            pass  # the scaler takes a smaller factor, and the step is left out
        elif self.loop.on_non_finite == "stop":
            raise self._not_finite("gradient norm", norm, names)
        else:
            self._log_skipped("gradient norm", norm, names)
        self._scaler.update()
        self.module.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.module, self.step)
        return norm

    @contextmanager
    def pause(self) -> Generator[None]:
        """Context whose time is not counted as training: looking at the run."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Context in which the module holds the weights that are shown and exported.

        They are the average, or what a schedule-free optimizer has; the trained ones come back to
        the bit, also after an error.
        """
        parameters = trained(self.module)
        kept = [parameter.detach().clone() for _, parameter in parameters]
        free = [one for one in self.optimizers.values() if hasattr(one, "eval")]
        try:
            for optimizer in free:
                optimizer.eval()  # pyright: ignore
            if self.average:
                for name, parameter in parameters:
                    parameter.data.copy_(self.average.tensors[name])
            yield
        finally:
            for optimizer in free:
                optimizer.train()  # pyright: ignore
            for (_, parameter), value in zip(parameters, kept, strict=True):
                parameter.data.copy_(value)

    # --- what is written -------------------------------------------------------------------------

    def log(self, **metrics: float | Tensor) -> None:
        """Append one line of metrics to `metrics.jsonl` every `log_every` steps, and print it."""
        if self.step % self.loop.log_every:
            return
        images = self.loop.batch_size * self.loop.accumulate * self.processes.count
        seconds = max(1e-9, time.monotonic() - self._started - self._paused)
        rate = (self.step - self._first + 1) * images / seconds
        row = {
            "step": self.step,
            **{k: round(float(torch.as_tensor(v).detach()), 6) for k, v in metrics.items()},
        }
        row |= {"images_per_second": round(rate, 1), "lr": learning_rate(self.loop, self.step)}
        self.write("metrics.jsonl", row)

    def write(self, name: str, row: Mapping[str, float]) -> None:
        """Append a JSON line to a file of the run and show it."""
        if not self.is_main:
            return
        append_line(self.folder / name, json.dumps(dict(row)))
        self.processes.track({k: v for k, v in row.items() if k != "step"}, int(row["step"]))
        text = " ".join(f"{key} {value:.6g}" for key, value in row.items())
        if self._bar is not None and not self._bar.disable:
            shown = {key: row[key] for key in ("loss", "lr", "images_per_second") if key in row}
            self._bar.set_postfix(shown | {"GB": round(peak_memory(self.device) / 1e9, 1)})
        tqdm.write(text)

    def checkpoint(self) -> None:
        """Keep all that is needed to go on from here."""
        if self.is_main:
            loop = self.loop
            save_checkpoint(
                self.folder / "checkpoints", self.step, self._parts(), loop.keep, loop.keep_every
            )
        self.processes.wait()

    def keep_best(self) -> None:
        """Keep the weights that the module holds now in `best/`, in place of those there."""

        def write(folder: Path) -> None:
            # channels last is a way to lie in memory that files do not have
            tensors = {name: p.detach().contiguous() for name, p in trained(self.module)}
            tensors_writer(tensors)(folder / "model.safetensors")

        replace_folder(self.folder / "best", write)

    @contextmanager
    def best(self) -> Generator[None]:
        """Context in which the module holds the weights of `keep_best`."""
        parameters = trained(self.module)
        kept = [parameter.detach().clone() for _, parameter in parameters]
        tensors: dict[str, Tensor] = load_file(self.folder / "best" / "model.safetensors")
        try:
            for name, parameter in parameters:
                parameter.data.copy_(tensors[name])
            yield
        finally:
            for (_, parameter), value in zip(parameters, kept, strict=True):
                parameter.data.copy_(value)

    @property
    def has_best(self) -> bool:
        path = self.folder / "best" / "model.safetensors"
        if not path.exists():
            return False
        try:
            load_file(path)
        except (SafetensorError, OSError) as error:
            warn(f"{path} is damaged and is left out: {error}")
            return False
        return True

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def _parts(self) -> dict[str, Mapping[str, Tensor]]:
        parts: dict[str, Mapping[str, Tensor]] = {"model": dict(trained(self.module))}
        parts |= {name: optimizer_tensors(one) for name, one in self.optimizers.items()}
        if self.average:
            parts["average"] = self.average.tensors
        if self._scaler.is_enabled():
            numbers = self._scaler.state_dict()
            parts["scaler"] = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
        return parts

    def _saves_now(self) -> bool:
        loop = self.loop
        often = (loop.checkpoint_every, loop.keep_every)
        return self.step == loop.steps or any(n and self.step % n == 0 for n in often)

    def _check_room(self) -> None:
        """Refuse a disk that is full before the first checkpoint is due."""
        tensors = [tensor for _, tensor in trained(self.module)]
        # weights, an average, and two moments of the optimizer, in float32
        one = sum(tensor.numel() for tensor in tensors) * 4 * (3 + bool(self.average))
        kept = self.loop.keep + 1
        if self.loop.keep_every:
            kept += (self.loop.steps - self.step) // self.loop.keep_every
        free = shutil.disk_usage(self.folder).free
        if free < one * kept * _SAFETY:
            raise FileError(
                f"{self.folder} has too little room.",
                f"{kept} checkpoints of {one / 1e9:.2g} GB are kept at once; {free / 1e9:.2g} GB "
                "are free.",
                "Free some space, choose another run.folder, or a smaller run.keep.",
            )

    # --- going on --------------------------------------------------------------------------------

    def _resume(self, settings: Settings) -> int:
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            self._forget_rows(0)
            return 0
        self._check_unchanged(settings)
        step, parts = load_checkpoint(checkpoint)
        with torch.no_grad():
            for name, parameter in trained(self.module):
                parameter.copy_(parts["model"][name])
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, parts[name])
        if self.average:
            for name, tensor in self.average.tensors.items():
                tensor.copy_(parts["average"][name])
        if self._scaler.is_enabled():
            # As they were: torch takes its count of steps only as a whole number.
            now = self._scaler.state_dict()
            numbers = {k: type(now[k])(v.item()) for k, v in parts["scaler"].items()}
            self._scaler.load_state_dict(numbers)
        self._forget_rows(step)
        if self.is_main:
            print(f"resumed {checkpoint}")
            if step >= self.loop.steps:
                print(
                    f"{step} steps are done, and run.steps is {self.loop.steps}: nothing is left "
                    "to train; a larger run.steps goes on"
                )
        return step

    def _forget_rows(self, step: int) -> None:
        """Leave out what a killed process wrote after its last checkpoint: it is done again."""
        if not self.is_main:
            return
        for name, first in (("metrics.jsonl", step), ("evaluation.jsonl", step + 1)):
            path = self.folder / name
            if not path.exists():
                continue
            lines = path.read_text("utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) < first]
            if kept != lines:
                replace_file(path, text_writer("".join(f"{line}\n" for line in kept)))

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
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        texts = {key: f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in changed}
        refused = [text for key, text in texts.items() if key not in MAY_CHANGE]
        if refused:
            raise UsageError(
                f"{self.folder} holds a run with other settings.",
                "; ".join(refused[:3]) + (f"; {len(refused) - 3} more." if refused[3:] else "."),
                f"Use a new run.folder, or the old settings: those in {path}.",
            )
        if self.is_main:
            for key in {"run.steps", "run.learning_rate"} & texts.keys():
                print(texts[key])

    # --- stopping --------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Generator[None]:
        """SIGINT and SIGTERM ask the loop to stop after its step; a second SIGINT stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self._signal:
                signal.signal(number, before[signal.Signals(number)])
                raise KeyboardInterrupt
            self._signal = number
            tqdm.write("the step is finished and saved; Ctrl-C again stops at once")

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _not_finite(self, what: str, value: float, names: Sequence[str]) -> NonFiniteError:
        of = f" Its pictures: {name_some(list(names))}." if names else ""
        return NonFiniteError(
            f"The {what} is {value} in step {self.step}.",
            f"Its numbers are not finite.{of}",
            "Lower run.learning_rate, use run.precision=no, or run.on_non_finite=skip, in a new "
            "run.folder.",
        )

    def _log_skipped(self, what: str, value: float, names: Sequence[str]) -> None:
        of = f", with {name_some(list(names))}" if names else ""
        tqdm.write(f"step {self.step} is left out: its {what} is {value}{of}")


def peak_memory(device: torch.device) -> float:
    """The most bytes that were used: on a GPU of its memory, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _step_of(line: str) -> float:
    """The step of a row of metrics; beyond all steps where the line is torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


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
