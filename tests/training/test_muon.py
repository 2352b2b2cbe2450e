"""Muon in float32 against torch's own in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dreamloop.models.training.muon import Muon, orthogonalised


def moved(dtype: torch.dtype, shape: tuple[int, int]) -> tuple[torch.Tensor, Muon]:
    """A matrix after three steps, and what moved it; one of its neighbours has no gradient."""
    random = torch.Generator().manual_seed(0)
    matrix, idle = (nn.Parameter(torch.randn(shape, generator=random)) for _ in range(2))
    optimizer = Muon([matrix, idle], lr=0.1, weight_decay=0.01, dtype=dtype)
    before = idle.detach().clone()
    for _ in range(3):
        matrix.grad = torch.randn(shape, generator=random)
        optimizer.step()
    assert torch.equal(idle, before)
    return matrix.detach(), optimizer


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_float32_moves_as_torch_does_in_bfloat16(shape: tuple[int, int]) -> None:
    ours, theirs = (moved(dtype, shape)[0] for dtype in (torch.float32, torch.bfloat16))
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # a step as Muon makes it, not a small one that would be near whatever it is
    assert (theirs - start).norm() > 0.3
    assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()


def test_state_is_that_of_torch() -> None:
    of_float32 = moved(torch.float32, (8, 24))[1].state_dict()
    optimizer = torch.optim.Muon([nn.Parameter(torch.zeros(8, 24)), nn.Parameter(torch.zeros(8, 24))])
    optimizer.load_state_dict(of_float32)
    assert optimizer.state_dict()["state"].keys() == of_float32["state"].keys() == {0}


def test_singular_values_are_near_one() -> None:
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 12)[:, None]
    singular = torch.linalg.svdvals(orthogonalised(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert float(singular.min()) > 0.4 and float(singular.max()) < 1.4
