"""The noise of a frame as a pure function of (seed, frame, pass): Philox4x32-10 and Box-Muller.

    counter = (element / 4, frame low word, frame high word, pass)      key = (seed low, seed high)

Each counter gives four words w0..w3; two words give two normals:

    u1 = (w0 >> 8 + 1) / 2^24  in (0, 1]        u2 = (w1 >> 8) / 2^24  in [0, 1)
    n0 = sqrt(-2 ln u1) cos(2 pi u2)            n1 = sqrt(-2 ln u1) sin(2 pi u2)

evaluated in float64 and rounded once to float32, so that the last bit does not hang on a
machine's float32 logarithm. Noise is an input of every engine: replay, rewind and branch follow.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123).
"""

from __future__ import annotations

import math

import numpy as np

_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox. counter: (N, 4) uint32; key: two 32-bit words; returns (N, 4) uint32."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0, c2 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), (p0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def normal(seed: int, frame: int, count: int, index: int = 0) -> np.ndarray:
    """`count` standard normals of one pass of one frame, (count,) float32.

    seed: 0 <= seed < 2^64; frame: 0 <= frame < 2^64; index: which pass of the frame (0 for the first).
    """
    blocks = -(-count // 4)
    counter = np.empty((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks, dtype=np.uint32)
    counter[:, 1] = frame & 0xFFFFFFFF
    counter[:, 2] = frame >> 32
    counter[:, 3] = index
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)) >> np.uint32(8)
    radius = np.sqrt(-2.0 * np.log((words[:, 0::2].astype(np.float64) + 1.0) * 2.0**-24))
    angle = words[:, 1::2].astype(np.float64) * (2.0 * math.pi * 2.0**-24)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return pairs.reshape(-1)[:count].astype(np.float32)
