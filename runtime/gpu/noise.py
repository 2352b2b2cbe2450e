"""The noise of models/core/noise.py, made on the device: the same Philox words, the same Box-Muller in float64.

    words    integer arithmetic: equal to those of the host, bit for bit
    normals  float64 functions of those words, rounded once; the device's logarithm and cosine may differ from the
             host's in the last bit of float64, which a rounding to float32 shows about once in 10^8 values

Plain torch spends some hundred small launches on it; `noise_kernel.py` does the same in one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLY = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def words(seeds: Tensor, frames: Tensor, count: int, index: int) -> Tensor:
    """Philox4x32-10 words of B players, (B, ceil(count / 4), 4) int64 in [0, 2^32).

    seeds, frames: (B,) int64 (a seed as the bits of its uint64); index: which pass of the frame.
    """
    blocks = torch.arange(-(-count // 4), device=seeds.device)
    c0 = blocks.expand(len(seeds), -1)
    c1, c2 = ((part & LOW)[:, None].expand_as(c0) for part in (frames, frames >> 32))
    c3 = torch.full_like(c0, index)
    k0, k1 = (seeds & LOW)[:, None], ((seeds >> 32) & LOW)[:, None]
    for _ in range(10):
        p0, p1 = c0 * MULTIPLY[0], c2 * MULTIPLY[1]  # wraps modulo 2^64, as unsigned products do
        c0, c2 = ((p1 >> 32) & LOW) ^ c1 ^ k0, ((p0 >> 32) & LOW) ^ c3 ^ k1
        c1, c3 = p1 & LOW, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return torch.stack([c0, c1, c2, c3], dim=-1)


def normal(seeds: Tensor, frames: Tensor, count: int, index: int = 0) -> Tensor:
    """`count` standard normals for each player, (B, count) float32; arguments as for `words`."""
    drawn = (words(seeds, frames, count, index) >> 8).double()
    radius = torch.sqrt(-2.0 * torch.log((drawn[..., 0::2] + 1.0) * 2.0**-24))
    angle = drawn[..., 1::2] * (2.0 * math.pi * 2.0**-24)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs.flatten(1)[:, :count].float()
