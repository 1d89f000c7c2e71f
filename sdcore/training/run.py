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
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from tqdm import tqdm

from sdcore.errors import NonFiniteError, UsageError, name_some, warn
from sdcore.files.atomic import append_line, make_folder, replace_folder
from sdcore.files.weights import tensors_writer
from sdcore.training.folder import (
    CHECKPOINTS,
    SETTINGS,
    check_fits,
    check_room,
    check_unchanged,
    forget_rows,
    lock_folder,
)
from sdcore.training.optimizers import make_optimizers
from sdcore.training.processes import Processes
from sdcore.training.run_settings import RunSettings, learning_rate
from sdcore.training.settings import Settings, flat, save_settings
from sdcore.training.sharding import (
    check_sharding,
    copy_into,
    join_gradients,
    shard,
    together,
    whole,
)
from sdcore.training.signals import Interrupted, StopSignals
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
        self._divided: nn.Module | None = None
        if loop.shard and self.processes.count > 1:
            check_sharding(loop, dict(trained(module)))
            self._divided = cast(nn.Module, module.unet)
            shard(self._divided)
        self.average = Average(self.module, loop.ema_decay) if loop.ema_decay else None
        self.optimizers = make_optimizers(
            self.module,
            kind=loop.optimizer,
            learning_rate=loop.learning_rate,
            weight_decay=loop.weight_decay,
            rates=rates,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=loop.precision == "fp16")
        self._lock = lock_folder(self.folder) if self.is_main else None
        self._signals, self._finished = StopSignals(), False
        try:
            self.step = self._resume(settings)
            if self.is_main:
                check_room(self.folder, self.module, loop, self.step)
                save_settings(settings, self.folder / SETTINGS)
            self.processes.start_tracking(self.folder.name, flat(settings.model_dump(mode="json")))
        except BaseException:
            self.close()
            raise
        divided = self._divided is not None
        self.network = self.module if divided else self.processes.joined(self.module)
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
        with bar, self._signals.caught():
            while self.step < self.loop.steps and not self._finished:
                rate = learning_rate(self.loop, self.step)
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["scale"]
                yield self.step
                self.step += 1
                bar.update()
                stopped = int(self.processes.largest(self._signals.asked))  # of any process
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
        if self._divided is not None:
            join_gradients(self._divided, last)
            return nullcontext()
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
        clipped = torch.nn.utils.clip_grad_norm_(parameters, self.loop.max_grad_norm)
        norm = float(whole(clipped))
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
        """Context in which the module holds the weights that are shown and exported, whole.

        They are the average, or what a schedule-free optimizer has; the trained ones come back to
        the bit, also after an error. All processes have to go through it.
        """
        free = [one for one in self.optimizers.values() if hasattr(one, "eval")]
        with self._coming_back():
            try:
                for optimizer in free:
                    optimizer.eval()  # pyright: ignore
                if self.average:
                    for name, parameter in trained(self.module):
                        copy_into(parameter, self.average.tensors[name])
                with self._together():
                    yield
            finally:
                for optimizer in free:
                    optimizer.train()  # pyright: ignore

    @contextmanager
    def _coming_back(self) -> Generator[None]:
        """Context after which the trained weights are what they were before."""
        parameters = trained(self.module)
        kept = [parameter.detach().clone() for _, parameter in parameters]
        try:
            yield
        finally:
            for (_, parameter), value in zip(parameters, kept, strict=True):
                copy_into(parameter, value)

    def _together(self) -> AbstractContextManager[None]:
        """Context in which this process has all weights."""
        return nullcontext() if self._divided is None else together(self._divided)

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
        left = (self.loop.steps - self.step - 1) * images / rate
        row |= {"images_per_second": round(rate, 1), "lr": learning_rate(self.loop, self.step)}
        row["seconds_left"] = round(left)
        self.write("metrics.jsonl", row)

    def write(self, name: str, row: Mapping[str, float]) -> None:
        """Append a JSON line to a file of the run and show it."""
        if not self.is_main:
            return
        append_line(self.folder / name, json.dumps(dict(row)))
        self.processes.track({k: v for k, v in row.items() if k != "step"}, int(row["step"]))
        said = {k: v for k, v in row.items() if k != "seconds_left"}  # which the bar says
        text = " ".join(f"{key} {value:.6g}" for key, value in said.items())
        if self._bar is not None and not self._bar.disable:
            shown = {key: row[key] for key in ("loss", "lr", "images_per_second") if key in row}
            self._bar.set_postfix(shown | {"GB": round(peak_memory(self.device) / 1e9, 1)})
        tqdm.write(text)

    def checkpoint(self) -> None:
        """Keep all that is needed to go on from here."""
        loop = self.loop
        parts = self._parts() if self.is_main or self._divided is not None else {}
        if self.is_main:
            save_checkpoint(self.folder / CHECKPOINTS, self.step, parts, loop.keep, loop.keep_every)
        self.processes.wait()

    def keep_best(self) -> None:
        """Keep the weights that the module holds now in `best/`, in place of those there."""

        def write(folder: Path) -> None:
            tensors = {name: p.detach().contiguous() for name, p in trained(self.module)}
            tensors_writer(tensors)(folder / "model.safetensors")

        replace_folder(self.folder / "best", write)

    @contextmanager
    def best(self) -> Generator[None]:
        """Context in which the module holds the weights of `keep_best`, whole."""
        tensors: dict[str, Tensor] = load_file(self.folder / "best" / "model.safetensors")
        with self._coming_back():
            for name, parameter in trained(self.module):
                copy_into(parameter, tensors[name])
            with self._together():
                yield

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
        return {
            part: {name: whole(tensor.detach()) for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }

    def _saves_now(self) -> bool:
        loop = self.loop
        often = (loop.checkpoint_every, loop.keep_every)
        return self.step == loop.steps or any(n and self.step % n == 0 for n in often)

    # --- going on --------------------------------------------------------------------------------

    def _resume(self, settings: Settings) -> int:
        checkpoint = latest_checkpoint(self.folder / CHECKPOINTS)
        if checkpoint is None:
            if self.is_main:
                forget_rows(self.folder, 0)
            return 0
        changes = check_unchanged(self.folder, settings)
        step, parts = load_checkpoint(checkpoint)
        wanted = [*self.optimizers, *(["average"] if self.average else [])]
        wanted += ["scaler"] if self._scaler.is_enabled() else []
        check_fits(checkpoint, parts, self.module, wanted)
        for name, parameter in trained(self.module):
            copy_into(parameter, parts["model"][name])
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, parts[name])
        if self.average:
            for name, tensor in self.average.tensors.items():
                copy_into(tensor, parts["average"][name])
        if self._scaler.is_enabled():
            # As they were: torch takes its count of steps only as a whole number.
            now = self._scaler.state_dict()
            numbers = {k: type(now[k])(v.item()) for k, v in parts["scaler"].items()}
            self._scaler.load_state_dict(numbers)
        if self.is_main:
            forget_rows(self.folder, step)
            for text in (*changes, f"resumed {checkpoint}"):
                print(text)
            if step >= self.loop.steps:
                print(
                    f"{step} steps are done, and run.steps is {self.loop.steps}: nothing is left "
                    "to train; a larger run.steps goes on"
                )
        return step

    # --- numbers that are not finite -------------------------------------------------------------

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
