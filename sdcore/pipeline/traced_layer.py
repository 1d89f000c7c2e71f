"""One attention layer of diffusers, handed to a control; see trace.py.

Shapes: B images, R rows of a call of the UNet, H heads, N image tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdcore.attention import Control, Site, call_control


class TakesAttention(TorchFunctionMode):
    """Hands the first fused attention that is computed within it to the controls of its rows.

    Args:
        rows: B.
        controls: of each group of B rows.
    """

    def __init__(
        self, site: Site, grid: tuple[int, int], rows: int, controls: Sequence[Control | None]
    ) -> None:
        super().__init__()
        self.site, self.grid, self.rows, self.controls = site, grid, rows, controls
        self.taken = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and not self.taken:
            self.taken = True
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        # Perturbed attention (PAG) attends with the first rows, and apart with the perturbed ones.
        controls = self.controls[: len(query) // self.rows]
        groups = zip(*(x.chunk(len(controls)) for x in (query, key, value)), strict=True)
        masks = _by_group(attn_mask, len(query), len(controls))
        out: list[Tensor] = []
        for control, mask, (q, k, v) in zip(controls, masks, groups, strict=True):
            attend = _Fused(mask, how)  #                               (B, H, N, d)
            if control is None:
                out.append(attend(q, k, v))
            else:
                out.append(call_control(control, self.site, self.grid, q, k, v, attend))
        return torch.cat(out)


@dataclass(frozen=True)
class _Fused:
    """An `Attend`: torch's fused attention as a processor called it."""

    mask: Tensor | None
    how: dict[str, Any]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **other: Tensor | None) -> Tensor:
        mask = other.get("mask", self.mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.how)


def _by_group(mask: Tensor | None, rows: int, groups: int) -> Sequence[Tensor | None]:
    if mask is None or mask.ndim < 4 or len(mask) != rows:
        return [mask] * groups
    return mask.chunk(groups)
