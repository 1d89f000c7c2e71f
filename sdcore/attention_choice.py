"""Which backend the attention layers of a model have: by name, or the fastest here.

On a CPU, `auto` measures the native kernel against torch's fused attention on the shapes of the
model, some hundred milliseconds, once for a machine, and remembers what it found.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from sdcore.attention import BACKENDS, AttentionLayer, native, sdpa
from sdcore.checks import shown
from sdcore.errors import UsageError
from sdcore.kernels.library import library
from sdcore.machine import remembered
from sdcore.views import twin, view

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class AttentionChoice:
    """What `use_attention` chose: backend, the kernel behind it, the reason, how many layers."""

    backend: str
    kernel: str
    why: str
    layers: int


def use_attention(model: nn.Module, name: str) -> AttentionChoice:
    """Set the backend of every attention layer of a model; a runtime choice, never saved.

    In place: it holds for whoever runs these layers, views of the model among them. For one call
    there is `with_attention`.

    Args:
        model: any module; each `AttentionLayer` within it is set.
        name: a key of `BACKENDS`, or `auto`.

    Raises:
        UsageError: the name is unknown, the backend cannot run here, or nothing attends in `model`.
    """
    layers, choice = _choose_for(model, name)
    for layer in layers.values():
        layer.backend = choice.backend
    return choice


def backend_of(model: nn.Module) -> str:
    """The backend of the first attention layer of a model; of one without, torch's."""
    found = (layer.backend for layer in model.modules() if isinstance(layer, AttentionLayer))
    return next(found, "sdpa")


def with_attention(model: ModelT, name: str) -> ModelT:
    """A view of a model whose attention layers have another backend; the model keeps its own.

    Args, errors: as for `use_attention`. The weights are shared, see `sdcore.views`.
    """
    layers, choice = _choose_for(model, name)
    return view(model, {n: twin(each, backend=choice.backend) for n, each in layers.items()})


def _choose_for(model: nn.Module, name: str) -> tuple[dict[str, AttentionLayer], AttentionChoice]:
    """The attention layers of a model, by their names in it, and the backend for them."""
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    layers = {n: each for n, each in modules if isinstance(each, AttentionLayer)}
    if not layers:
        raise UsageError(
            f"use_attention: {type(model).__name__} has no attention layer.",
            "The backend is set on the attention layers inside a model.",
            "Pass a UNet, a text encoder or another model with attention.",
        )
    weight = next(next(iter(layers.values())).parameters())
    check_attention(name)
    backend, why = _choose(model, weight, layers) if name == "auto" else (name, "asked for by name")
    return layers, AttentionChoice(backend, _kernel(backend, weight), why, len(layers))


def check_attention(name: str) -> None:
    """UsageError, listing every backend, unless `name` is `auto` or a backend that runs here."""
    reason = None if name == "auto" else unavailable(name)
    if reason is not None:
        known = [f"{key} ({unavailable(key) or 'available'})" for key in BACKENDS]
        hint = f"Use one of: {', '.join([*known, 'auto'])}."
        why = f"{reason[0].upper()}{reason[1:]}."
        raise UsageError(f"Attention backend {shown(name)} cannot be used.", why, hint)


def unavailable(backend: str) -> str | None:
    """Why a backend cannot run here, or None when it can."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        return "there is no backend of this name"
    if backend == "native" and library() is None:
        return "no native kernels were built for this processor"
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        return "the package xformers is not installed"
    if backend == "xformers" and not torch.cuda.is_available():
        return "it needs a CUDA device"
    return None


def _choose(model: nn.Module, weight: Tensor, layers: dict[str, AttentionLayer]) -> tuple[str, str]:
    """The backend for `auto`, and the reason."""
    if weight.device.type != "cpu":
        return "sdpa", f"torch's fused attention runs on {weight.device.type}"
    if model.training:
        return "reference", "training on CPU, where torch's fused backward pass is slow"
    if (missing := unavailable("native")) is not None:
        return "sdpa", f"torch's fused attention runs on cpu; {missing}"
    shapes = _shapes(model, layers.values())
    if weight.dtype not in (torch.float32, torch.bfloat16) or not shapes:
        return "sdpa", "torch's fused attention runs on cpu"
    gain = _measured(shapes, weight.dtype)
    # What is not clearly faster is not worth a dependence on the machine.
    chosen = "native" if gain >= 1.03 else "sdpa"
    return chosen, f"the native kernel is {gain:.2f} x as fast as torch's here"


def _kernel(backend: str, weight: Tensor) -> str:
    """The code that runs; for `sdpa`, what torch picks for this device and type."""
    if backend == "native" and (found := library()) is not None:
        return f"sdcore.kernels {found.name}"
    if backend != "sdpa":
        return "xformers.ops" if backend == "xformers" else f"sdcore.attention.{backend}"
    probe = weight.new_zeros(1, 1, 64, 64)
    choice = torch._fused_sdp_choice(probe, probe, probe)  # pyright: ignore
    return f"torch {torch.nn.attention.SDPBackend(choice).name.lower()}"


# --- the measurement -----------------------------------------------------------------------------


class _Shape(NamedTuple):
    """The sizes of an attention: q (B, heads, queries, width), k and v (B, heads, keys, width)."""

    queries: int
    keys: int
    heads: int
    width: int


SMALL_GRID = 1024  # tokens; below, attention is a small part of the work
_TEXT = 77  # tokens of a prompt


def _shapes(model: nn.Module, layers: Iterable[AttentionLayer]) -> Counter[_Shape]:
    """How many layers of a UNet attend in which shape at its own size; none where all is small."""
    size = getattr(getattr(model, "config", None), "sample_size", None)
    if size is None:
        return Counter()
    high, wide = (size, size) if isinstance(size, int) else cast(tuple[int, int], size)
    shapes: Counter[_Shape] = Counter()
    for layer in layers:
        if layer.site is not None:
            level = layer.site.level
            queries = max(1, high >> level) * max(1, wide >> level)
            keys = queries if layer.site.kind == "self" else _TEXT
            width = cast(nn.Linear, layer.to_q).out_features // layer.heads
            shapes[_Shape(queries, keys, layer.heads, width)] += 1
    return (
        shapes if max((shape.queries for shape in shapes), default=0) >= SMALL_GRID else Counter()
    )


def _measured(shapes: Counter[_Shape], dtype: torch.dtype) -> float:
    """How many times as fast as torch's the native kernel is, measured or remembered."""
    found = library()
    assert found is not None
    sizes = ", ".join(f"{count} x {list(shape)}" for shape, count in sorted(shapes.items()))
    what = f"attention {found.name} | {dtype} | {sizes}"
    return remembered(what, lambda: _gain(shapes, dtype))


def _gain(shapes: Counter[_Shape], dtype: torch.dtype) -> float:
    """The time of torch's fused attention over that of the native kernel, for a step of a model."""
    times = {sdpa: 0.0, native: 0.0}
    heads = 2 * torch.get_num_threads()
    with torch.inference_mode():
        for shape, layers in shapes.items():
            queries = min(shape.queries, SMALL_GRID)
            whole = layers * shape.heads * shape.queries / (heads * queries)
            q, k, v = (
                torch.ones(1, tokens, heads, shape.width, dtype=dtype).transpose(1, 2)
                for tokens in (queries, shape.keys, shape.keys)
            )
            best = dict.fromkeys(times, float("inf"))
            for _ in range(3):
                for backend in times:
                    began = time.perf_counter()
                    backend(q, k, v)
                    best[backend] = min(best[backend], time.perf_counter() - began)
            for backend, seconds in best.items():
                times[backend] += seconds * whole
    return times[sdpa] / times[native]
