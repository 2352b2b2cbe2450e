"""The plan: which blocks of keys each block of queries reads, as padded index lists (ELL).

    block_index   int32 (1 or B, 1 or H, query_blocks, max_blocks)   block = slot * blocks_per_frame + part
    block_count   int32 (1 or B, 1 or H, query_blocks)               always >= 1
    block_length  int32 (1 or B, key_blocks)                         written tokens of each block

The fresh keys of the current frame count as lying in its own slot already. A policy decides by
the age of a frame, in frames; `build_plan` rotates ages to slots. Every kernel and engine, and
the mask that training uses, come from the same `keeps` rule.

    dense     every visible frame
    window    frames of age <= window_frames, and the sinks
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dreamloop.models.core import memory
from dreamloop.models.core.spec import MemorySpec, PlanSpec, WorldSpec


@dataclass(frozen=True)
class Plan:
    """Block lists for one pass of B players; arrays as in the module's docstring."""

    block_index: np.ndarray
    block_count: np.ndarray
    block_length: np.ndarray
    block_tokens: int

    def token_mask(self) -> np.ndarray:
        """The same plan as a mask for dense attention: True where a query block may read a key,
        (1 or B, 1 or H, query_blocks, key_blocks * block_tokens) bool."""
        batch, heads, rows, _ = self.block_index.shape
        key_blocks = self.block_length.shape[1]
        chosen = np.zeros((batch, heads, rows, key_blocks), bool)
        for b, h, row in np.ndindex(batch, heads, rows):
            chosen[b, h, row, self.block_index[b, h, row, : self.block_count[b, h, row]]] = True
        written = np.arange(self.block_tokens) < self.block_length[:, None, None, :, None]
        return (chosen[..., None] & written).reshape(batch, heads, rows, key_blocks * self.block_tokens)


def keeps(plan: PlanSpec, memory_spec: MemorySpec, frame: int, past: int) -> bool:
    """Whether `frame` reads the visible frame `past` (its own index included)."""
    if plan.policy == "dense" or memory.is_sink(memory_spec, past):
        return True
    return frame - past <= plan.window_frames


def read_slots(spec: WorldSpec, frame: int) -> np.ndarray:
    """Slots that the plan reads at `frame`, rising order, (n,) int64; never empty."""
    held = memory.visible_frames(spec.memory, frame)
    return np.array([slot for slot, past in enumerate(held)
                     if past != memory.EMPTY and keeps(spec.plan, spec.memory, frame, int(past))], np.int64)


def build_plan(spec: WorldSpec, frames: np.ndarray) -> Plan:
    """The plan for B players about to make the frames `frames`, (B,) int64."""
    parts, rows = spec.blocks_per_frame, spec.blocks_per_frame
    key_blocks = spec.memory.slots * parts
    batch = len(frames)
    index = np.zeros((batch, 1, rows, key_blocks), np.int32)
    count = np.zeros((batch, 1, rows), np.int32)
    length = np.zeros((batch, key_blocks), np.int32)
    full = np.full(parts, spec.block_tokens, np.int32)
    full[-1] = spec.tokens - (parts - 1) * spec.block_tokens
    for b, frame in enumerate(frames):
        blocks = (read_slots(spec, int(frame))[:, None] * parts + np.arange(parts)).reshape(-1)
        index[b, :, :, : len(blocks)] = blocks
        count[b] = len(blocks)
        length[b] = (memory.visible(spec.memory, int(frame))[:, None] * full).reshape(-1)
    return Plan(index, count, length, spec.block_tokens)


def frame_mask(memory_spec: MemorySpec, plan: PlanSpec, first: int, count: int) -> np.ndarray:
    """Who reads whom in a clip of frames first .. first + count - 1 that starts with an empty past,
    (count, count) bool, row = query frame. A clip in the middle of a session has lost nothing that
    its own frames would have overwritten, so any phase `first` >= 1 may be trained on."""
    mask = np.zeros((count, count), bool)
    for row in range(count):
        frame = first + row
        for past in memory.visible_frames(memory_spec, frame):
            if past >= first and keeps(plan, memory_spec, frame, int(past)):
                mask[row, past - first] = True
    return mask


def narrowed(plan: Plan, spec: WorldSpec, frames: np.ndarray, view_frames: int) -> Plan:
    """The same plan without the frames that lie `view_frames` or more back; sinks stay.

    An approximation for a moment that has no time for more: frames: (B,) int64 about to be made;
    view_frames: 2 or more, so that the frame itself and the one before it are always read.
    """
    assert view_frames >= 2, view_frames
    index, count = plan.block_index.copy(), plan.block_count.copy()
    slot_blocks = plan.block_length.shape[1] // spec.memory.slots
    for b, frame in enumerate(frames):
        held = memory.visible_frames(spec.memory, int(frame))
        near = (frame - held < view_frames) | (held <= spec.memory.sink_frames)
        kept = near[index[b] // slot_blocks] & (np.arange(index.shape[3]) < count[b][..., None])
        index[b] = np.take_along_axis(index[b], np.argsort(~kept, axis=-1, kind="stable"), axis=-1)
        count[b] = kept.sum(axis=-1)
    return replace(plan, block_index=index, block_count=count)
