"""Kernels over rows, interpreted: norm and modulation, gate and residual, GELU, with and without eight bits."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from cases import max_error, random

from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import Quantise

pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    from dreamloop.runtime.gpu import fused
    return fused


def strided(b: int, t: int, w: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A view with gaps between players and tokens."""
    return random(b + 1, t + 2, w + 3, seed=seed, dtype=dtype)[1:, 1:-1, 2:-1]


@pytest.mark.parametrize(("b", "t", "w"), [(1, 1, 8), (2, 3, 17), (3, 2, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_match_the_formula_in_float64(fused: ModuleType, b: int, t: int, w: int, dtype: torch.dtype) -> None:
    x, y = strided(b, t, w, dtype), strided(b, t, w, dtype, 1)
    modulation = random(b, 6, w, seed=2, dtype=dtype)
    shift, scale, gate = modulation[:, 0], modulation[:, 1], modulation[:, 4]
    doubles = [a.double() for a in (x, y, shift, scale, gate)]
    contiguous = x.contiguous()
    for found, usual, expected in (
            (fused.modulated_norm(x, shift, scale), plain.modulated_norm(x, shift, scale),
             plain.modulated_norm(doubles[0], doubles[2], doubles[3])),
            (fused.gate_residual(x, y, gate), plain.gate_residual(x, y, gate),
             plain.gate_residual(doubles[0], doubles[1], doubles[4])),
            (fused.gelu(contiguous), plain.gelu(contiguous), plain.gelu(doubles[0]))):
        assert found.dtype == dtype and found.is_contiguous()
        assert max_error(found, expected) <= 2 * max_error(usual, expected) + 1e-6


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_codes_are_those_of_torch(fused: ModuleType, dtype: torch.dtype) -> None:
    """Equal but where the last bit of a sum decides between two codes; what is beyond the range is clamped."""
    quantise = Quantise(torch.tensor([0.02 if dtype == torch.int8 else 0.006]), dtype)
    x, modulation = 3 * random(1, 5, 200), random(1, 6, 200, seed=1)
    for found, expected in ((fused.modulated_norm(x, modulation[:, 0], modulation[:, 1], quantise),
                             plain.modulated_norm(x, modulation[:, 0], modulation[:, 1], quantise)),
                            (fused.gelu(x, quantise), plain.gelu(x, quantise))):
        assert found.dtype == dtype
        step = (found.float() - expected.float()).abs() / expected.float().abs().clamp_min(8.0)
        assert float((step > 0).float().mean()) <= 0.01 and float(step.max()) <= 0.126
    assert float(found.float().max()) == (127.0 if dtype == torch.int8 else 448.0)


def test_every_float8_code_is_reached_and_halves_go_to_the_even_one(fused: ModuleType) -> None:
    """Codes of float8_e4m3fn, and the middles between them: tiny values and carries included."""
    positive = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = torch.cat([positive, (positive[1:] + positive[:-1]) / 2, positive * 1.01])
    values = torch.cat([values, -values])
    zero = torch.zeros(1, len(values))
    found = fused.modulated_norm(zero[:, None], values[None], zero, Quantise(torch.ones(1), torch.float8_e4m3fn))
    assert torch.equal(found.float().flatten(), values.clamp(-448, 448).to(torch.float8_e4m3fn).float())
