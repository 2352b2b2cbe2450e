"""The GPU engine's operations as Triton kernels, under the names of plain.py; see the package.

Rotations, the choice of top_k and what a plan skips are torch operations in both: they run
once a frame, or are small beside what they spare.
"""

from __future__ import annotations

from dreamloop.runtime.gpu.attention import sparse_attention
from dreamloop.runtime.gpu.heads import narrow_keys, qkv_write, turn_sinks
from dreamloop.runtime.gpu.linear import add_skipped
from dreamloop.runtime.gpu.plain import choose_blocks, skipped_blocks
from dreamloop.runtime.gpu.rotations import rotations
from dreamloop.runtime.gpu.rows import gate_residual, gelu, modulated_norm
from dreamloop.runtime.gpu.schedule import slot_and_plan

__all__ = ["add_skipped", "choose_blocks", "gate_residual", "gelu", "modulated_norm", "narrow_keys", "qkv_write",
           "rotations", "skipped_blocks", "slot_and_plan", "sparse_attention", "turn_sinks"]
