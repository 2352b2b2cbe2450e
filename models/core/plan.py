"""The plan: which blocks of keys each block of queries reads, as padded index lists (ELL).

    block_index   int32 (1 or B, 1 or H, query_blocks, max_blocks)   block = slot * slot_blocks + part
    block_count   int32 (1 or B, 1 or H, query_blocks)               always >= 1
    block_length  int32 (1 or B, key_blocks)                         written tokens of each block

The fresh keys of the current frame count as lying in its own slot already. A policy decides by
the age of a frame, in frames; `build_plan` rotates ages to slots. Every kernel and engine, and
the mask that training uses, come from the same `reads` rule.

    dense     every visible frame
    window    frames of age <= window_frames, and the sinks
    radial    frames of age <= window_frames whole; at each doubling of the age beyond it half as many blocks: first
              of the frame, those nearest to the query's own place in it (blocks are bands of rows), then of the
              frames, those whose index is a multiple of a power of two. Sinks whole. With n frames that is
              O(log n) blocks for one frame, O(n log n) for a clip (Radial Attention, Li et al. 2025).
    top_k     sinks, the frame itself and the one before it, and of all other blocks the `top_blocks` whose mean key
              agrees best with the mean query of the block that asks, for every layer and head anew (as SpargeAttn,
              Zhang et al. 2025, and VSA, Zhang et al. 2025, choose). Mean keys are kept in the ring, behind the tokens
              of their slot, when a frame is written. `block_kept` says how many blocks at the front of a list are read
              whatever their keys; the rest of the list are candidates, and `select` is the choice. Training reads
              every candidate: top_k approximates a dense world at play.

With `linear`, what `window` or `radial` skips is not lost: `Plan.skipped` says which written blocks a query block does
not list, and models/networks/linear.py reads those to first order. Sinks and the frame itself are always listed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dreamloop.models.core import memory
from dreamloop.models.core.spec import MemorySpec, PlanSpec, WorldSpec

OCTAVES = 32  # doublings of an age: more than any memory holds


@dataclass(frozen=True)
class Plan:
    """Block lists for one pass of B players; arrays as in the module's docstring. block_kept: for top_k, int32 of
    the shape of block_count; None where every listed block is read."""

    block_index: np.ndarray
    block_count: np.ndarray
    block_length: np.ndarray
    block_tokens: int
    block_kept: np.ndarray | None = None

    def listed(self) -> np.ndarray:
        """Which blocks a query block lists, (1 or B, 1 or H, query_blocks, key_blocks) bool."""
        *lead, most = self.block_index.shape
        key_blocks = self.block_length.shape[1]
        listed = np.where(np.arange(most) < self.block_count[..., None], self.block_index, key_blocks)
        chosen = np.zeros((*lead, key_blocks + 1), bool)  # the last column takes what is not listed
        np.put_along_axis(chosen, listed, True, axis=-1)
        return chosen[..., :key_blocks]

    def token_mask(self) -> np.ndarray:
        """The same plan as a mask for dense attention: True where a query block may read a key,
        (1 or B, 1 or H, query_blocks, key_blocks * block_tokens) bool."""
        mask = self.listed()[..., None] & self.written()[:, None, None]
        return mask.reshape(*mask.shape[:3], -1)

    def written(self) -> np.ndarray:
        """Which rows of the ring hold a token, (1 or B, key_blocks, block_tokens) bool."""
        return np.arange(self.block_tokens) < self.block_length[..., None]

    def skipped(self) -> np.ndarray:
        """Which written blocks a query block does not list, (1 or B, 1 or H, query_blocks, key_blocks) bool."""
        return ~self.listed() & (self.block_length > 0)[:, None, None]

    def select(self, scores: np.ndarray, top_blocks: int) -> Plan:
        """The plan that reads of the candidates the `top_blocks` with the highest scores, or all where there are
        fewer; between equals the one that stands first, what is not a number last.

        scores: (B, H, query_blocks, key_blocks); returns lists for every player and head.
        """
        assert self.block_kept is not None
        shape = scores.shape[:3]
        index, count, kept = (np.broadcast_to(a, (*shape, *a.shape[3:])) for a in
                              (self.block_index, self.block_count, self.block_kept))
        chosen = np.zeros((*shape, min(int(kept.max()) + top_blocks, index.shape[3])), np.int32)
        for place in np.ndindex(*shape):
            always, rest = index[place][: kept[place]], index[place][kept[place] : count[place]]
            score = scores[place][rest]
            best = np.argsort(-np.where(np.isnan(score), -np.inf, score), kind="stable")[:top_blocks]
            listed = np.concatenate([always, np.sort(rest[best])])
            chosen[place][: len(listed)] = listed
        return replace(self, block_index=chosen, block_count=np.minimum(count, kept + top_blocks).astype(np.int32),
                       block_kept=None)


def reads(plan: PlanSpec, memory_spec: MemorySpec, parts: int, frame: int, past: np.ndarray) -> np.ndarray:
    """Which blocks `frame` reads of the visible frames `past` (its own index included).

    parts: blocks of a frame; past: (n,) int64 -> (parts of the query, n, parts of the key) bool.
    """
    chosen = np.ones((parts, len(past), parts), bool)
    age = frame - past
    if plan.policy == "window":
        chosen &= (age <= plan.window_frames)[:, None]
    elif plan.policy == "radial":
        octave = (age[:, None] > plan.window_frames << np.arange(OCTAVES)).sum(axis=1)
        away = np.abs(np.arange(parts)[:, None, None] - np.arange(parts))
        near = (octave == 0)[:, None] | (away << (octave + 1)[:, None] < parts)
        stride = 1 << np.maximum(octave - (parts.bit_length() - 1), 0)
        chosen &= near & (past % stride == 0)[:, None]
    chosen[:, (past >= 1) & (past <= memory_spec.sink_frames)] = True
    return chosen


def build_plan(spec: WorldSpec, frames: np.ndarray) -> Plan:
    """The plan for B players about to make the frames `frames`, (B,) int64."""
    parts, slots, batch = spec.blocks_per_frame, spec.memory.slots, len(frames)
    index = np.zeros((batch, 1, parts, slots * parts), np.int32)
    count = np.zeros((batch, 1, parts), np.int32)
    kept = np.zeros_like(count)
    length = np.zeros((batch, slots, spec.slot_blocks), np.int32)
    blocks = np.arange(slots)[:, None] * spec.slot_blocks + np.arange(parts)
    for b, frame in enumerate(frames):
        held = memory.visible_frames(spec.memory, int(frame))
        written = np.flatnonzero(held != memory.EMPTY)
        if spec.plan.policy == "top_k":  # what is always read stands first
            past = held[written]
            first = (past <= spec.memory.sink_frames) | (past >= frame - 1)
            written = np.concatenate([written[first], written[~first]])
            kept[b] = first.sum() * parts
        chosen = reads(spec.plan, spec.memory, parts, int(frame), held[written])
        for row in range(parts):
            listed = blocks[written][chosen[row]]
            index[b, 0, row, : len(listed)], count[b, 0, row] = listed, len(listed)
        length[b, written, : parts - 1] = spec.block_tokens
        length[b, written, parts - 1] = spec.tokens - (parts - 1) * spec.block_tokens
    return Plan(index, count, length.reshape(batch, -1), spec.block_tokens,
                kept if spec.plan.policy == "top_k" else None)


def shares(skipped: np.ndarray, length: np.ndarray) -> np.ndarray:
    """What a block's sums count in the mean over all keys that a row skips: 1 / their number, 0 where the row does not
    skip the block. skipped: (..., rows, blocks) bool; length: keys of each block, broadcast to it. Returns float64."""
    count = (skipped * length).sum(axis=-1, keepdims=True)
    return skipped / np.maximum(count, 1)


def frame_mask(memory_spec: MemorySpec, plan: PlanSpec, first: int, count: int, parts: int = 1) -> np.ndarray:
    """Who reads whom in a clip of frames first .. first + count - 1 that starts with an empty past,
    (count * parts, count * parts) bool, row = query block, blocks frame by frame. A clip in the middle of a session
    has lost nothing that its own frames would have overwritten, so any phase `first` >= 1 may be trained on."""
    mask = np.zeros((count, parts, count, parts), bool)
    for row in range(count):
        past = memory.visible_frames(memory_spec, first + row)
        past = past[past >= first]
        mask[row][:, past - first] = reads(plan, memory_spec, parts, first + row, past)
    return mask.reshape(count * parts, count * parts)


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
