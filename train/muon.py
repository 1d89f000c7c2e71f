"""Muon for the weight matrices of a network; what is no matrix is left to AdamW.

Muon moves a matrix by the nearest orthogonal matrix to its momentum, so that every direction of it
learns at one pace (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). The update is
scaled to the size that AdamW's has, so that both take one learning rate (Liu et al. 2025,
arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

LEAST_CHANNELS = 32  # of either side; the convolution that reads latents is no such matrix


class Muon(torch.optim.Muon):
    """Torch's Muon, which knows matrices only, for convolutions too: (out, in, k, k) as (out, in k k)."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._weights = weights
        # Views: to update one is to update the weight itself.
        matrices = [nn.Parameter(weight.detach().view(len(weight), -1)) for weight in weights]
        super().__init__(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # noqa: ANN401 (torch's)
        for matrix, weight in zip(self.param_groups[0]["params"], self._weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.reshape(len(weight), -1)
        return super().step(closure)


def weight_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers and convolutions; embeddings are rows of their own."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    return [
        layer.weight
        for layer in layers
        if layer.weight.requires_grad and min(layer.weight.shape[:2]) >= LEAST_CHANNELS
    ]
