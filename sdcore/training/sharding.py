"""A UNet divided over processes, by torch's FSDP2: each keeps a part of every tensor of it.

A layer's weights are brought together for its forward and backward pass, and its gradients are
averaged and divided again (Zhao et al. 2023, arXiv:2304.11277). Weights, gradients, the optimizer's
moments and the average so take a share of the memory in each process. To paint, and to write what
was trained, each process has the whole for a while.

In a checkpoint tensors are whole: a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdcore.errors import UsageError
from sdcore.training.run_settings import RunSettings
from sdcore.unet.unet import UNet

_BLOCKS = ("down_blocks", "up_blocks")


def check_sharding(loop: RunSettings, trained: Mapping[str, nn.Parameter]) -> None:
    """Refuse what a divided network cannot do.

    Args:
        trained: what takes a gradient, by names of a `Network`.

    Raises:
        UsageError: the optimizer, precision or what is trained does not go with it.
    """
    why = _unfit(loop, trained) if loop.shard else None
    if why is not None:
        raise UsageError(
            "The setting run.shard cannot be used with these.",
            why,
            "Use run.optimizer=adamw, run.precision=bf16 or no, and train the UNet alone.",
        )


def _unfit(loop: RunSettings, trained: Mapping[str, nn.Parameter]) -> str | None:
    if loop.optimizer != "adamw":
        return f"The optimizer {loop.optimizer} reads whole tensors."
    if loop.precision == "fp16":
        return "The loss scaler of fp16 reads whole gradients."
    if any(not name.startswith("unet.") for name in trained):
        return "Only the UNet is divided, and more than it is trained."
    return None


def shard(unet: nn.Module) -> None:
    """Divide a UNet's weights over all processes, in place, block by block."""
    from torch.distributed.fsdp import fully_shard

    blocks = [block for name in _BLOCKS for block in getattr(unet, name)]
    for block in (*blocks, unet.mid_block):
        fully_shard(cast(nn.Module, block))
    fully_shard(unet)


@contextmanager
def together(unet: nn.Module) -> Generator[None]:
    """Context in which each process has the whole UNet, and may call it alone."""
    divided: list[Any] = [module for module in unet.modules() if hasattr(module, "unshard")]
    for module in divided:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in divided:
            module.set_reshard_after_forward(module is not unet, recurse=False)
            module.reshard()


def undivided(unet: UNet) -> UNet:
    """The same UNet, of which `together` gives all weights, as one that torch does not divide.

    A divided one gives its parts alone where its state is asked for.
    """
    if not hasattr(unet, "unshard"):
        return unet
    with torch.device("meta"):
        plain = UNet(unet.config)
    weights = {name: parameter.detach() for name, parameter in unet.named_parameters()}
    plain.load_state_dict(weights, assign=True)
    return plain


def join_gradients(unet: nn.Module, now: bool) -> None:
    """Whether gradients are averaged over the processes after the next backward pass."""
    cast(Any, unet).set_requires_gradient_sync(now)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which this process has a part, put together; all processes have to ask for it."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has; the tensor itself where it is not divided."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def divided_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, divided as another one is."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    pattern = cast(Any, like)
    moved = tensor.to(device=pattern.device_mesh.device_type)
    return distribute_tensor(moved, pattern.device_mesh, pattern.placements)


def copy_into(target: Tensor, tensor: Tensor) -> None:
    """Copy a whole tensor, or one that is divided alike, into one that may be divided."""
    with torch.no_grad():
        if hasattr(target, "device_mesh") and not hasattr(tensor, "device_mesh"):
            tensor = divided_as(tensor, target)
        part_of(target).copy_(part_of(tensor))
