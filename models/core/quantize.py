"""Storage of weights in six bits or so, read back to float32: a fifth of its size.

A tensor with two or more dimensions and enough elements is stored as `name`, the bytes of its int8 codes, deflated
by their frequencies alone, and `name.scale`, (out,) float32, one per output channel: value = code * scale. The
channel's largest weight is a whole number of steps, 127 at most, so chosen that a step is a sixteenth of the root mean
square. Weights are spread about like a bell: their codes take six bits each on the mean, and large ones still have a
code. Small tensors stay float32. In worlds made before, `name` is int8 of the tensor's own shape.

This is a storage format; what precision an engine computes in is the engine's affair.
"""

from __future__ import annotations

import zlib

import numpy as np

MIN_ELEMENTS = 2048
SCALE = ".scale"
STEPS = 16  # in the root mean square of a channel
LARGEST = 127


def is_quantized(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is stored as codes."""
    return len(shape) >= 2 and int(np.prod(shape)) >= MIN_ELEMENTS


def most_bytes(shape: tuple[int, ...]) -> int:
    """No codes of a tensor of this shape take more when they are deflated."""
    count = int(np.prod(shape, dtype=object))
    return count + count // 1000 + 64


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(out, ...) float -> int8 of the same shape and scales (out,) float32; |error| <= scale / 2. What is on such a
    grid already stays what it is: a world may be saved many times."""
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(flat).max(axis=1, keepdims=True)
    mean = np.sqrt(np.square(flat / np.where(largest > 0, largest, 1)).mean(axis=1, keepdims=True))
    wanted = np.rint(STEPS / np.where(mean > 0, mean, 1))
    chosen, scales = np.zeros(flat.shape), np.zeros(largest.shape, np.float32)
    for off in (0, -1, 1):  # the root mean square of what was on a grid is a little another
        scale = (largest / np.clip(wanted + off, 1, LARGEST)).astype(np.float32)
        scale = np.where(scale > 0, scale, np.float32(1))
        steps = flat / scale
        codes = np.clip(np.rint(steps), -LARGEST, LARGEST)
        taken = np.abs(steps - codes).max(axis=1, keepdims=True) < 1e-3 if off else scale > 0
        chosen, scales = np.where(taken, codes, chosen), np.where(taken, scale, scales)
    return chosen.astype(np.int8).reshape(weight.shape), scales[:, 0]


def dequantize(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Inverse of `quantize` up to rounding: float32 of the codes' shape."""
    return codes.astype(np.float32) * scale.reshape(-1, *[1] * (codes.ndim - 1))


def deflate(codes: np.ndarray) -> np.ndarray:
    """Int8 codes of any shape -> (bytes,) uint8, a zlib stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(packer.compress(np.ascontiguousarray(codes).tobytes()) + packer.flush(), np.uint8)


def inflate(stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `deflate`: int8 of `shape`. Never takes more memory than that; raises `ValueError` where the stream
    is damaged or holds another number of codes."""
    count = int(np.prod(shape))
    unpacker = zlib.decompressobj()
    try:
        codes = unpacker.decompress(stored.tobytes(), count)
        more = unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(f"holds no deflated codes: {error}") from error
    if len(codes) != count or more or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"does not hold {count} deflated codes")
    return np.frombuffer(codes, np.int8).reshape(shape)
