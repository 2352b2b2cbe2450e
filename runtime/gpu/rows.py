"""Triton kernels over rows of tokens: norm and modulation, gate and residual, GELU; each may end in eight bits.

    modulated_norm    y = x / sqrt(mean x^2 + 1e-6) (1 + scale) + shift       one program a token
    gate_residual     y = x + gate y                                          one program a token
    gelu              y = x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))        the tanh form, one program 1024 values

All three are bound by memory: a token is read once and written once, in registers in between. References: plain.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamloop.runtime.gpu.language import finished, narrow
from dreamloop.runtime.gpu.sizes import Quantise

CHUNK = 1024  # values of a program of gelu


@triton.jit
def modulated_norm_kernel(x, shift, scale, out, quantum, tokens, x_player, x_token, shift_player, scale_player,
                          WIDTH: tl.constexpr, BLOCK: tl.constexpr, QUANTISED: tl.constexpr):
    row = tl.program_id(0)
    player, token = (row // tokens).to(tl.int64), row % tokens
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + player * x_player + token * x_token + column, mask=inside, other=0.0).to(tl.float32)
    value = value / tl.sqrt(tl.sum(value * value, axis=0) / WIDTH + 1e-6)
    by = tl.load(scale + player * scale_player + column, mask=inside, other=0.0).to(tl.float32)
    plus = tl.load(shift + player * shift_player + column, mask=inside, other=0.0).to(tl.float32)
    result = finished(value * (1.0 + by) + plus, quantum, out.dtype.element_ty, QUANTISED)
    tl.store(out + row.to(tl.int64) * WIDTH + column, result, mask=inside)


@triton.jit
def gate_residual_kernel(x, y, gate, out, tokens, x_player, x_token, y_player, y_token, gate_player,
                         WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    player, token = (row // tokens).to(tl.int64), row % tokens
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    old = tl.load(x + player * x_player + token * x_token + column, mask=inside, other=0.0).to(tl.float32)
    new = tl.load(y + player * y_player + token * y_token + column, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(gate + player * gate_player + column, mask=inside, other=0.0).to(tl.float32)
    result = narrow(old + by * new, out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * WIDTH + column, result, mask=inside)


@triton.jit
def gelu_kernel(x, out, quantum, count, BLOCK: tl.constexpr, QUANTISED: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < count, other=0.0).to(tl.float32)
    inner = 1.5957691216057308 * (value + 0.044715 * value * value * value)
    result = finished(value * (1.0 / (1.0 + tl.exp(-inner))), quantum, out.dtype.element_ty, QUANTISED)
    tl.store(out + place, result, mask=place < count)


def _empty(like: Tensor, quantise: Quantise | None) -> Tensor:
    return torch.empty(like.shape, dtype=quantise.dtype if quantise else like.dtype, device=like.device)


def warps(block: int) -> int:
    """A thread holds about eight values of a row."""
    return max(1, min(8, block // 256))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, quantise: Quantise | None = None) -> Tensor:
    """rms_norm(x) (1 + scale) + shift. x: (B, T, W); shift, scale: (B, W)."""
    b, t, w = x.shape
    assert x.stride(2) == shift.stride(1) == scale.stride(1) == 1
    out, block = _empty(x, quantise), triton.next_power_of_2(w)
    modulated_norm_kernel[(b * t,)](x, shift, scale, out, quantise.scale if quantise else x, t, x.stride(0),
                                    x.stride(1), shift.stride(0), scale.stride(0), w, block, quantise is not None,
                                    num_warps=warps(block))
    return out


def gate_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate y. x, y: (B, T, W); gate: (B, W)."""
    b, t, w = x.shape
    assert x.stride(2) == y.stride(2) == gate.stride(1) == 1
    out, block = _empty(x, None), triton.next_power_of_2(w)
    gate_residual_kernel[(b * t,)](x, y, gate, out, t, x.stride(0), x.stride(1), y.stride(0), y.stride(1),
                                   gate.stride(0), w, block, num_warps=warps(block))
    return out


def gelu(x: Tensor, quantise: Quantise | None = None) -> Tensor:
    """GELU in its tanh form."""
    assert x.is_contiguous()
    out = _empty(x, quantise)
    gelu_kernel[(triton.cdiv(x.numel(), CHUNK),)](x, out, quantise.scale if quantise else x, x.numel(), CHUNK,
                                                  quantise is not None)
    return out
