"""Views of networks: what is shared, what is not, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sdcore.errors import UsageError
from sdcore.views import twin, view


class Block(nn.Module):
    """Two branches, and a layer that stands in both."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(2, 2)
        self.first = nn.Sequential(nn.Linear(2, 2), shared)
        self.second = nn.ModuleList([nn.Linear(2, 2), shared])
        self.register_buffer("offset", torch.ones(2))
        self.note = ["kept"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second[1](self.second[0](x)) + self.first(x) + self.offset


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def test_only_the_way_to_what_is_replaced_is_new(block):
    layer, x = nn.Linear(2, 2), torch.randn(3, 2)
    expected, before = block(x), dict(block.named_modules())
    other = view(block, {"first.0": layer})
    assert type(other) is Block and other is not block and other.first is not block.first
    assert other.first[0] is layer and other.first[1] is block.first[1]
    assert (
        other.second is block.second and other.offset is block.offset and other.note is block.note
    )
    torch.testing.assert_close(
        other(x) - block(x), (layer(x) - block.first[0](x)) @ block.first[1].weight.T
    )
    assert dict(block.named_modules()) == before and torch.equal(block(x), expected)


def test_a_weight_or_a_buffer_alone(block):
    weight = nn.Parameter(torch.zeros(2, 2))
    other = view(block, {"second.0.weight": weight, "offset": torch.zeros(2)})
    assert other.second[0].weight is weight and other.second[0].bias is block.second[0].bias
    assert block.second[0].weight is not weight
    assert not other.offset.any() and block.offset.all()
    assert [name for name, _ in other.named_parameters()] == [
        name for name, _ in block.named_parameters()
    ]


def test_what_stands_at_two_places_is_replaced_at_both(block):
    layer = nn.Linear(2, 2)
    other = view(block, {"first.1": layer})
    assert other.first[1] is layer and other.second[1] is layer
    weight = nn.Parameter(torch.zeros(2, 2))
    other = view(block, {"second.1.weight": weight})
    assert other.first[1] is other.second[1] and other.first[1].weight is weight


def test_nothing_replaced_is_the_network_itself(block):
    assert view(block, {}) is block
    assert view(block, {"": block.first}) is block.first


def test_a_view_of_a_view(block):
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    first = view(block, {"first.0": layers[0]})
    second = view(first, {"second.0": layers[1]})
    assert second.first is first.first and second.second[0] is layers[1]
    assert first.second is block.second


def test_what_is_attached_to_a_view_is_not_on_the_network(block):
    other = view(block, {"first.0": nn.Linear(2, 2)})
    other.register_forward_hook(lambda *_: torch.zeros(3, 2))
    other.extra = nn.Linear(2, 2)
    other.register_buffer("more", torch.ones(1))
    assert not other(torch.randn(3, 2)).any() and block(torch.randn(3, 2)).any()
    assert not hasattr(block, "extra") and not hasattr(block, "more")


def test_a_deep_copy_of_a_view_shares_nothing(block):
    own = copy.deepcopy(view(block, {"first.0": nn.Linear(2, 2)}))
    assert not {id(p) for p in own.parameters()} & {id(p) for p in block.parameters()}


def test_gradients_reach_the_shared_weights(block):
    view(block, {"first.0": nn.Linear(2, 2)})(torch.randn(3, 2)).sum().backward()
    assert block.second[0].weight.grad is not None and block.first[0].weight.grad is None


def test_what_was_compiled_is_not_run_in_place_of_the_view(block):
    def original(*_: object) -> torch.Tensor:
        raise AssertionError("the network that the view was made from ran")

    block._compiled_call_impl = original
    assert view(block, {"first.0": nn.Linear(2, 2)})(torch.randn(3, 2)).shape == (3, 2)


def test_a_forward_that_was_replaced_is_refused(block):
    block.first.forward = block.first.forward
    for name in ("first.0", "first.0.weight", "first.1"):
        with pytest.raises(UsageError, match="Sequential cannot be used with other layers"):
            view(block, {name: nn.Linear(2, 2)})
    assert view(block, {"second.0": nn.Linear(2, 2)}).first is block.first
    with pytest.raises(UsageError, match="compile what comes out"):
        twin(block.first)


def test_a_twin_has_other_attributes(block):
    other = twin(block, note=["other"])
    assert other.note == ["other"] and block.note == ["kept"] and other.first is block.first
