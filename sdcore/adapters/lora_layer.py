"""A layer with changes beside it, which are computed anew at each call.

out = base(x) + Σ amount · ΔW x
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from sdcore.adapters.lora_math import Change, Layer
from sdcore.errors import UsageError
from sdcore.views import NetworkT, view


class AdaptedLayer(nn.Module):
    """A linear layer or convolution with changes beside it; x and out are those of `base`.

    Args:
        changes: each with how much of it is added.
    """

    def __init__(self, base: Layer, changes: Sequence[tuple[Change, float]]) -> None:
        super().__init__()
        self.base = base
        self.changes = nn.ModuleList(change for change, _ in changes)
        self.amounts = tuple(amount for _, amount in changes)
        register = cast(Any, self.register_state_dict_pre_hook)  # pyright: ignore[reportUnknownMemberType]
        register(_refuse_saving)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        for change, amount in zip(self.changes, self.amounts, strict=True):
            out = out + amount * change(x, self.base)
        return out

    def parts(self) -> list[tuple[Change, float]]:
        """The changes, each with its amount."""
        changes = [change for change in self.changes if isinstance(change, Change)]
        return list(zip(changes, self.amounts, strict=True))


def adapted_layers(network: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers of a network that have changes beside them, by their names."""
    modules = cast(Iterable[tuple[str, nn.Module]], network.named_modules())
    return {name: module for name, module in modules if isinstance(module, AdaptedLayer)}


def without_changes(network: NetworkT) -> NetworkT:
    """A view of a network without what is beside its layers."""
    return view(network, {name: layer.base for name, layer in adapted_layers(network).items()})


def _refuse_saving(module: nn.Module, *_: Any) -> None:
    raise UsageError(
        "The weights of a network with LoRAs beside its layers cannot be saved.",
        "The file would hold neither the network without them nor what it computes with them.",
        "Save the model that the LoRAs were applied to, or apply them with merge=True.",
    )
