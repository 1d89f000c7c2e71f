"""The caller's torch state, kept out of a picture.

Autocast, grad and inference mode, the default device and the default dtype change what plain torch
code computes. A call of sdcore's runs in a state of its own, so that they cannot reach into it:

    with own_torch_state():
        ...

All of it belongs to the calling thread; other threads do not notice. What torch has for the whole
process and every model (number of threads, TF32, deterministic algorithms, choice of kernels) is
left as the caller has set it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class own_torch_state:
    """Context manager: plain torch, as in a fresh process, and without gradients.

    No autocast, no inference mode; tensors are made on the CPU and in float32 where nothing else is
    said. Never hold it across a `yield`; see `with_own_torch_state`.
    """

    def __enter__(self) -> None:
        self._entered = ExitStack()
        if torch.is_inference_mode_enabled():  # its tensors would bear no gradient later on
            self._entered.enter_context(torch.inference_mode(False))
        self._entered.enter_context(torch.no_grad())
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                self._entered.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            self._entered.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            self._entered.enter_context(_Float32ByDefault())

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)


def with_own_torch_state(function: FunctionT) -> FunctionT:
    """Decorator: a function runs in its own torch state; of a generator, every step of it."""
    generates = inspect.isgeneratorfunction(function)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if generates:
            return _resume(function(*args, **kwargs))
        with own_torch_state():
            return function(*args, **kwargs)

    return cast("FunctionT", run)


def _resume(work: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """A generator each of whose steps is in its own torch state, and the caller's in between."""
    go_on: Callable[[], Any] = partial(next, work)
    while True:
        with own_torch_state():
            try:
                value = go_on()
            except StopIteration as end:
                return end.value
        try:
            go_on = partial(work.send, (yield value))
        except GeneratorExit:
            with own_torch_state():
                work.close()
            raise
        except BaseException as error:
            go_on = partial(work.throw, error)


# Functions that draw: asked twice, they would give the next numbers.
_DRAWING = frozenset({torch.rand, torch.randn})
_OF_DATA = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
_MAKING = _OF_DATA | {
    *(torch.empty, torch.zeros, torch.ones, torch.eye, torch.full, torch.scalar_tensor),
    *(torch.arange, torch.range, torch.linspace, torch.logspace),
}


class _Float32ByDefault(TorchFunctionMode):
    """What torch would make of the default dtype is float32, in this thread alone.

    torch.set_default_dtype is for the whole process. It is where tensors of numbers, and sums of
    whole-numbered tensors and numbers, get their type; diffusers' schedulers make both.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWING and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        out, default = func(*args, **kwargs), torch.get_default_dtype()
        arrays = np.ndarray | np.generic if func in _OF_DATA else np.ndarray
        if not isinstance(out, Tensor) or out.dtype != default:
            return out
        if _say(default, (args, kwargs), arrays):
            return out
        if func in _MAKING:
            return func(*args, **{**kwargs, "dtype": torch.float32})
        if func is torch.where:
            kept, *chosen = args
            as_float32 = partial(torch.as_tensor, dtype=torch.float32, device=out.device)
            return func(kept, *map(as_float32, chosen))
        again = func(*_whole_to_float32(args), **_whole_to_float32(kwargs))
        return again if again.dtype == torch.float32 else out


def _say(dtype: torch.dtype, arguments: Any, arrays: Any) -> bool:
    """Whether arguments say a dtype, by its name or by a tensor or one of the arrays of it."""
    if isinstance(arguments, Tensor):
        return arguments.dtype == dtype
    if isinstance(arguments, arrays):
        return str(arguments.dtype) == str(dtype).removeprefix("torch.")
    if isinstance(arguments, dict):
        arguments = list(cast("dict[str, Any]", arguments).values())
    if isinstance(arguments, list | tuple):
        return any(_say(dtype, each, arrays) for each in cast("Sequence[Any]", arguments))
    return arguments is dtype


def _whole_to_float32(value: Any) -> Any:
    """Arguments with whole-numbered tensors as float32, into which torch would turn them."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.float()
    if type(value) in (list, tuple):
        return type(value)(_whole_to_float32(each) for each in value)
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {name: _whole_to_float32(each) for name, each in named.items()}
    return value
