"""What a training step costs, found without computing it: on torch's meta device.

Only shapes are followed there, so it takes part of a second whatever the size of the model.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sdcore.size import Size
from sdcore.text.config import CLIPTextConfig
from sdcore.training.network import Network, Text
from sdcore.training.state import trained

_BACKWARD = 3  # forward and backward, of what forward costs
_REACHED = 0.4  # of the speed of large matrices that a network reaches
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """Of one step.

    operations: floating point, forward and backward.
    memory: bytes, of weights, gradients, the optimizer's state and what layers keep.
    seconds: on this machine.
    checkpoint: bytes of one.
    """

    operations: float
    memory: float
    seconds: float
    checkpoint: float


def estimate_step(
    network: Network,
    size: Size,
    factor: int,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    averaged: bool = False,
    device: torch.device | str = "cpu",
) -> Estimate:
    """About what an update of one batch costs.

    Args:
        size: of the pictures.
        factor: pixels of a side for each latent.
        dtype: in which networks compute.
        averaged: a moving average is kept.
        device: whose speed is measured.
    """
    meta = copy.deepcopy(network).to("meta")
    meta.unet.gradient_checkpointing = False
    kind, rows = network.kind, batch_size
    height, width = size.latent_grid(factor)
    latents = torch.empty(rows, kind.channels, height, width, device="meta")
    length = network.text_encoders[0].config.max_position_embeddings
    states = torch.empty(rows, length, kind.text_width, device="meta")
    pooled = time_ids = None
    if kind.pooled_text:
        last = network.text_encoders[-1].config
        assert isinstance(last, CLIPTextConfig)
        pooled = torch.empty(rows, last.projection_dim or last.hidden_size, device="meta")
        time_ids = torch.empty(rows, kind.size_numbers, device="meta")
    kept: dict[int, Tensor] = {}
    weights = {id(parameter) for parameter in meta.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            kept[id(tensor)] = tensor
        return tensor

    meta.float()
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        meta(latents, torch.zeros(rows, device="meta"), Text(states, pooled), time_ids)
    activations = sum(tensor.numel() for tensor in kept.values()) * dtype.itemsize
    if network.unet.gradient_checkpointing:
        activations /= 5  # of the layers' inputs alone, and one layer
    numbers = sum(parameter.numel() for _, parameter in trained(network))
    resting = sum(p.numel() * p.element_size() for p in network.parameters())
    states_of_optimizer = numbers * _FLOAT * (3 + averaged)  # gradients and two moments
    operations = float(counter.get_total_flops()) * _BACKWARD
    return Estimate(
        operations,
        resting + states_of_optimizer + activations,
        operations / (_speed(torch.device(device), dtype) * _REACHED),
        numbers * _FLOAT * (3 + averaged),
    )


def _speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations each second of a product of matrices."""
    side = 4096 if device.type == "cuda" else 512
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (matrix @ matrix).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
