"""Attention: one function with several backends, two layers, and the one place for a control.

    out = softmax(q kᵀ / √d) v                       (Vaswani et al. 2017, arXiv:1706.03762)

Shapes: B batch, H heads, N query tokens, T key tokens, d head width, D layer width, h w token grid.
Masks are boolean, broadcastable to (B, H, N, T), at least two-dimensional (N, T); True = attend.
A query that may attend nowhere gets zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from sdcore.attention_inputs import check_inputs, describe_tensor
from sdcore.checks import check_int
from sdcore.errors import UsageError
from sdcore.kernels import attention as kernels

# --- the backends: plain functions (q, k, v, mask) -> out --------------------------------------

Backend = Callable[..., Tensor]
_recomputed = cast(Backend, partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
QUERY_CHUNK, KEY_CHUNK = 512, 1024


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as it is written in the book; every other backend is tested against it.

    It can be differentiated any number of times, and transformed by torch.func and torch.export.
    """
    check_inputs(q, k, v, mask)
    with torch.autocast(q.device.type, enabled=False):  # scores need float32: see _widen
        q, k, v, dtype = _widen(q, k, v)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, T)
        if mask is None:
            weights = scores.softmax(dim=-1)
        else:
            # the smallest number, not -inf: a row with no True must not become 0/0
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
            weights = weights.masked_fill(~mask, 0)
        return (weights @ v).to(dtype)  #                           (B, H, N, d)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Torch's fused attention: flash, memory-efficient, cuDNN or math, as torch chooses.

    Its kernels cannot be differentiated twice: torch says that a derivative of
    _scaled_dot_product is not implemented. `reference` and `chunked` can.
    """
    check_inputs(q, k, v, mask)
    if not k.shape[-2]:
        return q.new_zeros(*q.shape[:-1], v.shape[-1])  # there is nothing to attend to
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chunked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in little memory and plain torch, on any device.

    At most QUERY_CHUNK x KEY_CHUNK scores exist at a time per head. The backward pass computes
    them once more, one block of queries at a time: QUERY_CHUNK x T (Rabe and Staats 2021,
    arXiv:2112.05682). The number of blocks is fixed when it is exported, and with gradients on
    torch.func cannot transform it: use `reference` there.
    """
    check_inputs(q, k, v, mask)
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], q.shape[-2], k.shape[-2])
    rows: list[Tensor] = []
    # Elsewhere without: torch's checkpoint imports its compiler at the first call, some seconds.
    needed = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
    for start in range(0, q.shape[-2], QUERY_CHUNK):
        queries = slice(start, start + QUERY_CHUNK)
        arguments = q[..., queries, :], k, v, None if mask is None else mask[..., queries, :]
        if needed:
            rows.append(_recomputed(_online_softmax, *arguments))
        else:
            rows.append(_online_softmax(*arguments))
    return torch.cat(rows, dim=-2) if rows else q.new_zeros(*q.shape[:-1], v.shape[-1])


def _online_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax-weighted sum of v, one block of keys after the other."""
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, dtype = _widen(q, k, v)
        q = q * q.shape[-1] ** -0.5
        top = q.new_full((*q.shape[:-1], 1), -torch.inf)  # the largest score so far   (B, H, N, 1)
        total = torch.zeros_like(top)  #                    Σ exp(score − top)        (B, H, N, 1)
        out = q.new_zeros(*q.shape[:-1], v.shape[-1])  #    Σ exp(score − top) v      (B, H, N, d)
        for start in range(0, k.shape[-2], KEY_CHUNK):
            keys = slice(start, start + KEY_CHUNK)
            scores = q @ k[..., keys, :].transpose(-2, -1)  # (B, H, N, block)
            if mask is not None:
                scores = scores.masked_fill(~mask[..., keys], torch.finfo(scores.dtype).min)
            # the result does not depend on top, so no gradient needs to pass through it
            new_top = torch.maximum(top, scores.detach().amax(dim=-1, keepdim=True))
            weights = (scores - new_top).exp()
            if mask is not None:
                weights = weights.masked_fill(~mask[..., keys], 0)
            shrink = (top - new_top).exp()
            total = total * shrink + weights.sum(dim=-1, keepdim=True)
            out = out * shrink + weights @ v[..., keys, :]
            top = new_top
        return (out / total.where(total > 0, 1)).to(dtype)


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The memory-efficient kernel of the optional xformers package (CUDA).

    It can be differentiated once, and neither be exported nor transformed by torch.func.
    """
    check_inputs(q, k, v, mask)
    from xformers.ops import memory_efficient_attention  # pyright: ignore

    attend = cast(Backend, memory_efficient_attention)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # its layout is (B, N, H, d)
    if mask is None:
        return attend(q, k, v).transpose(1, 2)
    batch, queries, heads, _ = q.shape
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device)
    bias = bias.masked_fill(~mask, torch.finfo(q.dtype).min)
    bias = bias.expand(batch, heads, queries, k.shape[1]).contiguous()
    out = attend(q, k, v, attn_bias=bias).transpose(1, 2)
    return out * mask.any(dim=-1, keepdim=True)


def native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The native kernel of `sdcore.kernels`, for CPUs, in float32 and bfloat16.

    What it does not compute goes to `sdpa`: gradients, other types, what is compiled or exported.
    """
    check_inputs(q, k, v, mask)
    return (kernels.attention if kernels.takes(q, k, v) else sdpa)(q, k, v, mask)


def _widen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """Half precision to float32, as the fused kernels do inside: scores overflow float16."""
    dtype = q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    return q.to(wide), k.to(wide), v.to(wide), dtype


BACKENDS: dict[str, Backend] = {
    "sdpa": sdpa,
    "native": native,
    "chunked": chunked,
    "reference": reference,
    "xformers": xformers,
}


# --- where a layer sits, and what may step in there --------------------------------------------


@dataclass(frozen=True)
class Site:
    """The place of one attention layer in the UNet.

    Attributes:
        place: `down`, `mid` or `up`.
        level: how often the grid has been halved: 0 is the latent grid itself.
        index: which spatial Transformer of that level, in running order.
        kind: `self` (image tokens) or `cross` (text tokens).
        block: which Transformer block inside the spatial Transformer.
        name: the published name of the layer, which ends in `attn1` (self) or `attn2` (cross).
    """

    place: str
    level: int
    index: int = 0
    kind: str = "self"
    block: int = 0
    name: str = ""

    def __str__(self) -> str:
        return f"{self.place}.{self.level}.{self.index}.{self.block} {self.kind}"


class Attend(Protocol):
    """The layer's backend as a control sees it; its mask applies unless the call has another one.

    `mask` is there to be read by a control that attends with other rows than the layer's own, and
    so must give the mask of those rows.
    """

    @property
    def mask(self) -> Tensor | None: ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = ...) -> Tensor: ...


class Control(Protocol):
    """What an attention layer calls in place of its backend: q (B, H, N, d), k and v (B, H, T, d)
    to out (B, H, N, d).

    `grid` is (h, w) with h w = N. `attend(q, k, v)` alone leaves the layer as it is. All that a
    control wants is linear in v (`attend(q, k, c * v)`, `attend(q, k, identity)`), so no control
    needs the attention weights, and every control runs on every backend.

    A plain function is one. What wants to know of the steps of a run is a `RunControl`
    (sdcore.control.run_control), which gives the control of each step.
    """

    def __call__(
        self,
        site: Site,
        grid: tuple[int, int],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Attend,
    ) -> Tensor: ...


@dataclass(frozen=True)
class _LayerAttend:
    """A backend with the mask of one call of one layer."""

    backend: Backend
    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **other: Tensor | None) -> Tensor:
        return self.backend(q, k, v, **{"mask": self.mask, **other})


def call_control(
    control: Control,
    site: Site,
    grid: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attend: Attend,
) -> Tensor:
    """What a control makes of attention at a site: (B, H, N, width of v), in the type of q.

    Raises:
        UsageError: it is no control, or its answer is not one that the layer can go on with.
    """
    if not _makes_controls(type(control)):
        raise control_refusal(control)
    out = cast(object, control(site, grid, q, k, v, attend))
    if (
        isinstance(out, Tensor)
        and out.shape[:-1] == q.shape[:-1]
        and out.shape[-1] == v.shape[-1]
        and out.dtype == q.dtype
        and out.device == q.device
    ):
        return out
    shape = (*q.shape[:-1], v.shape[-1])
    raise UsageError(
        f"The control {_control_name(control)} gave {describe_tensor(out)} at {site}.",
        f"The layer goes on with a tensor {shape} of {q.dtype} on {q.device}.",
        "Return what attend(q, k, v) gives, or a tensor like it.",
    )


RUN_HOOKS = ("begin", "at", "part", "negative", "before_step", "on_guess", "after_step", "watches")
"""What a run asks of a `RunControl`, and nobody of a `Control`."""


def is_control(thing: object) -> bool:
    """Whether layers may call an object: a callable that no run needs to know of."""
    hooks = any(hasattr(thing, hook) for hook in RUN_HOOKS)
    return callable(thing) and not isinstance(thing, type) and not hooks


@cache
def _makes_controls(kind: type[object]) -> bool:
    """The same of the objects of a class, found out once for each class and not at every layer."""
    called = any("__call__" in vars(base) for base in kind.__mro__)
    return called and not issubclass(kind, type) and not any(hasattr(kind, h) for h in RUN_HOOKS)


def control_refusal(thing: object, *, by_run: bool = False) -> UsageError:
    """Why a layer, or a run, does not take an object as its control."""
    name, hooks = _control_name(thing), [hook for hook in RUN_HOOKS if hasattr(thing, hook)]
    if isinstance(thing, type):
        what, why = f"The control is the class {name}.", "A control is an object of a class."
        return UsageError(what, why, f"Make one: {name}(...).")
    if not hooks:
        return UsageError(
            f"The control is of type {name}.",
            "A control is called by every attention layer; see sdcore.Control.",
            "Pass a function (site, grid, q, k, v, attend), or a run an sdcore.RunControl.",
        )
    if not callable(thing) and not by_run:
        return UsageError(
            f"An attention layer cannot call {name}.",
            f"It has {', '.join(hooks)}: it belongs to a run, which asks it at each step.",
            "Paint with it, pipe(..., control=control), or hand the network what it gives for one "
            "step: control.at(step).",
        )
    return UsageError(
        f"The control {name} has {', '.join(hooks)}, but is no RunControl.",
        "A run asks an sdcore.RunControl alone for these: they would be ignored.",
        "Derive its class from sdcore.RunControl, with an at(step) that gives what layers call.",
    )


def _control_name(control: object) -> str:
    while isinstance(control, partial):
        control = cast(object, control.func)
    name: str = getattr(control, "__qualname__", type(control).__qualname__)
    return name.rpartition("<locals>.")[2]


# --- the layers --------------------------------------------------------------------------------


class AttentionLayer(nn.Module):
    """What every layer that attends shares: its heads, its site, and the one call point."""

    def __init__(self, width: int, heads: int, site: Site | None = None) -> None:
        super().__init__()
        check_int("The width of an attention layer", width, 1, hint="Use 1 or more.")
        check_int("The number of heads", heads, 1, hint="Use a number that divides the width.")
        if width % heads:
            raise UsageError(
                f"{heads} heads cannot share a width of {width}.",
                "Each head takes an equal part of it.",
                "Use a number of heads that divides the width.",
            )
        self.heads = heads
        self.site = site
        self.backend = "sdpa"

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        """Queries (B, N, D) read keys and values (B, T, D): (B, N, D).

        The only place where attention happens, and where a control can step in.
        """
        q, k, v = (self._by_head(x) for x in (q, k, v))
        backend = BACKENDS[self.backend]
        if control is None or self.site is None:
            out = backend(q, k, v, mask)  #                      (B, H, N, d)
        else:
            assert grid is not None, "a control needs the token grid"
            layer = _LayerAttend(backend, mask)
            out = call_control(control, self.site, grid, q, k, v, layer)
        return join_heads(out)  #                                (B, N, D)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, H, N, d)."""
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) to (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(AttentionLayer):
    """Tokens look at one another: x (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, heads: int, *, site: Site | None = None) -> None:
        super().__init__(width, heads, site)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))  # published as to_out.0

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return self.to_out(self.attend(q, k, v, mask, grid, control))


@dataclass(frozen=True)
class KnownText:
    """A text as the layers of one network know it, so that many steps need not read it again.

    text:    (B, T, text_width).
    by_site: keys and values (B, T, D) of every layer that reads the text.
    """

    text: Tensor
    by_site: Mapping[Site, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FrozenText:
    """What layers read of a text at an earlier step, in place of a text (Zhang et al. 2024, T-GATE,
    arXiv 2404.02747).

    by_site: what every layer that reads the text gave then, (B, N, D).
    """

    by_site: Mapping[Site, Tensor]


Text = Tensor | KnownText | FrozenText
"""What layers read: the states of a text encoder (B, T, text_width), or what is known of them."""


class CrossAttention(AttentionLayer):
    """Tokens read the text: x (B, N, D), text (B, T, text_width) to (B, N, D)."""

    def __init__(
        self, width: int, heads: int, text_width: int, *, site: Site | None = None
    ) -> None:
        super().__init__(width, heads, site)
        check_int("The width of the text", text_width, 1, hint="Use that of the text encoder.")
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(text_width, width, bias=False)
        self.to_v = nn.Linear(text_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))  # published as to_out.0

    def forward(
        self,
        x: Tensor,
        text: Text,
        mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        if isinstance(text, FrozenText):
            return text.by_site[self._named_site]
        q, (k, v) = self.to_q(x), self.read(text)
        return self.to_out(self.attend(q, k, v, mask, grid, control))

    def read(self, text: Tensor | KnownText) -> tuple[Tensor, Tensor]:
        """The keys and values (B, T, D) of a text, computed or known."""
        if isinstance(text, KnownText):
            return text.by_site[self._named_site]
        return self.to_k(text), self.to_v(text)

    @property
    def _named_site(self) -> Site:
        assert self.site is not None, "what is known of a text is known by the sites of a UNet"
        return self.site
