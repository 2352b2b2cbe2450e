"""How a layer of the step graph reads and writes the ring: forms `portable` and `in_place`
(onnx_sparse.py has the third).

    portable   the ring is read only, every slot of it, under a mask; fresh keys and values are outputs, and the
               host writes them into the frame's slot
    in_place   TensorScatter writes fresh keys and values into the ring, `Attention` reads it: opset 24. Ring in
               and ring out are meant to be one buffer (TensorRT's KV-cache update demands it)

In `portable` the scores of the ring, of sinks and of fresh keys are computed apart and joined (T x keys numbers
instead of keys x D), so the ring is never copied inside the graph; a sink's turned keys replace only their columns
of the scores. Letters: B batch, S slots, T tokens, Tp padded tokens, H heads, D head size.
"""

from __future__ import annotations

from onnx import TensorProto

from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.engines.onnx_layers import Graph, rotary_factors, rotate


class Portable:
    """Inputs that all layers share (rotations and mask), and the attention of one layer."""

    form = "portable"

    def __init__(self, g: Graph, spec: WorldSpec, batch: int) -> None:
        self.g, self.spec, self.batch = g, spec, batch
        d, self.sinks = spec.dynamics, spec.memory.sink_frames
        self.ring_tokens = spec.memory.slots * spec.tokens_padded
        self.sink_tokens = self.sinks * spec.tokens_padded
        self.ring_shape = (batch, d.heads, self.ring_tokens, d.head_size)
        self.fresh_shape = (batch, d.heads, spec.tokens, d.head_size)
        self.kept: list[tuple[str, str, tuple[int, ...]]] = []
        pairs = d.head_size // 2
        cos, sin = (g.input(name, (batch, spec.tokens, pairs)) for name in ("cos", "sin"))
        self.declare()
        self.turn = rotary_factors(g, "rotation", cos, sin, 1, repeat=2)
        if self.sinks:
            store = [g.input(name, (batch, spec.tokens, pairs)) for name in ("store_cos", "store_sin")]
            sink = [g.input(name, (batch, self.sinks, pairs)) for name in ("sink_cos", "sink_sin")]
            self.store = rotary_factors(g, "store_rotation", store[0], store[1], 1)
            cos, sin = rotary_factors(g, "sink_rotation", sink[0], sink[1], 1)
            shape = (batch, 1, self.sinks, 1, 2 * pairs)
            self.sink = (g.reshape("sink_rotation.cos.frames", cos, shape),
                         g.reshape("sink_rotation.sin.frames", sin, shape))

    def declare(self) -> None:
        """Inputs of this form, before those of the sinks."""
        self.mask = self.g.input("mask", (self.batch, 1, self.spec.tokens, self.ring_tokens + self.spec.tokens))

    def attend(self, layer: int, query: str, key: str, stored: str, value: str) -> str:
        """query, key, stored (the key as it is kept), value: (B, H, T, D) -> (B, H, T, D) float32."""
        g, name = self.g, f"blocks.{layer}.attention"
        ring_key, ring_value = self.ring(layer)
        parts = [self.scores(f"{name}.scores.ring", query, ring_key)]
        if self.sinks:
            turned = self.turned_sinks(name, ring_key)
            rest = g.slice(f"{name}.scores.past", parts[0], [self.sink_tokens], [self.ring_tokens], [3])
            parts = [self.scores(f"{name}.scores.sinks", query, turned), rest]
        parts.append(self.scores(f"{name}.scores.fresh", query, key))
        shares = self.softmax(name, parts, self.mask)
        past, own = g.split(f"{name}.shares", shares, [self.ring_tokens, self.spec.tokens], -1)
        self.keep(layer, stored, value)
        mixed = g.node("Add", f"{name}.mixed", g.node("MatMul", f"{name}.mixed.ring", past, ring_value),
                       g.node("MatMul", f"{name}.mixed.fresh", own, value))
        return g.full(f"{name}.mixed", mixed)

    def ring(self, layer: int) -> tuple[str, str]:
        """The ring of a layer, as inputs of the base type."""
        kind = self.g.precision.tensor_type
        return (self.g.input(f"key_{layer}", self.ring_shape, kind),
                self.g.input(f"value_{layer}", self.ring_shape, kind))

    def keep(self, layer: int, stored: str, value: str) -> None:
        """Take note of fresh keys and values: they become outputs once all layers are there."""
        self.kept += [(f"new_key_{layer}", stored, self.fresh_shape), (f"new_value_{layer}", value, self.fresh_shape)]

    def outputs(self) -> None:
        """Declare what was kept."""
        for name, tensor, shape in self.kept:
            self.g.output(name, tensor, shape, self.g.precision.tensor_type)

    def turned_sinks(self, name: str, ring_key: str) -> str:
        """(B, H, sinks Tp, D): the sinks' keys turned to their times at this pass."""
        g, d = self.g, self.spec.dynamics
        shape = (self.batch, d.heads, self.sinks, self.spec.tokens_padded, d.head_size)
        old = g.reshape(f"{name}.sinks.frames", g.slice(f"{name}.sinks", ring_key, [0], [self.sink_tokens], [2]), shape)
        turned = rotate(g, f"{name}.sinks.rotated", g.full(f"{name}.sinks", old), d.head_size, self.sink)
        return g.reshape(f"{name}.sinks.keys", g.low(f"{name}.sinks", turned),
                         (self.batch, d.heads, self.sink_tokens, d.head_size))

    def scores(self, name: str, query: str, key: str, order: tuple[int, ...] = (0, 1, 3, 2)) -> str:
        """query (..., T, D) times key (..., n, D) transposed -> (..., T, n) float32."""
        product = self.g.node("MatMul", name, query, self.g.transpose(f"{name}.keys", key, order))
        return self.g.full(name, product)

    def softmax(self, name: str, parts: list[str], mask: str) -> str:
        """Parts of the scores, joined and masked -> shares in the base type."""
        joined = self.g.node("Concat", f"{name}.scores", *parts, axis=-1)
        shares = self.g.node("Softmax", f"{name}.softmax", self.g.node("Add", f"{name}.masked", joined, mask), axis=-1)
        return self.g.low(f"{name}.softmax", shares)


class InPlace(Portable):
    """Fresh keys first into the ring, then attention over all of it. With sinks their turned keys are joined with
    the rest, which costs a copy of the keys."""

    form = "in_place"

    def declare(self) -> None:
        self.g.opset = 24
        self.mask = self.g.input("mask", (self.batch, 1, self.spec.tokens, self.ring_tokens), TensorProto.BOOL)
        self.first = self.g.input("write_index", (self.batch,), TensorProto.INT64)

    def attend(self, layer: int, query: str, key: str, stored: str, value: str) -> str:
        g, name = self.g, f"blocks.{layer}.attention"
        ring = [g.node("TensorScatter", f"{name}.{part}.ring", old, fresh, self.first, axis=-2, mode="linear")
                for part, old, fresh in zip(("keys", "values"), self.ring(layer), (stored, value), strict=True)]
        keys = ring[0]
        if self.sinks:
            rest = g.slice(f"{name}.keys.rest", keys, [self.sink_tokens], [self.ring_tokens], [2])
            keys = g.node("Concat", f"{name}.keys.turned", self.turned_sinks(name, keys), rest, axis=2)
        self.kept += [(f"ring_{part}_{layer}", tensor, self.ring_shape)
                      for part, tensor in zip(("key", "value"), ring, strict=True)]
        return g.full(f"{name}.mixed", g.node("Attention", f"{name}.mixed", query, keys, ring[1], self.mask, scale=1.0))
