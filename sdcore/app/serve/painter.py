"""The queue, and the one thread that paints.

One picture at a time: each has the bits that it has when it is painted alone.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sdcore.app.command import as_failure
from sdcore.app.serve.models import Models
from sdcore.app.session import Session
from sdcore.errors import SdcoreError
from sdcore.pipeline.result import Moment

ResultT = TypeVar("ResultT")
Work = Callable[[Session, "Task"], Any]
KEPT = 100  # tasks that are done, whose state can still be asked for


class Stopped(SdcoreError):
    """Somebody stopped a task."""

    def __init__(self) -> None:
        why = "Somebody asked for that, or whoever asked for the picture has gone."
        super().__init__("The painting was stopped.", why, "Ask for it again.")


class Busy(SdcoreError):
    """The queue is full."""

    def __init__(self, most: int) -> None:
        why = f"{most} requests are waiting."
        super().__init__("The server is busy.", why, "Ask again in a while.")


@dataclass(eq=False)
class Task:
    """A request in the queue.

    Attributes:
        work: what the painting thread does for it.
        images: how many it paints.
        done: its result, or its error.
        step, steps: of the image that is painted, `painted` of them being finished.
    """

    work: Work
    model: str
    images: int = 1
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    done: Future[Any] = field(default_factory=Future[Any])
    begun: float | None = None
    step: int = 0
    steps: int = 0
    painted: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Have it end before its next step."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def check(self) -> None:
        """Raises Stopped."""
        if self.stopped:
            raise Stopped

    def finished(self) -> None:
        """One more of its images is painted."""
        self.painted, self.step = self.painted + 1, 0

    def took(self, moment: Moment) -> None:
        """A step was taken."""
        self.step, self.steps = moment.step.index + 1, moment.step.count
        self.check()

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        of_image = self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.painted + of_image) / self.images)

    @property
    def state(self) -> str:
        if self.done.cancelled():
            return "stopped"
        if self.done.done():
            error = self.done.exception()
            return "done" if error is None else "stopped" if self.stopped else "failed"
        return "waiting" if self.begun is None else "painting"


class Painter:
    """Paints what is asked for, in the order in which it came.

    Args:
        most: requests that may wait.
    """

    def __init__(self, models: Models, most: int = 100) -> None:
        self.models, self.most = models, most
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.current: Task | None = None
        self.tasks: dict[str, Task] = {}
        self._waiting: queue.Queue[Task | None] = queue.Queue(most)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return sum(task.state == "waiting" for task in list(self.tasks.values()))

    def before(self, task: Task) -> int:
        """How many are painted before it, the one that is being painted included."""
        others = list(self.tasks.values())
        return sum(not each.done.done() for each in others[: others.index(task)])

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def add(self, task: Task) -> Task:
        """Put a task into the queue. Raises Busy."""
        with self._lock:
            try:
                self._waiting.put_nowait(task)
            except queue.Full:
                self.counts["refused"] += 1
                raise Busy(self.most) from None
            old = [id for id, each in self.tasks.items() if each.done.done()]
            for id in old[: max(0, len(old) - KEPT)]:
                del self.tasks[id]
            self.tasks[task.id] = task
        return task

    def stop(self) -> None:
        """Stop all that is painted or waits. What waits has ended at once."""
        for task in list(self.tasks.values()):
            task.stop()
        while True:
            try:
                waiting = self._waiting.get_nowait()
            except queue.Empty:
                return
            if waiting is None:  # the thread is to end
                self._waiting.put(None)
                return
            self.counts["stopped"] += 1
            if waiting.done.set_running_or_notify_cancel():
                waiting.done.set_exception(Stopped())

    def close(self) -> None:
        """Stop everything, and the thread."""
        self.stop()
        self._waiting.put(None)
        self._thread.join(60)

    def _run(self) -> None:
        while (task := self._waiting.get()) is not None:
            if not task.done.set_running_or_notify_cancel():  # from here on nobody can cancel it
                self.counts["stopped"] += 1
                continue
            self.current, task.begun = task, time.monotonic()
            try:
                task.check()
                found = task.work(self.models.session(task.model), task)
            except BaseException as error:
                failure = as_failure(error) if isinstance(error, Exception) else Stopped()
                self.counts[task_end(task)] += 1
                task.done.set_exception(failure)
            else:
                self.counts["done"] += 1
                task.done.set_result(found)
            finally:
                self.seconds += time.monotonic() - task.begun
                self.counts["images"] += task.painted
                self.current = None


def aside(call: Callable[[], ResultT]) -> ResultT:
    """What a call gives that runs in a thread of its own, which then ends.

    A thread that has computed keeps OpenMP's workers for as long as it lives. Once there are more
    of them than cores, libgomp no longer has them spin while they wait for one another: each of the
    thousands of waits in a picture puts a thread to sleep. So the painter alone may have some.
    """
    done: Future[ResultT] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="aside", daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


def task_end(task: Task) -> str:
    """How a task ended that has no result."""
    return "stopped" if task.stopped else "failed"
