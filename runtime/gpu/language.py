"""What the Triton kernels share: rounding, quantising, rotation, and the way round the interpreter's faults.

Triton's interpreter (3.6, with NumPy 2.4 and up) cannot run a loop whose bound is not a constant, takes the bits of
bf16 operands of a dot for whole numbers, cuts floats off where the device rounds them, and loses the carry into the
exponent for eight bits. So where INTERPRETED is set, loops run to their constant bound with the rest masked off, dots
are made in float32 of the same rounded values, and rounding to nearest even is spelt out. Compiled kernels contain
none of it: INTERPRETED is a constant.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 -> dtype, to nearest even."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = bits.to(tl.float32, bitcast=True)
        if dtype == tl.float8e4nv:
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
            tiny = (x + 24576.0) - 24576.0  # below 2^-6 a step is 2^-9: that of float32 at 1.5 * 2^14
            x = tl.where(tl.abs(x) < 0.015625, tiny, bits.to(tl.float32, bitcast=True))
    return x.to(dtype)


@triton.jit
def coded(x, dtype: tl.constexpr):
    """x, already divided by its scale, clamped and rounded to int8 (halves upwards) or float8_e4m3fn."""
    if dtype == tl.int8:
        result = tl.floor(tl.minimum(tl.maximum(x, -127.0), 127.0) + 0.5).to(tl.int8)
    else:
        result = narrow(tl.minimum(tl.maximum(x, -448.0), 448.0), dtype)
    return result


@triton.jit
def finished(y, scale, dtype: tl.constexpr, QUANTISED: tl.constexpr):
    """float32 -> what is written: rounded, or divided by the static scale and coded."""
    if QUANTISED:
        result = coded(y / tl.load(scale), dtype)
    else:
        result = narrow(y, dtype)
    return result


@triton.jit
def product(a, b, sums):
    """sums + a b. bf16, float32 or eight bits; float32 or int32 sums."""
    if INTERPRETED:
        if a.dtype != tl.int8:
            a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc=sums, input_precision="ieee", out_dtype=sums.dtype)
