"""ONNX Runtime with its own dynamic int8, for `dreamloop bench` to compare with; nothing plays on it.

The step graph's matrix products are quantised by ONNX Runtime's tool: weights per channel, activations anew at each
call. Convolutions stay float32: its int8 convolution is slower than the float32 one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.onnx_engine import OnnxEngine


class OnnxInt8Engine(OnnxEngine):
    """`OnnxEngine` over quantised graphs, which are made anew and not cached."""

    def __init__(self, world: World, threads: int | None = None) -> None:
        super().__init__(world, "fp32", threads)
        self.precision = "int8"
        build = self.load_or_build

        def load_or_build(world: World, kind: str, batch: int, form: str = "portable", precision: str = "") -> bytes:
            return quantized(build(world, kind, batch, form, "fp32"))

        self.load_or_build = load_or_build


def quantized(model: bytes) -> bytes:
    """A serialised model with dynamic int8 in place of its matrix products with constant weights."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise EngineError(f"onnxruntime's quantisation cannot be imported: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model)
        quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], per_channel=True,
                         weight_type=QuantType.QInt8)
        return target.read_bytes()
