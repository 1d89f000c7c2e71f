"""Ctrl-C and SIGTERM during a run: they ask it to stop after its step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

# Seconds. `timeout` and supervisors signal the process and then its group: that is one wish.
_ONE_SIGNAL = 1.0


class Interrupted(Exception):
    """The run was asked to stop, finished its step and saved.

    Attributes:
        signal: that asked.
        step: how many steps are done.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal, self.step = number, step


class StopSignals:
    """What has asked a run to stop.

    Attributes:
        asked: the number of the signal; 0 while there was none.
    """

    def __init__(self) -> None:
        self.asked = 0

    @contextmanager
    def caught(self) -> Generator[None]:
        """Context in which SIGINT and SIGTERM are noted; one after `_ONE_SIGNAL` stops at once.

        In a thread that is not the main one, Python has no signals, and none are caught.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if self.asked:
                if time.monotonic() - first < _ONE_SIGNAL:
                    return
                signal.signal(number, before[signal.Signals(number)])
                raise KeyboardInterrupt
            self.asked, first = number, time.monotonic()
            tqdm.write("the step is finished and saved; Ctrl-C again stops at once")

        first = 0.0
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
