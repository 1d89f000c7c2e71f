"""The optimizers of a run: AdamW and its relatives, and Muon for the weight matrices of a network.

    adamw          decoupled weight decay                Loshchilov & Hutter 2017, arXiv:1711.05101
    adamw_8bit     its state in 8 bits (bitsandbytes)    Dettmers et al. 2021, arXiv:2110.02861
    adafactor      second moments as rows and columns    Shazeer & Stern 2018, arXiv:1804.04235
    prodigy        finds its own rate: use rate 1        Mishchenko & Defazio 2023, arXiv:2306.06101
    schedule_free  averages instead of falling           Defazio et al. 2024, arXiv:2405.15682
    muon           see below; AdamW for what is no matrix

Muon moves a matrix by the nearest orthogonal matrix to its momentum, so that every direction of it
learns at one pace (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). The update is
scaled to the size that AdamW's has, so that both take one learning rate (Liu et al. 2025,
arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sdcore.errors import UsageError

# Torch takes five steps; three already level what matters (values from a fiftieth of the largest),
# and on a CPU every step costs a tenth of a training step of 32 scenes.
NEWTON_SCHULZ_STEPS = 3
_QUINTIC = (3.4445, -4.7750, 2.0315)  # x -> a x + b x³ + c x⁵ of singular values, Jordan's
LEAST_CHANNELS = 32  # of either side; the convolution that reads latents is no such matrix
_EXTRAS = {  # optimizer -> module, class, the extra that installs it
    "adamw_8bit": ("bitsandbytes.optim", "AdamW8bit", "8bit"),
    "prodigy": ("prodigyopt", "Prodigy", "optimizers"),
    "schedule_free": ("schedulefree", "AdamWScheduleFree", "optimizers"),
}


def make_optimizers(
    module: nn.Module,
    *,
    kind: str,
    learning_rate: float,
    weight_decay: float,
    rates: Mapping[str, float] | None = None,
) -> dict[str, torch.optim.Optimizer]:
    """Name in a checkpoint -> optimizer; each trained parameter belongs to one of them.

    Matrices decay; biases, norms and other vectors do not. Each group of parameters has `scale`,
    by which the learning rate of a step is multiplied.

    Args:
        kind: see the table above.
        rates: beginnings of parameter names -> `scale`, which is 1 for all others.

    Raises:
        UsageError: the optimizer is in a package that is not installed.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    matrices = weight_matrices(module) if kind == "muon" else []
    taken = {id(weight) for weight in matrices}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        if id(parameter) not in taken:
            scale = 1.0 if kind == "prodigy" else _scale(name, rates or {})  # it takes one rate
            groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    listed = [
        {"params": some, "weight_decay": weight_decay if decays else 0.0, "scale": scale}
        for (scale, decays), some in sorted(groups.items(), key=lambda group: not group[0][1])
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if listed:
        optimizers["optimizer"] = _make(kind, listed, learning_rate)
    if matrices:
        muon = Muon(matrices, learning_rate, weight_decay)
        muon.param_groups[0]["scale"] = 1.0
        optimizers["muon"] = muon
    return optimizers


def _scale(name: str, rates: Mapping[str, float]) -> float:
    return next((scale for start, scale in rates.items() if name.startswith(start)), 1.0)


def _make(kind: str, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    if kind in ("adamw", "muon"):
        # Fused is one pass over the weights: a twelfth of a step on two cores.
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)
    if kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate)
    return _extra(kind)(groups, lr=rate, betas=(0.9, 0.99))


def check_optimizer(kind: str) -> None:
    """Refuse an optimizer whose package is not installed. Raises UsageError."""
    if kind in _EXTRAS:
        _extra(kind)


def _extra(kind: str) -> Any:
    """The class of an optimizer of another package."""
    module, name, extra = _EXTRAS[kind]
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise UsageError(
            f"The optimizer {kind} is not installed.",
            f"It is in the package {module.partition('.')[0]}, which cannot be imported.",
            f'Install it: pip install "sdcore[{extra}]". Or use run.optimizer=adamw.',
        ) from error


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
        loss = None if closure is None else closure()
        group = self.param_groups[0]
        rate, share = group["lr"], group["momentum"]
        for matrix, weight in zip(group["params"], self._weights, strict=True):
            if weight.grad is None:
                continue
            gradient, state = _as_matrix(weight.grad, weight), self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - share)
            update = orthogonal(gradient.lerp(momentum, share), group["ns_steps"])
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(update, alpha=-0.2 * rate * max(matrix.shape) ** 0.5)  # AdamW's size
        return loss


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """The nearest orthogonal matrix (out, in), about: its singular values come near to 1.

    Torch's own computes in bfloat16, for which not every CPU has units: without them it took a half
    of a training step, in float32 a quarter.
    """
    a, b, c = _QUINTIC
    x = matrix.to(torch.bfloat16 if _fast_in_bfloat16(matrix.device) else torch.float32)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.square().sum().sqrt().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def _fast_in_bfloat16(device: torch.device) -> bool:
    if device.type != "cpu":
        return True
    capabilities: Any = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.10
    known: Mapping[str, Any] = capabilities() if capabilities else {}
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


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
