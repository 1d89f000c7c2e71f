"""The convolution of 3 x 3 that UNet and autoencoder are made of, and what computes it.

`torch` is torch's own. `winograd` is the native kernel: a quarter of the multiplications, with ten
times the rounding (some 5e-6 of the result), on a CPU, in float32. On other devices and types,
where a gradient is asked, and on maps of less than 8 x 8 torch computes in either case.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.checks import shown
from sdcore.errors import UsageError
from sdcore.kernels import convolution as kernel
from sdcore.kernels.library import library
from sdcore.machine import remembered
from sdcore.views import twin, view

ModelT = TypeVar("ModelT", bound=nn.Module)
CONVOLUTIONS = ("torch", "winograd")
# Kernel, stride, margin, dilation, groups, and what the margin holds.
_KIND = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
SMALLEST = 8  # rows and columns of a map; on smaller ones tiles of 4 x 4 waste more than they save


class Convolution(nn.Conv2d):
    """A convolution as torch has it, with a choice of what computes it.

    Attributes:
        backend: one of `CONVOLUTIONS`; a runtime choice, never saved. Others than of 3 x 3 with a
            margin of one are torch's in either case.
    """

    backend = "torch"

    def forward(self, input: Tensor) -> Tensor:
        kind = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        wanted = self.backend == "winograd" and (*kind, self.padding_mode) == _KIND
        large = min(input.shape[-2:]) >= SMALLEST
        if wanted and large and kernel.takes(input, self.weight, self.bias):
            return kernel.convolution(input, self.weight, self.bias)
        return super().forward(input)


@dataclass(frozen=True)
class ConvolutionChoice:
    """What `use_convolution` chose: backend, the kernel behind it, the reason, how many layers."""

    backend: str
    kernel: str
    why: str
    layers: int


def use_convolution(model: nn.Module, name: str) -> ConvolutionChoice:
    """Set the backend of every convolution of 3 x 3 of a model.

    In place: it holds for whoever runs these layers, views of the model among them. For one call
    there is `with_convolution`.

    Args:
        model: a UNet, an autoencoder, or any module; each `Convolution` within it is set.
        name: a name in `CONVOLUTIONS`, or `auto`: the faster one here. It is measured once for a
            machine, some tens of milliseconds, and remembered.

    Raises:
        UsageError: the name is unknown, or the backend cannot run here.
    """
    layers, choice = _choose_for(model, name)
    for layer in layers.values():
        layer.backend = choice.backend
    return choice


def with_convolution(model: ModelT, name: str) -> ModelT:
    """A view of a model whose convolutions have another backend; the model keeps its own.

    Args, errors: as for `use_convolution`. The weights are shared, see `sdcore.views`.
    """
    layers, choice = _choose_for(model, name)
    return view(model, {n: twin(each, backend=choice.backend) for n, each in layers.items()})


def convolution_of(model: nn.Module) -> str:
    """The backend of the first convolution of a model; of one without, torch's."""
    found = (layer.backend for layer in model.modules() if isinstance(layer, Convolution))
    return next(found, "torch")


def check_convolution(name: str) -> None:
    """UsageError unless `name` is `auto` or a backend that runs here."""
    if name == "auto" or (reason := unavailable(name)) is None:
        return
    raise UsageError(
        f"The convolution {shown(name)} cannot be used.",
        f"{reason[0].upper()}{reason[1:]}.",
        f"Use one of: {', '.join([*CONVOLUTIONS, 'auto'])}.",
    )


def unavailable(name: str) -> str | None:
    """Why a backend cannot run here, or None when it can."""
    if not isinstance(name, str) or name not in CONVOLUTIONS:
        return "there is no convolution of this name"
    if name == "winograd" and library() is None:
        return "no native kernels were built for this processor"
    return None


def _choose_for(model: nn.Module, name: str) -> tuple[dict[str, Convolution], ConvolutionChoice]:
    """The convolutions of a model, by their names in it, and the backend for them."""
    check_convolution(name)
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    layers = {n: each for n, each in modules if isinstance(each, Convolution)}
    backend, why = _choose(layers) if name == "auto" else (name, "asked for by name")
    native = library()
    named = "torch" if backend == "torch" or native is None else f"sdcore.kernels {native.name}"
    return layers, ConvolutionChoice(backend, named, why, len(layers))


def _choose(layers: dict[str, Convolution]) -> tuple[str, str]:
    """The backend for `auto`, and the reason."""
    weight = next((layer.weight for layer in layers.values()), None)
    if weight is None:
        return "torch", "there are none of 3 x 3"
    if not weight.is_cpu or weight.dtype != torch.float32:
        return "torch", f"it runs on {weight.device.type} in {str(weight.dtype).split('.')[1]}"
    if (missing := unavailable("winograd")) is not None:
        return "torch", missing
    native = library()
    assert native is not None
    gain = remembered(f"convolution {native.name}", _gain)
    # What is not clearly faster is not worth a dependence on the machine.
    chosen = "winograd" if gain >= 1.03 else "torch"
    return chosen, f"the native kernel is {gain:.2f} x as fast as torch's here"


def _gain() -> float:
    """The time of torch over that of the native kernel, at a map of 32 x 32 and 320 channels."""
    x, weight = torch.ones(1, 320, 32, 32), torch.ones(320, 320, 3, 3)
    ways = (lambda: F.conv2d(x, weight, padding=1), lambda: kernel.convolution(x, weight, None))
    best = [float("inf"), float("inf")]
    with torch.inference_mode():
        for _ in range(4):
            for i, way in enumerate(ways):
                began = time.perf_counter()
                way()
                best[i] = min(best[i], time.perf_counter() - began)
    return best[0] / best[1]
