"""`noise.normal` as one Triton kernel: a program makes 4 * BLOCK normals of one player.

    counter = (element / 4, frame low, frame high, pass)        ten rounds, then two Box-Muller pairs a counter

Words are kept in int64 and masked to 32 bits, as in noise.py: a product wraps modulo 2^64, and what lies above its
low word comes out right after a mask, signed or not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128


@triton.jit
def _normal(seeds, frames, out, count, index, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    player = tl.program_id(0)
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    low = 0xFFFFFFFF
    seed, frame = tl.load(seeds + player), tl.load(frames + player)
    c0 = block.to(tl.int64)
    c1, c2 = (frame & low) + c0 * 0, ((frame >> 32) & low) + c0 * 0
    c3 = index + c0 * 0
    k0, k1 = seed & low, (seed >> 32) & low
    for _ in tl.static_range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((p1 >> 32) & low) ^ c1 ^ k0
        c2 = ((p0 >> 32) & low) ^ c3 ^ k1
        c1 = p1 & low
        c3 = p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    unit: tl.constexpr = 5.9604644775390625e-08  # 2^-24
    turn: tl.constexpr = 3.7450702829239286e-07  # 2 pi 2^-24
    first = player * count + block * 4
    r0 = tl.sqrt(-2.0 * tl.log(((c0 >> 8).to(tl.float64) + 1.0) * unit))
    a0 = (c1 >> 8).to(tl.float64) * turn
    r1 = tl.sqrt(-2.0 * tl.log(((c2 >> 8).to(tl.float64) + 1.0) * unit))
    a1 = (c3 >> 8).to(tl.float64) * turn
    tl.store(out + first, (r0 * tl.cos(a0)).to(tl.float32), mask=block * 4 < count)
    tl.store(out + first + 1, (r0 * tl.sin(a0)).to(tl.float32), mask=block * 4 + 1 < count)
    tl.store(out + first + 2, (r1 * tl.cos(a1)).to(tl.float32), mask=block * 4 + 2 < count)
    tl.store(out + first + 3, (r1 * tl.sin(a1)).to(tl.float32), mask=block * 4 + 3 < count)


def normal(seeds: Tensor, frames: Tensor, count: int, index: int = 0) -> Tensor:
    """As `noise.normal`."""
    out = torch.empty(len(seeds), count, dtype=torch.float32, device=seeds.device)
    grid = (len(seeds), triton.cdiv(-(-count // 4), BLOCK))
    _normal[grid](seeds, frames, out, count, index, BLOCK)
    return out
