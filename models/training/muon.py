"""Muon for matrices, in numbers that the device can multiply.

torch's own orthogonalises in bfloat16, always: a CPU without products of it (run.multiplies_bfloat16) spent more time
there than on the batch. Here the same iteration runs in float32 on such a device; elsewhere torch's own does.

Source: Jordan et al. 2024 (Muon: momentum, orthogonalised by five Newton-Schulz steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """dtype: of the orthogonalisation. State and settings are torch's own, so a checkpoint of either is one of both."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self.dtype == torch.bfloat16:
            return super().step(closure)
        assert closure is None, "no stage needs its loss twice"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum = state["momentum_buffer"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"])
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalised(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"]),
                               alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
        return None


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """U S' V^T of the matrix U S V^T, S' between 0.5 and 1.5, in the matrix's own type."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
