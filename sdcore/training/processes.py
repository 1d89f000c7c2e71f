"""The processes of a training, and the device of this one: what accelerate is used for.

It starts them (`accelerate launch`) and joins their gradients. Checkpoints, learning rates and the
place in the data are ours, so that a resumed run is exact.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn


class Processes:
    """All processes of a training.

    Attributes:
        count: how many there are.
        index: which one this is, from 0.
        device: that this one computes on.
    """

    def __init__(self) -> None:
        self._accelerator: Any = Accelerator()
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
