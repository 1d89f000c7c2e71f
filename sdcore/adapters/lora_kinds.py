"""Changes that are no products of small matrices, and the table of all kinds.

    full, norm   W + diff, b + diff_b                           LyCORIS `full` and `norm`
    IA3          rows or columns of W times a vector            Liu et al. 2022, arXiv:2205.05638
    GLoRA        W + s (W a1 a2 + b1 b2)                        Chavan et al. 2023, arXiv:2306.07967
    OFT          R W, R orthogonal, in blocks of outputs        Qiu et al. 2023, arXiv:2306.07280
    BOFT         the same, blocks of several grids one by one   Liu et al. 2023, arXiv:2311.06243
    PEFT's OFT and BOFT   W Rᵀ, in blocks of inputs

Here, too, the user's weight multiplies ΔW, the difference that it makes at weight 1; LyCORIS and
PEFT say the same at 1, and other things between for those that multiply W.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from sdcore.adapters.lora_math import Change, Hadamard, Kronecker, LowRank


class _OfWeight(Change):
    """A change whose ΔW depends on W."""

    MATRICES = False

    @classmethod
    def rank(cls, tensors: object) -> int | None:
        return None

    def product(self) -> Tensor:
        raise AssertionError("the change depends on the weight")

    def _shape(self) -> torch.Size | None:
        return None

    def _weight_fault(self, shape: torch.Size) -> str | None:
        """Tried on tensors without memory."""
        meta = type(self)({n: t.to("meta") for n, t in self.tensors().items()}, self.scale)
        try:
            if meta.delta(torch.empty(shape, device="meta")).shape == shape:
                return None
        except (RuntimeError, IndexError, ValueError):
            pass
        shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in self.tensors().items()]
        return f"the layer's weight is {tuple(shape)}, its tensors {', '.join(shapes)}"


class Full(_OfWeight):
    """diff, as large as the weight, or nothing but a change of the bias; of any kind of layer."""

    FORMS = (frozenset({"diff"}), frozenset())

    def delta(self, weight: Tensor) -> Tensor:
        diff = self._parameters.get("diff")
        return weight.float() * 0 if diff is None else diff.float().reshape(weight.shape)

    def inputs(self) -> int:
        diff = self._parameters.get("diff")
        return diff.shape[1] if diff is not None and diff.ndim > 1 else 0

    def _weight_fault(self, shape: torch.Size) -> str | None:
        found = self._parameters.get("diff")
        matrix = {found.ndim if found is not None else 0, len(shape)} == {2, 4}
        if found is None or found.shape == shape:
            return None
        if matrix and found.numel() == shape.numel() and found.shape[:2] == shape[:2]:
            return None
        return f"it is for a weight {tuple(found.shape)}, the layer has {tuple(shape)}"


class Stretch(_OfWeight):
    """IA3: (O, 1) stretches what the layer gives, (1, I) what it reads.

    ia3_w is LyCORIS' factor less 1, for W alone; ia3_l PEFT's factor, for the bias as well.
    """

    FORMS = (frozenset({"ia3_w"}), frozenset({"ia3_l"}))

    def delta(self, weight: Tensor) -> Tensor:
        factor = self._less_one()
        if factor.shape not in ((weight.shape[0], 1), (1, weight.shape[1])):
            raise ValueError("the vector has another length")
        return weight.float() * factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        more, factor = super().delta_bias(bias), self._less_one()
        if bias is None or "ia3_l" not in self._parameters or factor.shape[1] > 1:
            return more
        own = bias.float() * factor.flatten()
        return own if more is None else own + more

    def inputs(self) -> int:
        width = self._less_one().shape[1]
        return width if width > 1 else 0

    def _less_one(self) -> Tensor:
        (name,) = {"ia3_w", "ia3_l"} & self._parameters.keys()
        return self.get_parameter(name).float() - float(name == "ia3_l")


class Generalised(_OfWeight):
    """GLoRA: a1 (I, R), a2 (R, I), b1 (O, R), b2 (R, I) or (R, I, kh, kw) of a kernel."""

    FORMS = (frozenset({"a1", "a2", "b1", "b2"}),)
    MATRICES = True

    @classmethod
    def rank(cls, tensors: dict[str, Tensor]) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tensors["a2"].shape[0]

    def delta(self, weight: Tensor) -> Tensor:
        w = {name: parameter.float().flatten(1) for name, parameter in self._float32().items()}
        turned = torch.einsum("oi...,ij->oj...", weight.float(), w["a1"] @ w["a2"])
        return self.scale * (turned + (w["b1"] @ w["b2"]).reshape(weight.shape))

    def inputs(self) -> int:
        return self.get_parameter("a2").shape[1]


class OutputRotation(_OfWeight):
    """OFT (k, b, b) and BOFT (m, k, b, b) of LyCORIS and kohya: blocks of outputs are turned.

    R = (1 + Q) (1 - Q)⁻¹, Q = blocks - blocksᵀ, not longer than `scale` times O unless that is 0.
    `rescale` (O, 1, ...) stretches each output besides.
    """

    FORMS = (frozenset({"oft_blocks"}), frozenset({"oft_blocks", "rescale"}))

    def delta(self, weight: Tensor) -> Tensor:
        blocks = self.get_parameter("oft_blocks").float()
        skew = blocks - blocks.mT
        if self.scale > 0:
            length = skew.square().sum().sqrt() + 1e-8
            skew = skew * (self.scale * len(weight) / length).clamp_max(1)
        one = torch.eye(blocks.shape[-1], device=blocks.device)
        turns: Tensor = (one + skew) @ cast(Any, torch.linalg).inv(one - skew)
        w = weight.float()
        turned = w
        if turns.ndim == 3:
            rows = w.reshape(*turns.shape[:2], -1)
            turned = torch.einsum("knm,knc->kmc", turns, rows).reshape(w.shape)
        else:
            for number, turn in enumerate(turns):
                turned = _butterfly(turned, turn, number)
        rescale = self._parameters.get("rescale")
        if rescale is not None:
            turned = turned * rescale.float().reshape(-1, *[1] * (w.ndim - 1))
        return turned - w


class InputRotation(_OfWeight):
    """PEFT's OFT and BOFT: rotation (k, b, b) turns blocks of inputs; one block is for all of them.

    `stretch` (O, 1) stretches each output besides.
    """

    FORMS = (frozenset({"rotation"}), frozenset({"rotation", "stretch"}))

    def delta(self, weight: Tensor) -> Tensor:
        rotation, w = self.get_parameter("rotation").float(), weight.float()
        blocks = w.reshape(len(w), -1, rotation.shape[-1])
        turned = torch.einsum("orc,rkc->ork", blocks, rotation.expand(blocks.shape[1], -1, -1))
        turned = turned.reshape(w.shape)
        stretch = self._parameters.get("stretch")
        if stretch is not None:
            turned = turned * stretch.float().reshape(-1, *[1] * (w.ndim - 1))
        return turned - w


KINDS: tuple[type[Change], ...] = (
    *(LowRank, Hadamard, Kronecker),
    *(Full, Stretch, Generalised, OutputRotation, InputRotation),
)


def _butterfly(weight: Tensor, turn: Tensor, number: int) -> Tensor:
    """One grid of BOFT: outputs that lie 2^number half blocks apart are turned together."""
    size, shape = turn.shape[-1], weight.shape
    apart = 2**number * (size // 2)
    w = weight.reshape(-1, 2, apart, *shape[1:]).transpose(1, 2).reshape(-1, size, *shape[1:])
    w = torch.einsum("bij,bj...->bi...", turn, w)
    return w.reshape(-1, apart, 2, *shape[1:]).transpose(1, 2).reshape(shape)
