"""Tensors of other programs put into the words of lora_kinds.py, where a setting or a layer's other
tensors say what they mean.

    weight, on_input        LyCORIS' IA3           -> ia3_w
    ia3_l                   PEFT's                 -> ia3_l, a row or a column
    oft_R, boft_R, boft_s   PEFT's OFT and BOFT    -> rotation, stretch
    a1, a2, b1, b2          GLoRA, which older versions had the other way around
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sdcore.checks import as_finite, as_int
from sdcore.files.jsonfile import is_list

_linalg, _block_diag = cast(Any, torch.linalg), cast(Any, torch.block_diag)  # pyright: ignore[reportUnknownMemberType]
_EPSILON, _TERMS = 6e-5, 5  # PEFT's, where no settings lie beside the file


def in_our_words(
    layer: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors of one layer, under the names that the kinds of changes have.

    Args:
        settings: of PEFT's adapter_config.json, where there is one.

    Raises:
        ValueError: with the reason, for tensors that cannot be.
    """
    out = dict(tensors)
    if "on_input" in out:
        out["ia3_w"] = _row_or_column(out.pop("weight"), bool(out.pop("on_input").any()))
    elif "ia3_l" in out and out["ia3_l"].ndim != 2:
        out["ia3_l"] = _row_or_column(out["ia3_l"], _is_feedforward(layer, settings))
    elif "oft_R" in out:
        out["rotation"] = _oft(out.pop("oft_R"), settings)
    elif "boft_R" in out:
        out["rotation"] = _boft(out.pop("boft_R"))
        if "boft_s" in out:
            out["stretch"] = out.pop("boft_s").reshape(-1, 1)
    elif {"a1", "a2", "b1", "b2"} <= out.keys():
        out |= _glora(out)
    return out


def _row_or_column(vector: Tensor, on_input: bool) -> Tensor:
    return vector.reshape(1, -1) if on_input else vector.reshape(-1, 1)


def _is_feedforward(layer: str, settings: Mapping[str, Any]) -> bool:
    """Whether PEFT stretches what this layer reads."""
    names = settings.get("feedforward_modules")
    found: Sequence[Any] = names if is_list(names) else [names]
    return any(isinstance(name, str) and f".{layer}".endswith(f".{name}") for name in found)


def _glora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    a1, a2, b1, b2 = (tensors[name] for name in ("a1", "a2", "b1", "b2"))
    if min(t.ndim for t in (a1, a2, b1, b2)) < 2:
        raise ValueError("a part of it is no matrix")
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    if old and new:  # a square layer: the rank is the smaller side
        new = a1.shape[1] <= a1.shape[0]
    return {"a1": a2, "a2": a1, "b1": b2, "b2": b1} if old and not new else {}


# --- PEFT's rotations ----------------------------------------------------------------------------


def _oft(vectors: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """(k, b (b - 1) / 2), the upper triangles of skew matrices, to rotations (k, b, b)."""
    if vectors.ndim != 2 or not vectors.numel():
        raise ValueError(f"its oft_R is {tuple(vectors.shape)}")
    count = vectors.shape[1]
    size = round((1 + (1 + 8 * count) ** 0.5) / 2)
    if size * (size - 1) // 2 != count:
        raise ValueError(f"its oft_R has rows of {count}, which is no triangle of a matrix")
    rows, columns = torch.triu_indices(size, size, 1)
    upper = vectors.new_zeros(len(vectors), size, size, dtype=torch.float32)
    upper[:, rows, columns] = vectors.float()
    skew = upper - upper.mT
    if settings.get("coft"):
        most = as_finite(settings.get("eps", _EPSILON)) or _EPSILON
        lengths = skew.square().sum(dim=(1, 2), keepdim=True).sqrt()
        skew = skew * (most / len(skew) ** 0.5 / lengths.clamp_min(1e-30)).clamp_max(1)
    if settings.get("use_cayley_neumann", True):
        return _by_powers(skew, as_int(settings.get("num_cayley_neumann_terms", _TERMS), 1, 100))
    return _cayley(skew)


def _by_powers(skew: Tensor, terms: int | None) -> Tensor:
    """The first powers of the series 1 + 2 Q + 2 Q² + ..., as PEFT cuts it."""
    terms = terms or _TERMS
    last = terms - 1 if terms < 3 else max(terms - 1, 3)
    rotation = torch.eye(skew.shape[-1]).repeat(len(skew), 1, 1)
    power = skew
    for number in range(1, last + 1):
        power = skew if number == 1 else power @ skew
        # PEFT counts the last power once, from the third on
        rotation = rotation + (1 if number == last > 2 else 2) * power
    return rotation


def _cayley(skew: Tensor) -> Tensor:
    """(1 - Q) (1 + Q)⁻¹."""
    one = torch.eye(skew.shape[-1])
    return _linalg.solve(one + skew, one - skew, left=False)


def _boft(blocks: Tensor) -> Tensor:
    """(N, k, b, b) to one rotation of all inputs, or, where there is one grid, its blocks."""
    if blocks.ndim != 4 or blocks.shape[-1] != blocks.shape[-2] or not blocks.numel():
        raise ValueError(f"its boft_R is {tuple(blocks.shape)}")
    grids, count, size = blocks.shape[:3]
    turns = blocks.float()
    turns = _cayley(0.5 * (turns - turns.mT).flatten(0, 1)).reshape(blocks.shape)
    if grids == 1:
        return turns[0]
    if count % 2 ** (grids - 1) or size % 2:
        raise ValueError(f"its boft_R is {tuple(blocks.shape)}, which no butterfly has")
    whole = torch.eye(count * size)
    for number, turn in enumerate(turns):
        order = _butterfly_order(count * size, count // 2**number, size // 2)
        # row i of PEFT's permutation matrix P has its 1 at order[i]; the grid is P B Pᵀ
        grid: Tensor = _block_diag(*turn)[order][:, order]
        whole = grid @ whole
    return whole[None]


def _butterfly_order(length: int, blocks: int, half: int) -> Tensor:
    """Within each block of inputs, the groups of `half` with even numbers before the odd ones."""
    inside = torch.arange(length).reshape(blocks, -1, half)
    return torch.cat([inside[:, ::2], inside[:, 1::2]], dim=1).flatten()
