"""Precisions of a graph: in what its products are computed, and how their weights are stored.

    fp32, fp16, bf16     everything in float32, or products, attention, ring and autoencoder in 16 bits
    int8, fp8            the blocks' products with quantised weights and activations (Q/DQ nodes)
    int4                 the blocks' products with quantised weights alone, 32 inputs to a scale
    int8-fp16 and so on  the same, with float16 where there is float32 otherwise

Sums over the width, norms, rotations and softmax stay in float32 in every one of them, and so do the
latents and what the host hands in. Weights have one scale per output channel (int4: per 32 inputs of
one), activations one scale per product, from calibration (onnx_calibrate.py). All are symmetric. Inputs
of a block's last product differ most in size, so they are smoothed first.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import TensorProto

from dreamloop.models.core.errors import EngineError

INT4_INPUTS = 32  # inputs that share a scale
ACTIVATION_PRODUCTS = ("int8", "fp8")
SMOOTHED = ".mlp.down"  # the product whose inputs share a scale worst: of doom-arena's error in int8 it made 0.9
SMOOTHING = 0.8  # how much of the difference in size the weights take
TINY = 1e-5  # of a size that a scale is made from


@dataclass(frozen=True)
class Precision:
    """base: fp32, fp16 or bf16; products: of the blocks, like the base or int8, fp8, int4."""

    name: str
    base: str
    products: str

    @property
    def dtype(self) -> np.dtype:
        """numpy's type of the base."""
        return np.dtype(BASES[self.base][0])

    @property
    def tensor_type(self) -> int:
        """ONNX's type of the base."""
        return BASES[self.base][1]

    @property
    def is_float32(self) -> bool:
        return self.base == "fp32"

    @property
    def calibrated(self) -> bool:
        """Whether activations are quantised too, with scales that a calibration gives."""
        return self.products in ACTIVATION_PRODUCTS


BASES = {"fp32": (np.float32, TensorProto.FLOAT), "fp16": (np.float16, TensorProto.FLOAT16),
         "bf16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16)}
LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
STORED = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn, "int4": ml_dtypes.int4}
PRECISIONS = {p.name: p for p in (
    *(Precision(base, base, base) for base in BASES),
    *(Precision(f"{products}{suffix}", base, products)
      for base, suffix in (("fp32", ""), ("fp16", "-fp16")) for products in LARGEST))}


def precision_of(name: str) -> Precision:
    """The precision called `name`; raises `EngineError` that lists the known ones."""
    if name not in PRECISIONS:
        raise EngineError(f"ONNX graphs know precision {', '.join(PRECISIONS)}, not {str(name)[:40]!r}")
    return PRECISIONS[name]


def smoothing(largest: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What each input of a product is divided by, and its weights multiplied with: inputs that grow large then leave
    more of the one scale to the others. largest: (in,) of the inputs; weight: (in, out) -> (in,) float32.
    Source: SmoothQuant (Xiao et al. 2022)."""
    sizes, weights = np.maximum(largest, TINY), np.maximum(np.abs(weight).max(axis=1), TINY)
    divisor = sizes**SMOOTHING / weights ** (1 - SMOOTHING)
    return (divisor / divisor.max()).astype(np.float32)


def quantized(weight: np.ndarray, products: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(in, out) float32 -> stored values of the same shape and scales: (out,), or (in / 32, out) for int4.
    None where int4 does not divide the inputs: the product then stays in the base."""
    largest, kind = LARGEST[products], STORED[products]
    inputs, outputs = weight.shape
    if products == "int4":
        if inputs % INT4_INPUTS:
            return None
        groups = weight.reshape(-1, INT4_INPUTS, outputs)
    else:
        groups = weight[None]
    scale = np.abs(groups).max(axis=1) / largest
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    values = groups / scale[:, None]
    if products != "fp8":
        values = np.clip(np.rint(values), -largest, largest)
    stored = values.reshape(inputs, outputs).astype(kind)
    return stored, scale if products == "int4" else scale[0]
