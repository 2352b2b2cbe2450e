"""Per-channel int8 storage of weights: a quarter of float32, read back to float32.

A tensor with two or more dimensions and enough elements is stored as `name` (int8) and
`name.scale` (float32, one per output channel): value = int8 * scale. Small tensors stay float32.
This is a storage format; what precision an engine computes in is the engine's affair.
"""

from __future__ import annotations

import numpy as np

MIN_ELEMENTS = 2048
SCALE = ".scale"


def is_quantized(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is stored as int8."""
    return len(shape) >= 2 and int(np.prod(shape)) >= MIN_ELEMENTS


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(out, ...) float -> int8 of the same shape and scales (out,) float32; |error| <= scale / 2."""
    flat = weight.reshape(weight.shape[0], -1).astype(np.float32)
    scale = np.abs(flat).max(axis=1) / 127.0
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return np.clip(np.rint(flat / scale[:, None]), -127, 127).astype(np.int8).reshape(weight.shape), scale


def dequantize(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Inverse of `quantize` up to rounding: float32 of the stored shape."""
    return stored.astype(np.float32) * scale.reshape(-1, *[1] * (stored.ndim - 1))
