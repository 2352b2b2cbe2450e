"""Form `sparse` of the step graph: only the key blocks that the plan lists are gathered and read, by standard
operators, so every runtime really skips the others.

    inputs   block_index  int32 (B, H or 1, R, K)   the plan's lists (core/plan.py); block = slot * (Tp / N) + part
             block_count  int32 (B, H or 1, R)      places of each list that count
             block_length int32 (B, S * Tp / N)     written tokens of each block
             slot         int64 (B,)                the slot of the frame that is being made

The lists are the plan's own: the frame's own slot stands for its fresh keys, and sinks are read apart, turned; both
are masked where they were gathered from the ring. Letters as in onnx_attention.py; P blocks of a frame, R rows of
lists, K places of a list, N tokens of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from dreamloop.models.core import memory
from dreamloop.models.core.plan import build_plan
from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.engines.onnx_attention import Portable

MASKED = -1e9  # added to a score, leaves exactly 0 after the softmax


@dataclass(frozen=True)
class ListShape:
    """Sizes of the block lists that a sparse graph is built for: heads with lists of their own (or 1), rows (1 where
    all query blocks of a frame read the same), places of a list."""

    heads: int
    rows: int
    places: int


def list_shape(spec: WorldSpec) -> ListShape:
    """The sizes that hold every plan of a world: of its early frames and of every phase of its rings."""
    settled = memory.oldest_age(spec.memory) + spec.memory.sink_frames + 1
    phases = max(spec.memory.dilation, 1)
    frames = [*range(1, min(settled, 256) + 1), *range(settled, settled + phases + 1)]
    plans = [build_plan(spec, np.array([frame])) for frame in frames]
    same = all((p.block_index == p.block_index[:, :, :1]).all() and (p.block_count == p.block_count[:, :, :1]).all()
               for p in plans)
    return ListShape(plans[0].block_index.shape[1], 1 if same else spec.blocks_per_frame,
                     max(int(p.block_count.max()) for p in plans))


class Sparse(Portable):
    """Gathers the listed blocks. The lists are the plan's own: the frame's own slot stands for its fresh keys, and
    sinks are read apart, turned; both are masked where they were gathered from the ring."""

    form = "sparse"

    def declare(self) -> None:
        g, spec, batch, self.lists = self.g, self.spec, self.batch, list_shape(self.spec)
        lists, parts = self.lists, spec.blocks_per_frame
        stride = spec.tokens_padded // spec.block_tokens  # blocks of a slot
        self.blocks = spec.memory.slots * stride
        listed = (batch, lists.heads, lists.rows, lists.places)
        index = g.input("block_index", listed, TensorProto.INT32)
        count = g.input("block_count", listed[:3], TensorProto.INT32)
        length = g.input("block_length", (batch, self.blocks), TensorProto.INT32)
        slot = g.input("slot", (batch,), TensorProto.INT64)

        index = g.node("Cast", "lists.index", index, to=TensorProto.INT64)
        players = np.arange(batch)[:, None, None, None]
        heads = np.arange(spec.dynamics.heads)[:, None, None]
        self.index = g.node("Add", "lists.blocks", index, g.constant(
            "lists.first_block", (players * spec.dynamics.heads + heads) * self.blocks))
        flat = g.node("Add", "lists.of_players", index, g.constant("lists.first_of_player", players * self.blocks))
        length = g.reshape("lists.lengths", g.node("Cast", "lists.length", length, to=TensorProto.INT64),
                           (batch * self.blocks,))
        valid = g.node("Less", "lists.valid", g.constant("lists.places", np.arange(lists.places)),
                       g.reshape("lists.count", g.node("Cast", "lists.count.int64", count, to=TensorProto.INT64),
                                 (*listed[:3], 1)))
        own = g.node("Mul", "lists.own", g.reshape("lists.slot", slot, (batch, 1, 1, 1)),
                     g.constant("lists.stride", stride))
        own = g.node("Add", "lists.own_blocks", own, g.constant("lists.parts", np.arange(parts)))  # (B, 1, 1, P)
        named = g.reshape("lists.named", index, (*listed, 1))
        is_own = self.named_among("own", named, g.reshape("lists.own_columns", own, (batch, 1, 1, 1, parts)), valid)
        past = g.node("Not", "lists.not_own", self.any("own_place", is_own, -1))
        past = g.node("And", "lists.past", valid, past)
        sink_blocks = self.sinks * stride
        if sink_blocks:
            past = g.node("And", "lists.past_not_sink", past, g.node(
                "GreaterOrEqual", "lists.not_sink", index, g.constant("lists.sink_blocks", sink_blocks)))
        tokens = g.node("Less", "lists.tokens", g.constant("lists.block_tokens", np.arange(spec.block_tokens)),
                        g.reshape("lists.listed", g.node("Gather", "lists.listed_length", length, flat), (*listed, 1)))
        past = g.node("And", "lists.readable", g.reshape("lists.past_blocks", past, (*listed, 1)), tokens)
        masks = [self.number("past", past, (*listed[:3], 1, lists.places * spec.block_tokens))]
        masks.append(self.of_tokens("fresh", self.any("own_part", is_own, -2), parts, spec.tokens))
        if sink_blocks:
            columns = g.constant("lists.sinks", np.arange(sink_blocks))
            read = self.any("sink_part", self.named_among("sinks", named, columns, valid), -2)
            mine = self.any("own_sink", g.node("Equal", "lists.sink_is_own", g.reshape(
                "lists.own_rows", own, (batch, 1, 1, parts, 1)), columns), -2)
            read = g.node("And", "lists.old_sinks", read, g.node("Not", "lists.sink_not_own", mine))
            masks.insert(0, self.of_tokens("sinks", read, sink_blocks, sink_blocks * spec.block_tokens))
        self.mask = g.node("Concat", "mask", *masks, axis=-1)  # (B, heads or 1, R, 1, columns)

    def named_among(self, name: str, named: str, columns: str, valid: str) -> str:
        """(B, heads, R, K, columns) bool: the valid place K names the block of a column."""
        g, lists = self.g, self.lists
        valid = g.reshape(f"lists.{name}.valid", valid, (self.batch, lists.heads, lists.rows, lists.places, 1))
        return g.node("And", f"lists.{name}.found", g.node("Equal", f"lists.{name}.equal", named, columns), valid)

    def any(self, name: str, found: str, axis: int) -> str:
        """Whether one is true along an axis, which goes away."""
        g = self.g
        number = g.node("Cast", f"lists.{name}.number", found, to=TensorProto.FLOAT)
        most = g.node("ReduceMax", f"lists.{name}.most", number, g.constant(f"axes.{axis}", [axis]), keepdims=0)
        return g.node("Cast", f"lists.{name}", most, to=TensorProto.BOOL)

    def number(self, name: str, read: str, shape: tuple[int, ...]) -> str:
        """True -> 0, False -> MASKED, to be added to scores."""
        number = self.g.node("Cast", f"mask.{name}.read", read, to=TensorProto.FLOAT)
        number = self.g.node("Sub", f"mask.{name}.less_one", number, self.g.constant("one", 1.0))
        number = self.g.node("Mul", f"mask.{name}.number", number, self.g.constant("masked", -MASKED))
        return self.g.reshape(f"mask.{name}", number, shape)

    def of_tokens(self, name: str, read: str, blocks: int, tokens: int) -> str:
        """Blocks (B, heads, R, blocks) read -> mask of the `tokens` tokens that they hold; padding is not read."""
        spec = self.spec
        block = np.arange(tokens) // spec.block_tokens
        repeated = self.g.node("Gather", f"mask.{name}.tokens", read, self.g.constant(f"mask.{name}.block_of", block),
                               axis=3)
        if tokens == blocks * spec.block_tokens and spec.tokens != spec.tokens_padded:  # sinks, with their tails
            whole = np.arange(tokens) % spec.tokens_padded < spec.tokens
            self.g.typed(f"mask.{name}.whole", whole)
            repeated = self.g.node("And", f"mask.{name}.written", repeated, f"mask.{name}.whole")
        return self.number(name, repeated, (self.batch, self.lists.heads, self.lists.rows, 1, tokens))

    def attend(self, layer: int, query: str, key: str, stored: str, value: str) -> str:
        g, spec, name = self.g, self.spec, f"blocks.{layer}.attention"
        d, rows, columns = spec.dynamics, self.lists.rows, self.lists.places * spec.block_tokens
        tokens = spec.tokens if rows == 1 else spec.block_tokens  # of a row of queries
        if rows * tokens != spec.tokens:
            ends = g.constant("query.ends", [0, 0, 0, 0, 0, 0, rows * tokens - spec.tokens, 0])
            query = g.node("Pad", f"{name}.query.padded", query, ends)
        by_row = (self.batch, d.heads, rows, tokens, d.head_size)
        of_rows = g.reshape(f"{name}.query.rows", query, by_row)
        gathered = []
        ring_key, ring_value = self.ring(layer)
        for part, ring in (("keys", ring_key), ("values", ring_value)):
            source = g.reshape(f"{name}.{part}.blocks", ring,
                               (self.batch * d.heads * self.blocks, spec.block_tokens, d.head_size))
            found = g.node("Gather", f"{name}.{part}.gathered", source, self.index, axis=0)
            gathered.append(g.reshape(f"{name}.{part}.listed", found, (*by_row[:3], columns, d.head_size)))
        apart = [(f"{name}.scores.fresh", key, spec.tokens)]
        parts = [self.scores(f"{name}.scores.listed", of_rows, gathered[0], (0, 1, 2, 4, 3))]
        if self.sinks:
            apart.insert(0, (f"{name}.scores.sinks", self.turned_sinks(name, ring_key), self.sink_tokens))
        scored = [g.reshape(f"{label}.rows", self.scores(label, query, keys), (*by_row[:4], count))
                  for label, keys, count in apart]
        parts = [*scored[:-1], *parts, scored[-1]]
        sizes = [*([self.sink_tokens] if self.sinks else []), columns, spec.tokens]
        shares = g.split(f"{name}.shares", self.softmax(name, parts, self.mask), sizes, -1)
        mixed = g.node("MatMul", f"{name}.mixed.listed", shares[-2], gathered[1])
        values = [(f"{name}.mixed.fresh", shares[-1], value, spec.tokens)]
        if self.sinks:
            old = g.slice(f"{name}.sinks.values", ring_value, [0], [self.sink_tokens], [2])
            values.append((f"{name}.mixed.sinks", shares[0], old, self.sink_tokens))
        mixed = g.reshape(f"{name}.mixed.rows", mixed, (*by_row[:2], rows * tokens, d.head_size))
        for label, share, part, count in values:
            flat = g.reshape(f"{label}.shares", share, (*by_row[:2], rows * tokens, count))
            mixed = g.node("Add", f"{label}.sum", mixed, g.node("MatMul", label, flat, part))
        if rows * tokens != spec.tokens:
            mixed = g.slice(f"{name}.mixed.unpadded", mixed, [0], [spec.tokens], [2])
        self.keep(layer, stored, value)
        return g.full(f"{name}.mixed", mixed)
