"""Form `plugin` of the step graph, for plain TensorRT alone: the frame's slot is written in place, and attention is the
block-sparse plugin (trt_plugin.py), which reads the blocks that the plan lists and no others.

Inputs are those of form `in_place`, with the lists of form `sparse` in place of its mask. Base type bfloat16.
"""

from __future__ import annotations

from onnx import TensorProto

from dreamloop.models.core.errors import EngineError
from dreamloop.runtime.engines import trt_plugin
from dreamloop.runtime.engines.onnx_attention import InPlace


class Plugin(InPlace):
    """One node of the plugin per layer. Queries are not scaled beforehand: the kernel does that."""

    form = "plugin"
    scaled = False
    base = "bf16"

    def declare(self) -> None:
        g = self.g
        if g.precision.base != self.base:
            raise EngineError(f"form plugin is for precision {self.base}, not {g.precision.name}")
        g.opset = 24
        g.domains[trt_plugin.NAMESPACE] = 1
        self.sizes = trt_plugin.Sizes.of(self.spec, self.batch)
        shapes = self.sizes.shapes(self.batch)
        self.lists = [g.input(name, shapes[name], TensorProto.INT32)
                      for name in ("block_index", "block_count", "block_length")]
        self.first = g.input("write_index", (self.batch,), TensorProto.INT64)

    def attend(self, layer: int, query: str, key: str, stored: str, value: str) -> str:
        g, name, d = self.g, f"blocks.{layer}.attention", self.spec.dynamics
        keys, values = self.written(layer, stored, value)
        turned = self.turned_sinks(name, keys) if self.sinks else keys
        rows = g.transpose(f"{name}.query.rows", query, (0, 2, 1, 3))
        mixed = g.node(trt_plugin.NAME, f"{name}.attended", rows, keys, values, turned, *self.lists,
                       domain=trt_plugin.NAMESPACE, plugin_namespace=trt_plugin.NAMESPACE, plugin_version="1", aot=1,
                       sizes=self.sizes.numbers(), players=self.batch)
        g.known(mixed, (self.batch, self.spec.tokens, d.heads, d.head_size), g.precision.tensor_type)
        return g.full(f"{name}.mixed", g.transpose(f"{name}.mixed", mixed, (0, 2, 1, 3)))
