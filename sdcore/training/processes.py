"""The processes of a training, and the device of this one: what accelerate is used for.

It starts them (`accelerate launch`) and joins their gradients. Checkpoints, learning rates and the
place in the data are ours, so that a resumed run is exact.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from sdcore.errors import UsageError


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed; "" is none. Raises UsageError."""
    if name and find_spec(name) is None:
        raise UsageError(
            f"The tracker {name} is not installed.",
            "Its package cannot be imported.",
            f"Install it: pip install {name}. Or leave run.tracker out.",
        )


class Processes:
    """All processes of a training.

    Args:
        tracker: a service that gets a run's metrics: tensorboard, wandb or trackio; "" is none.
        folder: where it keeps what it keeps.

    Raises:
        UsageError: the tracker is not installed.

    Attributes:
        count: how many there are.
        index: which one this is, from 0.
        device: that this one computes on.
    """

    def __init__(self, tracker: str = "", folder: Path | None = None) -> None:
        check_tracker(tracker)
        self.tracker = tracker
        self._accelerator: Any = Accelerator(log_with=tracker or None, project_dir=folder)
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index
        self.device: torch.device = self._accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this one writes the files."""
        return self.index == 0

    def joined(self, module: nn.Module) -> nn.Module:
        """The module, whose gradients are the mean of all processes'."""
        return module if self.count == 1 else self._accelerator.prepare(module)

    def apart(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Context of a backward pass whose gradients are not joined yet.

        To join them after each batch of a step would be as right, and cost a message for each.
        """
        return nullcontext() if self.count == 1 else self._accelerator.no_sync(module)

    def start_tracking(self, name: str, settings: Mapping[str, object]) -> None:
        """Tell the tracker of a run and its settings."""
        if self.tracker:
            plain = (int, float, str)
            config = {k: v if isinstance(v, plain) else str(v) for k, v in settings.items()}
            self._accelerator.init_trackers(name, config=config)

    def track(self, row: Mapping[str, float], step: int) -> None:
        """Numbers of a step for the tracker."""
        if self.tracker:
            self._accelerator.log(dict(row), step=step)

    def end_tracking(self) -> None:
        """Nothing more follows."""
        if self.tracker:
            self._accelerator.end_training()

    @contextmanager
    def first(self) -> Generator[None]:
        """Context that the main process goes through before all others."""
        with self._accelerator.main_process_first():
            yield

    def wait(self) -> None:
        """Go on when all have come here."""
        self._accelerator.wait_for_everyone()

    def largest(self, value: float) -> float:
        """The largest of what the processes say."""
        if self.count == 1:
            return value
        mine = torch.tensor([value], device=self.device)
        return float(self._accelerator.gather(mine).max())

    def total(self, value: Tensor) -> Tensor:
        """The sum of a number over the processes."""
        return value if self.count == 1 else self._accelerator.reduce(value, "sum")
