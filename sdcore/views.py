"""Views: another network over the same weights, which differs only in what is replaced.

    other = view(unet, {"mid_block.attentions.0.proj_in": layer})

The way to what is replaced is new: the network, `mid_block`, `attentions` and `attentions.0`. All
else in it is the same objects, so a view costs no memory, and the network is not touched: others
may run it meanwhile. This is how one model has other layers for one call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from sdcore.errors import UsageError

NetworkT = TypeVar("NetworkT", bound=nn.Module)
_OWN_TYPES = (dict, OrderedDict, set)
_TABLES = ("_parameters", "_buffers", "_modules")  # where torch keeps what a module is made of


def view(network: NetworkT, replaced: Mapping[str, nn.Module | Tensor]) -> NetworkT:
    """A network that shares all weights and layers with another one, but for some.

    Args:
        replaced: dotted name of a module, parameter or buffer -> what stands there in the view. A
            module or tensor that stands at several places is replaced at all of them.

    Raises:
        UsageError: a module on the way has a `forward` of its own, as torch.compile and other
            tools attach one; the view would run the layers of the network it was made from.
    """
    swaps = {id(_at(network, name)): new for name, new in replaced.items()}
    seen: dict[int, Any] = {}  # by the id of the original: the same object, or what replaces it

    def changed(entry: Any) -> Any:
        if id(entry) not in seen:
            new = swaps.get(id(entry), entry)
            if new is entry and isinstance(entry, nn.Module):
                new = _with_changed_entries(entry)
            seen[id(entry)] = new
        return seen[id(entry)]

    def _with_changed_entries(module: nn.Module) -> nn.Module:
        tables = {
            table: {name: changed(entry) for name, entry in vars(module)[table].items()}
            for table in _TABLES
        }
        same = all(
            new is vars(module)[table][name]
            for table, entries in tables.items()
            for name, new in entries.items()
        )
        return module if same else twin(module, **tables)

    return changed(network)


def twin(module: NetworkT, **attributes: Any) -> NetworkT:
    """A module that shares its weights and layers with another one, but for some attributes.

    Raises:
        UsageError: as for `view`.
    """
    if "forward" in vars(module):
        raise UsageError(
            f"{type(module).__name__} cannot be used with other layers or settings.",
            "Something has replaced its forward method, as torch.compile does.",
            "Apply LoRAs, embeddings and backends first, and compile what comes out.",
        )
    made = type(module).__new__(type(module))
    # torch's tables of layers and hooks are the module's own; what is in them is shared
    own = {k: v.copy() if type(v) in _OWN_TYPES else v for k, v in vars(module).items()}
    own.pop("_compiled_call_impl", None)  # nn.Module.compile's, which runs the original
    vars(made).update({**own, **attributes})
    return made


def _at(network: nn.Module, name: str) -> nn.Module | Tensor:
    """The module, parameter or buffer of a dotted name."""
    if not name:
        return network
    owner, _, last = name.rpartition(".")
    found = getattr(network.get_submodule(owner), last)
    assert isinstance(found, nn.Module | Tensor), f"{name} is a {type(found).__name__}"
    return found
