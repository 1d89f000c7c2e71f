"""The optimizers of a run: AdamW, and Muon for the weight matrices of a network.

Muon moves a matrix by the nearest orthogonal matrix to its momentum, so that every direction of it
learns at one pace (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). The update is
scaled to the size that AdamW's has, so that both take one learning rate (Liu et al. 2025,
arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

# Torch takes five steps; three already level what matters (values from a fiftieth of the largest),
# and on a CPU every step costs a tenth of a training step of 32 scenes.
NEWTON_SCHULZ_STEPS = 3
LEAST_CHANNELS = 32  # of either side; the convolution that reads latents is no such matrix


def make_optimizers(
    module: nn.Module, *, kind: str, learning_rate: float, weight_decay: float
) -> dict[str, torch.optim.Optimizer]:
    """Name in a checkpoint -> optimizer; each trained parameter belongs to one of them.

    Of AdamW's, matrices decay; biases, norms and other vectors do not.

    Args:
        kind: `adamw` for all, or `muon`, which takes the weight matrices.
    """
    matrices = weight_matrices(module) if kind == "muon" else []
    taken = {id(weight) for weight in matrices}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(
            groups,
            lr=learning_rate,
            betas=(0.9, 0.99),
            fused=True,  # one pass over the weights: a twelfth of a step on two cores
        )
    }
    if matrices:
        optimizers["muon"] = Muon(matrices, learning_rate, weight_decay)
    return optimizers


class Muon(torch.optim.Muon):
    """Torch's Muon, which knows matrices only, also for convolutions (out, in, k, k)."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._weights = weights
        # Views: to update one is to update the weight itself.
        matrices = [nn.Parameter(_as_matrix(weight.detach(), weight)) for weight in weights]
        super().__init__(
            matrices,
            lr=lr,
            weight_decay=weight_decay,
            ns_steps=NEWTON_SCHULZ_STEPS,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        for matrix, weight in zip(self.param_groups[0]["params"], self._weights, strict=True):
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad, weight)
        loss = cast("float | None", super().step(closure))  # pyright: ignore[reportUnknownMemberType]
        self.zero_grad()  # else the gradients would stay in memory through the next backward pass
        return loss


def _as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """What is shaped like a weight (out, in, k, k) as (out, in k k), columns as the weight's lie.

    Of the weight itself it is a view. Muon does not mind in which order columns stand.
    """
    if weight.ndim == 4 and not weight.is_contiguous():  # channels_last
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)


def weight_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers and convolutions; embeddings are rows of their own."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    weights = (layer.weight for layer in layers)
    return [
        weight
        for weight in weights
        if isinstance(weight, nn.Parameter)
        and weight.requires_grad
        and min(weight.shape[:2]) >= LEAST_CHANNELS
    ]
