"""The torch state of a call: entered, left again, and never held while a generator waits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdcore.torch_state import own_torch_state, with_own_torch_state


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def everything() -> Iterator[None]:
    with ExitStack() as stack:
        for name, state in STATES.items():
            if name not in ("everything", "bfloat16"):
                stack.enter_context(state())
        yield


STATES: dict[str, Callable[[], Any]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "everything": everything,
}


def seen() -> tuple[Any, ...]:
    return (
        torch.zeros(1).dtype,
        torch.zeros(1).device.type,
        (torch.ones(2, 2, device="cpu") @ torch.ones(2, 2, device="cpu")).dtype,
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )


OWN = (torch.float32, "cpu", torch.float32, False, False)


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_the_own_state_is_one_and_the_callers_comes_back(state):
    with state():
        before = seen()
        with own_torch_state():
            assert seen() == OWN
            with own_torch_state(), torch.enable_grad():
                assert seen() == (*OWN[:4], True)
            assert seen() == OWN
        assert seen() == before
        with pytest.raises(KeyError), own_torch_state():
            raise KeyError
        assert seen() == before
        assert with_own_torch_state(seen)() == OWN
    assert seen() == (*OWN[:4], True)


NUMBERS: dict[str, Callable[[], Tensor]] = {
    "a number": lambda: torch.tensor(0.1),
    "numbers in lists": lambda: torch.tensor([[0.1, 2], [3, 4]]),
    "whole numbers": lambda: torch.tensor([1, 2]),
    "a tensor in a list": lambda: torch.as_tensor([torch.tensor(0.1), 2.5]),
    "an array of float64": lambda: torch.tensor(np.array([0.1])),
    "an array, shared": lambda: torch.from_numpy(np.array([0.1])),
    "a number of numpy's": lambda: torch.tensor(np.float64(0.1)),
    "numbers of numpy's": lambda: torch.tensor([np.float64(0.1), 0.2]),
    "whole and numpy's": lambda: torch.arange(9) * np.float64(0.1),
    "full of numpy's": lambda: torch.full((2,), np.float64(0.1)),
    "choice of whole or number": lambda: torch.where(torch.arange(9) > 3, torch.arange(9), 0.2),
    "said": lambda: torch.tensor(0.1, dtype=torch.float64),
    "made double": lambda: torch.tensor([1, 2]).double(),
    "converted": lambda: torch.tensor([1, 2]).to(torch.float64),
    "zeros": lambda: torch.zeros(2),
    "full": lambda: torch.full((2,), 0.1),
    "full of whole numbers": lambda: torch.full((2,), 1),
    "range": lambda: torch.arange(0, 1, 0.1),
    "linspace": lambda: torch.linspace(0, 1, 7),
    "whole and number": lambda: torch.arange(9) * 0.1,
    "number and whole": lambda: 0.1 * torch.arange(9),
    "mask and number": lambda: (torch.arange(9) > 3) * 0.1,
    "whole by whole": lambda: torch.arange(9) / 7,
    "root of whole": lambda: torch.arange(9).sqrt(),
    "choice": lambda: torch.where(torch.arange(9) > 3, 0.1, 0.2),
    "drawn": lambda: torch.randn(3, generator=torch.Generator().manual_seed(1)),
    "drawn evenly": lambda: torch.rand(3, generator=torch.Generator().manual_seed(1)),
    "float64 kept": lambda: torch.tensor(0.1, dtype=torch.float64) * torch.arange(9),
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=list(NUMBERS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_tensors_are_those_of_the_default_dtype_float32(make, dtype):
    expected = make()
    with default_dtype(dtype), own_torch_state():
        got = make()
    assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_other_threads_keep_their_state():
    def work() -> None:
        found.append(seen())

    found: list[tuple[Any, ...]] = []
    with default_dtype(torch.float64), own_torch_state():
        thread = Thread(target=work)
        thread.start()
        thread.join()
    assert found == [(torch.float64, "cpu", torch.float64, False, True)]


@with_own_torch_state
def count(log: list[Any]) -> Generator[Any, Any, str]:
    try:
        for number in range(3):
            log.append(seen())
            try:
                log.append((yield number))
            except ValueError as error:
                log.append(error)
        return "ended"
    finally:
        log.append(("left", seen()))


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_a_generator_has_its_own_state_and_the_caller_in_between_that_of_the_caller(state):
    log: list[Any] = []
    with state():
        before = seen()
        work = count(log)
        assert next(work) == 0 and seen() == before
        assert work.send("sent") == 1 and seen() == before
        error = ValueError()
        assert work.throw(error) == 2 and seen() == before
        with pytest.raises(StopIteration) as end:
            next(work)
        assert end.value.value == "ended" and seen() == before
    assert log == [OWN, "sent", OWN, error, OWN, None, ("left", OWN)]


def test_a_generator_that_is_closed_ends_in_its_own_state():
    log: list[Any] = []
    with default_dtype(torch.float64):
        work = count(log)
        next(work)
        work.close()
        assert seen()[0] == torch.float64
    assert log == [OWN, ("left", OWN)]


def test_two_generators_in_turn():
    def both() -> Iterator[Any]:
        first, second = count(log), count(log)
        for _ in range(2):
            yield next(first), next(second)

    log: list[Any] = []
    with torch.autocast("cpu", torch.bfloat16):
        assert list(both()) == [(0, 0), (1, 1)]
        assert seen()[2] == torch.bfloat16
    assert [entry for entry in log if isinstance(entry, tuple) and entry[0] != "left"] == [OWN] * 4
