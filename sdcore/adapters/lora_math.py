"""What a LoRA does to the weight of one layer; other kinds of changes are in lora_kinds.py.

    LoRA, LoCon  ΔW = s · up down                        Hu et al. 2021, arXiv:2106.09685
                 with a kernel: up, mid, down            CP form of LyCORIS, arXiv:2309.14859
    LoHa         ΔW = s · (w1_a w1_b) ⊙ (w2_a w2_b)      Hyeon-Woo et al. 2021, arXiv:2108.06098
    LoKr         ΔW = s · w1 ⊗ w2                        Yeh et al. 2023, arXiv:2309.14859
    DoRA         any of them, and then the length m:
                 ΔW = m (W + ΔW₀) / ‖W + ΔW₀‖ − W        Liu et al. 2024, arXiv:2402.09353

A weight given by the user multiplies ΔW, so 0 is no change; for DoRA too, as in ComfyUI.

Beside any of them may stand changes of the layer's bias: `bias`, which is scaled by s as the rest,
and `diff_b`, which is not.

Shapes: W is (O, I) of a linear layer or (O, I, kh, kw) of a convolution, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


class Change(nn.Module):
    """A change ΔW of one weight, kept as the small tensors that it is computed from.

    Args:
        tensors: under the names in the class's `FORMS`; and for DoRA `magnitude`, (O, 1) where each
            output has a length or (1, I) where each input has one.
        scale: s, which is alpha / rank.
    """

    FORMS: ClassVar[tuple[frozenset[str], ...]]  # sets of tensors that make one change
    BESIDE: ClassVar[frozenset[str]] = frozenset({"magnitude", "bias", "diff_b"})
    MATRICES: ClassVar[bool] = True  # its tensors are matrices or kernels
    PREFIX: ClassVar[str] = ""  # of their names, left out in the formulas below

    def __init__(self, tensors: Mapping[str, Tensor], scale: float) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.scale = scale

    @classmethod
    def rank(cls, tensors: Mapping[str, Tensor]) -> int | None:
        """R, by which alpha is divided; None where nothing was factorised, and s is 1."""
        raise NotImplementedError

    def product(self) -> Tensor:
        """ΔW₀ / s, in the form of W or with its kernel flattened."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def at(self, device: torch.device, dtype: torch.dtype | None = None) -> Change:
        """The same change on a device, and in another type unless it is None."""
        tensors = {name: t.to(device=device, dtype=dtype) for name, t in self.tensors().items()}
        return type(self)(tensors, self.scale)

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW of this weight, float32."""
        delta = self.scale * self.product().reshape(weight.shape)
        magnitude = self._parameters.get("magnitude")
        if magnitude is None:
            return delta
        turned = weight.float() + delta
        per_output = magnitude.shape[1] == 1
        rows = turned if per_output else turned.transpose(0, 1)
        norms = cast(Tensor, rows.flatten(1).norm(dim=1))  # pyright: ignore[reportUnknownMemberType]
        lengths = norms.clamp_min(torch.finfo(torch.float32).tiny)
        stretch = magnitude.float().flatten() / lengths
        to_weight = (-1, *[1] * (weight.ndim - 1)) if per_output else (-1, *[1] * (weight.ndim - 2))
        return turned * stretch.reshape(to_weight) - weight.float()

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """What is added to the layer's bias (O,), float32; None is nothing."""
        scaled, plain = (self._parameters.get(name) for name in ("bias", "diff_b"))
        parts = [] if scaled is None else [self.scale * scaled.float()]
        parts += [] if plain is None else [plain.float()]
        return sum(parts[1:], parts[0]).flatten() if parts else None

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """What the change adds to the layer's output."""
        return self._with_bias(_apply(layer, x, self.delta(layer.weight).to(x.dtype)), layer)

    def _with_bias(self, out: Tensor, layer: Layer) -> Tensor:
        more = self.delta_bias(layer.bias)
        if more is None:
            return out
        return out + more.to(out.dtype).reshape(-1, *[1] * (layer.weight.ndim - 2))

    def fault(self, shape: torch.Size) -> str | None:
        """Why this change does not fit a weight of this shape; None where it does."""
        for name in ("bias", "diff_b"):
            found = self._parameters.get(name)
            if found is not None and found.shape != shape[:1]:
                return f"its {name} is {tuple(found.shape)}, the layer has {shape[0]} outputs"
        return self._weight_fault(shape)

    def _weight_fault(self, shape: torch.Size) -> str | None:
        found = self._shape()
        if found is None:
            shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in self.tensors().items()]
            return f"its tensors do not fit one another: {', '.join(shapes)}"
        flat = (shape[0], shape[1:].numel())
        fits = (flat,) if len(found) == 2 and self._may_be_flat() else ()
        if _without_point(found) not in (_without_point(shape), *fits):
            return f"it is for a weight {tuple(found)}, the layer has {tuple(shape)}"
        magnitude = self._parameters.get("magnitude")
        if magnitude is not None and magnitude.shape not in ((shape[0], 1), (1, shape[1])):
            return f"its magnitude is {tuple(magnitude.shape)}, the layer has {tuple(shape)}"
        return None

    def inputs(self) -> int:
        """I, the width of what the layer reads; 0 where it cannot be told from the tensors."""
        shape = self._shape()
        return shape[1] if shape is not None and len(shape) > 1 else 0

    def _shape(self) -> torch.Size | None:
        """Of the weight that this is for; None where the tensors do not fit one another."""
        try:
            meta = {name: tensor.to("meta") for name, tensor in self.tensors().items()}
            return type(self)(meta, self.scale).product().shape
        except (RuntimeError, IndexError, ValueError):
            return None

    def _float32(self) -> dict[str, Tensor]:
        named = self.named_parameters()
        return {
            name.removeprefix(self.PREFIX): parameter.float()
            for name, parameter in named
            if name not in self.BESIDE
        }

    def _may_be_flat(self) -> bool:
        return True


class LowRank(Change):
    """LoRA and LoCon: down (R, I), up (O, R); for a kernel down (R, I, kh, kw), up (O, R, 1, 1).

    The CP form has down (R, I, 1, 1), mid (R, R, kh, kw) and up (O, R, 1, 1).
    """

    FORMS = (frozenset({"down", "up"}), frozenset({"down", "up", "mid"}))

    down: Tensor
    up: Tensor

    @classmethod
    def rank(cls, tensors: Mapping[str, Tensor]) -> int:
        return tensors["down"].shape[0]

    def product(self) -> Tensor:
        w = self._float32()
        down, up = w["down"], w["up"].flatten(1)
        if "mid" in w:
            return _with_kernel(w["mid"], up.T, down.flatten(1))
        return (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        if "magnitude" in self._parameters:
            return super().forward(x, layer)
        if isinstance(layer, nn.Linear):
            out = self.scale * F.linear(F.linear(x, self.down.flatten(1)), self.up.flatten(1))
            return self._with_bias(out, layer)
        down, up = (t[(...,) + (None,) * (4 - t.ndim)] for t in (self.down, self.up))
        mid = self._parameters.get("mid")
        small = _apply(layer, x, down) if mid is None else _apply(layer, F.conv2d(x, down), mid)
        return self._with_bias(self.scale * F.conv2d(small, up), layer)

    def _may_be_flat(self) -> bool:
        return False


class Hadamard(Change):
    """LoHa: w1_a, w2_a (O, R), w1_b, w2_b (R, I), or (R, I kh kw) for a kernel.

    With t1, t2 (R, R, kh, kw): w1_a, w2_a (R, O), w1_b, w2_b (R, I).
    """

    PREFIX = "hada_"
    _PLAIN = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
    FORMS = (_PLAIN, _PLAIN | {"hada_t1", "hada_t2"})

    @classmethod
    def rank(cls, tensors: Mapping[str, Tensor]) -> int:
        return tensors["hada_w1_b"].shape[0]

    def product(self) -> Tensor:
        w = self._float32()
        if "t1" in w:
            first = _with_kernel(w["t1"], w["w1_a"], w["w1_b"])
            return first * _with_kernel(w["t2"], w["w2_a"], w["w2_b"])
        return (w["w1_a"] @ w["w1_b"]) * (w["w2_a"] @ w["w2_b"])


class Kronecker(Change):
    """LoKr: w1 (a, c) and w2 (b, d) or (b, d, kh, kw), where O = a b and I = c d.

    Each may be factorised: w1_a (a, R), w1_b (R, c), w2_a (b, R), w2_b (R, d) or (R, d kh kw), and
    with t2 (R, R, kh, kw): w2_a (R, b), w2_b (R, d).
    """

    PREFIX = "lokr_"
    FORMS = tuple(
        frozenset(f"lokr_{name}" for name in (*first, *second))
        for first in (("w1",), ("w1_a", "w1_b"))
        for second in (("w2",), ("w2_a", "w2_b"), ("w2_a", "w2_b", "t2"))
    )

    @classmethod
    def rank(cls, tensors: Mapping[str, Tensor]) -> int | None:
        factor = tensors.get("lokr_w1_b", tensors.get("lokr_w2_b"))
        return None if factor is None else factor.shape[0]

    def product(self) -> Tensor:
        w = self._float32()
        first = w["w1"] if "w1" in w else w["w1_a"] @ w["w1_b"]
        if "w2" in w:
            second = w["w2"]
        elif "t2" in w:
            second = _with_kernel(w["t2"], w["w2_a"], w["w2_b"])
        else:
            second = w["w2_a"] @ w["w2_b"].flatten(1)
        return torch.kron(first[(...,) + (None,) * (second.ndim - first.ndim)], second.contiguous())


def _with_kernel(core: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """CP form: core (R, R, kh, kw), outputs (R, O), inputs (R, I) to (O, I, kh, kw)."""
    return torch.einsum("ijhw,io,jn->onhw", core, outputs, inputs)


def _apply(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's own operation with another weight and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, stride=layer.stride, padding=layer.padding)  # pyright: ignore[reportArgumentType]


def _without_point(shape: torch.Size) -> tuple[int, ...]:
    """A 1x1 kernel is left out: such a convolution and a linear layer share their LoRAs."""
    return tuple(shape[:2]) if shape[2:] == (1, 1) else tuple(shape)
