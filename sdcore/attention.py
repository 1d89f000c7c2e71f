"""Attention: one function with several backends, two layers, and the one place for a control.

    out = softmax(q kᵀ / √d) v                       (Vaswani et al. 2017, arXiv:1706.03762)

Shapes: B batch, H heads, N query tokens, T key tokens, d head width, D layer width, h w token grid.
Masks are boolean, broadcastable to (B, H, N, T), at least two-dimensional (N, T); True = attend.
A query that may attend nowhere gets zeros.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdcore.errors import UsageError

# --- the backends: plain functions (q, k, v, mask) -> out --------------------------------------

Backend = Callable[..., Tensor]
QUERY_CHUNK, KEY_CHUNK = 512, 1024


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as it is written in the book; every other backend is tested against it."""
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
    """Torch's fused attention: flash, memory-efficient, cuDNN or math, as torch chooses."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chunked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in little memory and plain torch, on any device.

    Never more than QUERY_CHUNK x KEY_CHUNK scores exist per head, in the backward pass too, where
    they are computed once more (Rabe and Staats 2021, arXiv:2112.05682).
    """
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], q.shape[-2], k.shape[-2])
    rows = []
    for start in range(0, q.shape[-2], QUERY_CHUNK):
        queries = slice(start, start + QUERY_CHUNK)
        arguments = q[..., queries, :], k, v, None if mask is None else mask[..., queries, :]
        if torch.is_grad_enabled():
            rows.append(checkpoint(_online_softmax, *arguments, use_reentrant=False))
        else:
            rows.append(_online_softmax(*arguments))
    return torch.cat(rows, dim=-2)


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
    """The memory-efficient kernel of the optional xformers package (CUDA)."""
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # its layout is (B, N, H, d)
    if mask is None:
        return memory_efficient_attention(q, k, v).transpose(1, 2)
    batch, queries, heads, _ = q.shape
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device)
    bias = bias.masked_fill(~mask, torch.finfo(q.dtype).min)
    bias = bias.expand(batch, heads, queries, k.shape[1]).contiguous()
    out = memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)
    return out * mask.any(dim=-1, keepdim=True)


def _widen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """Half precision to float32, as the fused kernels do inside: scores overflow float16."""
    dtype = q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    return q.to(wide), k.to(wide), v.to(wide), dtype


BACKENDS: dict[str, Backend] = {
    "sdpa": sdpa,
    "chunked": chunked,
    "reference": reference,
    "xformers": xformers,
}


# --- choosing a backend ------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionChoice:
    """What `use_attention` chose: the backend, the kernel behind it, why, and for how many layers."""

    backend: str
    kernel: str
    why: str
    layers: int


def unavailable(name: str) -> str | None:
    """Why a backend cannot run here, or None when it can."""
    if name != "xformers":
        return None
    if importlib.util.find_spec("xformers") is None:
        return "the package xformers is not installed"
    return None if torch.cuda.is_available() else "xformers needs a CUDA device"


def use_attention(model: nn.Module, name: str) -> AttentionChoice:
    """Set the attention backend of every attention layer of a model; a runtime choice, never saved.

    Args:
        model: any module; each `AttentionLayer` within it is set.
        name: a key of `BACKENDS`, or `auto`.

    Raises:
        UsageError: the name is unknown, the backend cannot run here, or nothing attends in `model`.
    """
    layers = [module for module in model.modules() if isinstance(module, AttentionLayer)]
    if not layers:
        raise UsageError(
            f"use_attention: {type(model).__name__} has no attention layer",
            "the backend is set on the attention layers inside a model",
            "pass a UNet, a text encoder or another model with attention",
        )
    sample = layers[0].to_q.weight
    backend, why = (name, "asked for by name") if name != "auto" else _choose(model, sample)
    reason = unavailable(backend) if backend in BACKENDS else "there is no backend of this name"
    if reason is not None:
        known = [f"{key} ({unavailable(key) or 'available'})" for key in BACKENDS]
        raise UsageError(f"attention backend {name!r}", reason, ", ".join([*known, "auto"]))
    for layer in layers:
        layer.backend = backend
    return AttentionChoice(backend, _kernel(backend, layers[0]), why, len(layers))


def _choose(model: nn.Module, sample: Tensor) -> tuple[str, str]:
    """The backend for `auto`, and the reason."""
    if sample.device.type == "cpu" and model.training:
        return "reference", "training on CPU, where the backward pass of torch's kernel is slower"
    return "sdpa", f"torch's fused attention serves {sample.device.type}"


def _kernel(backend: str, layer: AttentionLayer) -> str:
    """The name of the code that runs, where torch chooses: for this layer's device and type."""
    if backend != "sdpa":
        return f"sdcore.attention.{backend}" if backend != "xformers" else "xformers.ops"
    weight = layer.to_q.weight
    probe = weight.new_zeros(1, layer.heads, 64, layer.to_q.out_features // layer.heads)
    choice = torch._fused_sdp_choice(probe, probe, probe)
    return f"torch {torch.nn.attention.SDPBackend(choice).name.lower()}"


# --- masks -------------------------------------------------------------------------------------


def causal_mask(tokens: int, device: torch.device | str | None = None) -> Tensor:
    """Each token sees itself and those before it: (N, N)."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def padding_mask(real: Tensor) -> Tensor:
    """No query looks at padding: `real` (B, T), True for a real token, to (B, 1, 1, T)."""
    return real.bool()[:, None, None, :]


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
        name: the published name of the layer, e.g. `mid_block.attentions.0.transformer_blocks.0.attn2`.
    """

    place: str
    level: int
    index: int
    kind: str = "self"
    block: int = 0
    name: str = ""

    def __str__(self) -> str:
        return f"{self.place}.{self.level}.{self.index}.{self.block} {self.kind}"


class Attend(Protocol):
    """The layer's backend as a control sees it; its mask applies unless another one is given."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = ...) -> Tensor: ...


class Control(Protocol):
    """What can be hung on attention: q (B, H, N, d), k and v (B, H, T, d) to out (B, H, N, d).

    `grid` is (h, w) with h w = N. `attend(q, k, v)` alone leaves the layer as it is. All that a
    control wants is linear in v (`attend(q, k, c * v)`, `attend(q, k, identity)`), so no control
    needs the attention weights, and every control runs on every backend.
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


# --- the layers --------------------------------------------------------------------------------


class AttentionLayer(nn.Module):
    """What self- and cross-attention share: four projections, the heads, and the one call point."""

    def __init__(
        self,
        width: int,
        heads: int,
        source_width: int,
        *,
        bias: bool = False,
        dropout: float = 0.0,
        site: Site | None = None,
    ) -> None:
        super().__init__()
        assert width % heads == 0, f"width {width} is not a multiple of {heads} heads"
        self.heads = heads
        self.site = site
        self.backend = "sdpa"
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(source_width, width, bias=bias)
        self.to_v = nn.Linear(source_width, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def run(
        self,
        x: Tensor,
        source: Tensor,
        mask: Tensor | None,
        grid: tuple[int, int] | None,
        control: Control | None,
    ) -> Tensor:
        q = self._split(self.to_q(x))  #            (B, N, D) -> (B, H, N, d)
        k = self._split(self.to_k(source))  #       (B, T, ·) -> (B, H, T, d)
        v = self._split(self.to_v(source))
        out = self.attend(q, k, v, mask, grid, control)
        out = out.transpose(1, 2).flatten(2)  #     (B, H, N, d) -> (B, N, D)
        return self.to_out(out)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        grid: tuple[int, int] | None,
        control: Control | None,
    ) -> Tensor:
        """The one place where attention happens and where a control can step in."""
        backend = BACKENDS[self.backend]
        if control is None or self.site is None:
            return backend(q, k, v, mask)
        assert grid is not None, "a control needs the token grid"
        return control(self.site, grid, q, k, v, partial(backend, mask=mask))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SelfAttention(AttentionLayer):
    """Tokens look at one another: x (B, N, D) to (B, N, D)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = False,
        dropout: float = 0.0,
        site: Site | None = None,
    ) -> None:
        super().__init__(width, heads, width, bias=bias, dropout=dropout, site=site)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        return self.run(x, x, mask, grid, control)


class CrossAttention(AttentionLayer):
    """Tokens read the text: x (B, N, D), text (B, T, source_width) to (B, N, D)."""

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        control: Control | None = None,
    ) -> Tensor:
        return self.run(x, text, mask, grid, control)
