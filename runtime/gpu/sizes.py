"""What the kernels of both kinds are handed besides tensors: sizes of the ring, plans, rotations, scales."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, dtype

from dreamloop.models.core.spec import WorldSpec


@dataclass(frozen=True)
class Geometry:
    """How frames lie in the ring: `parts` blocks of `block_tokens` tokens (the last with a tail), then, where
    `means`, room for the mean key of each; `slot_blocks` blocks in all. Sinks are the first slots."""

    tokens: int
    block_tokens: int
    slot_blocks: int
    sinks: int = 0

    @classmethod
    def of(cls, spec: WorldSpec) -> Geometry:
        return cls(spec.tokens, spec.block_tokens, spec.slot_blocks, spec.memory.sink_frames)

    @property
    def parts(self) -> int:
        return -(-self.tokens // self.block_tokens)

    @property
    def means(self) -> bool:
        return self.slot_blocks > self.parts

    @property
    def stride(self) -> int:
        """T_padded: rows of a slot."""
        return self.slot_blocks * self.block_tokens


@dataclass(frozen=True)
class DevicePlan:
    """The plan of docs/design.md section 4 as int32 tensors on the device.

    index   (B or 1, H or 1, query_blocks or 1, most)    what lies behind `count` is any block
    count   (B or 1, H or 1, query_blocks or 1)          1 or more
    length  (B or 1, key_blocks)                         written tokens of each block
    kept    like count; for top_k: how many blocks at the front of a list are read in any case
    """

    index: Tensor
    count: Tensor
    length: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Skipped:
    """What the linear branch reads of a ring: the written blocks that a plan does not list.

    share   (B or 1, 1, query_blocks or 1, key_blocks) float32: `shares` of core/plan.py
    length  (B or 1, key_blocks) int32: keys of each block that some row skips, 0 for all others
    """

    share: Tensor
    length: Tensor


@dataclass(frozen=True)
class Turns:
    """Rotations of one pass, float32: see `PassInputs` in models/core/conditioning.py."""

    cos: Tensor
    sin: Tensor
    store_cos: Tensor
    store_sin: Tensor
    sink_cos: Tensor
    sink_sin: Tensor


@dataclass(frozen=True)
class Quantise:
    """A static scale: values are divided by `scale` (1,) float32, clamped, and rounded to `dtype`."""

    scale: Tensor
    dtype: dtype


@dataclass(frozen=True)
class NarrowKeys:
    """Keys of one layer in one byte each. codes: (B, G, S * T_padded, D) int8 or float8_e4m3fn;
    scale: (B, G, S * T_padded) float32, so that key = code * scale."""

    codes: Tensor
    scale: Tensor
