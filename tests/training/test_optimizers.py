"""Which weights each optimizer takes; Muon updates a convolution as the matrix that it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdcore.training.optimizers import (
    NEWTON_SCHULZ_STEPS,
    Muon,
    make_optimizers,
    weight_matrices,
)


def test_it_takes_the_matrices_of_layers_and_no_embeddings_or_narrow_ends() -> None:
    module = nn.Sequential(
        nn.Embedding(100, 64), nn.Conv2d(4, 64, 3), nn.Conv2d(64, 32, 3), nn.Linear(64, 32)
    )
    module.append(nn.Linear(32, 32)).append(nn.LayerNorm(32))
    module[3].weight.requires_grad_(False)
    assert [id(w) for w in weight_matrices(module)] == [id(module[i].weight) for i in (2, 4)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_moves_as_its_matrix_does_under_torchs_own(
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    weight = nn.Conv2d(32, 48, 3).to(memory_format=layout).weight
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    ours = Muon([weight], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon(
        [matrix],
        lr=0.01,
        weight_decay=0.1,
        ns_steps=NEWTON_SCHULZ_STEPS,
        adjust_lr_fn="match_rms_adamw",
    )
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        matrix.grad = weight.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    assert torch.allclose(weight.detach().flatten(1), matrix, atol=2e-3)


@pytest.mark.parametrize("shape", [(64, 256), (32, 288)])
def test_every_direction_of_a_matrix_moves_alike(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    stretched = torch.randn(shape) * torch.logspace(0, -1.2, shape[0])[:, None]
    weight.grad = stretched.clone()
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    before, after = (torch.linalg.svdvals(m) for m in (stretched, weight.detach()))
    assert before[0] / before[-1] > 10
    assert after[0] / after[-1] < 2.5


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_decay_and_each_parameter_has_one_optimizer(kind: str) -> None:
    module = nn.Sequential(nn.Linear(4, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 2))
    module[2].bias.requires_grad_(False)
    made = make_optimizers(module, kind=kind, learning_rate=0.1, weight_decay=0.1)
    decayed, plain = made["optimizer"].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in plain["params"]} == {1}
    taken = len(decayed["params"]) + len(plain["params"])
    assert taken == (7 if kind == "adamw" else 6)  # the frozen bias is in neither
    assert (kind == "muon") == ("muon" in made)
