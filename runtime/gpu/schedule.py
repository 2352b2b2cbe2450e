"""Triton kernel that makes a frame's slot and plan from its index: one launch a frame, nothing read by the host.

One program a player and list: every element of (slot, part) finds the frame that lies in its slot (the closed form of
plans.py), asks the policy, and takes its place in the list by a running sum. Policies whose rows are all alike make one
list. Reference: plans.py, which is held against core/plan.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.gpu.sizes import DevicePlan

DENSE, WINDOW_POLICY, RADIAL, TOP_K = (tl.constexpr(n) for n in range(4))
POLICIES = ("dense", "window", "radial", "top_k")


@triton.jit
def _windowed(last, SINKS: tl.constexpr, DILATION: tl.constexpr):
    last = tl.maximum(last, SINKS)
    count = last - SINKS
    if DILATION > 0:
        count -= last // DILATION - SINKS // DILATION
    return count


@triton.jit
def _held(frame, slot, SINKS: tl.constexpr, DILATED: tl.constexpr, DILATION: tl.constexpr, WINDOW: tl.constexpr):
    """The frame that lies in each slot while `frame` runs, 0 where none does."""
    newest = _windowed(frame, SINKS, DILATION) - 1
    order = newest - (newest + WINDOW - (slot - SINKS - DILATED)) % WINDOW
    positive = tl.maximum(order, 0) + 1 + SINKS
    if DILATION > 0:
        positive -= SINKS // DILATION
        positive += (positive - 1) // (DILATION - 1)
    held = tl.where(order >= 0, positive, 0)
    if DILATION > 0:
        newest = frame // DILATION
        dilated = (newest - (newest + DILATED - (slot - SINKS)) % DILATED) * DILATION
        held = tl.where(slot < SINKS + DILATED, tl.where(dilated > SINKS, dilated, 0), held)
    return tl.where(slot < SINKS, tl.where(slot < frame, slot + 1, 0), held)


@triton.jit
def schedule_kernel(frames, views, slots, index, count, kept, length, rows, TOKENS: tl.constexpr,
                    BLOCK_TOKENS: tl.constexpr, PARTS: tl.constexpr, SLOT_BLOCKS: tl.constexpr,
                    SLOTS: tl.constexpr, SINKS: tl.constexpr, DILATED: tl.constexpr, DILATION: tl.constexpr,
                    WINDOW: tl.constexpr, POLICY: tl.constexpr, NEAR: tl.constexpr, OCTAVES: tl.constexpr,
                    PART_BITS: tl.constexpr, VIEWED: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr):
    """SIZE: SLOTS * PARTS, and BLOCKS: SLOTS * SLOT_BLOCKS, up to powers of two; NEAR: window_frames of the plan."""
    player, row = tl.program_id(0), tl.program_id(1)
    frame = tl.load(frames + player)
    element = tl.arange(0, SIZE)
    slot, part = element // PARTS, element % PARTS
    held = _held(frame, slot, SINKS, DILATED, DILATION, WINDOW)
    age = frame - held
    chosen = element >= 0
    if POLICY == WINDOW_POLICY:
        chosen = age <= NEAR
    if POLICY == RADIAL:
        octave = tl.zeros([SIZE], tl.int64)
        for doubling in tl.static_range(OCTAVES):
            octave += (age > (NEAR << doubling)).to(tl.int64)
        away = tl.abs(part - row).to(tl.int64)
        stride = tl.full([SIZE], 1, tl.int64) << tl.maximum(octave - (PART_BITS - 1), 0)
        chosen = ((octave == 0) | ((away << (octave + 1)) < PARTS)) & (held % stride == 0)
    sink = (held >= 1) & (held <= SINKS)
    seen = (held > 0) & (slot < SLOTS)
    if VIEWED:
        seen = seen & ((age < tl.load(views + player)) | sink)
    listed = (chosen | sink) & seen
    front = listed & (sink | (age <= 1))
    if POLICY != TOP_K:
        front = listed
    rest = listed & (front == 0)
    before = tl.cumsum(front.to(tl.int32), axis=0)
    fronts = tl.sum(front.to(tl.int32), axis=0)
    place = tl.where(front, before, fronts + tl.cumsum(rest.to(tl.int32), axis=0)) - 1
    one = player * rows + row
    tl.store(index + one * (SLOTS * PARTS) + place, slot * SLOT_BLOCKS + part, mask=listed)
    tl.store(count + one, tl.sum(listed.to(tl.int32), axis=0))
    if POLICY == TOP_K:
        tl.store(kept + one, fronts)
    if row == 0:
        block = tl.arange(0, BLOCKS)
        lies = _held(frame, block // SLOT_BLOCKS, SINKS, DILATED, DILATION, WINDOW) > 0
        part = block % SLOT_BLOCKS
        written = tl.minimum(TOKENS - part * BLOCK_TOKENS, BLOCK_TOKENS)
        written = tl.where(lies & (part < PARTS), written, 0)
        tl.store(length + player * (SLOTS * SLOT_BLOCKS) + block, written, mask=block < SLOTS * SLOT_BLOCKS)
        own = SINKS + DILATED + _windowed(frame - 1, SINKS, DILATION) % WINDOW
        if DILATION > 0:
            own = tl.where(frame % DILATION == 0, SINKS + (frame // DILATION) % DILATED, own)
        tl.store(slots + player, tl.where(frame <= SINKS, frame - 1, own).to(tl.int32))


def slot_and_plan(spec: WorldSpec, frames: Tensor, view_frames: Tensor | None = None) -> tuple[Tensor, DevicePlan]:
    """frames: (B,) int64, each 1 or more, about to be made -> slots (B,) int32, and their plan."""
    m, parts, batch = spec.memory, spec.blocks_per_frame, len(frames)
    rows = parts if spec.plan.policy == "radial" else 1
    assert frames.dtype == torch.int64 and frames.is_contiguous()
    assert view_frames is None or (view_frames.dtype == torch.int64 and view_frames.is_contiguous())

    def lists(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, device=frames.device)

    slots, index, count = lists(batch), lists(batch, 1, rows, m.slots * parts), lists(batch, 1, rows)
    length, kept = lists(batch, m.slots * spec.slot_blocks), lists(batch, 1, rows)
    octaves = min((2 * m.slots * max(m.dilation, 1)).bit_length(), 32)
    schedule_kernel[(batch, rows)](
        frames, frames if view_frames is None else view_frames, slots, index, count, kept, length, rows,
        spec.tokens, spec.block_tokens, parts, spec.slot_blocks, m.slots, m.sink_frames, m.dilated_frames, m.dilation,
        m.window_frames, POLICIES.index(spec.plan.policy), spec.plan.window_frames, octaves, parts.bit_length(),
        view_frames is not None, triton.next_power_of_2(m.slots * parts),
        triton.next_power_of_2(m.slots * spec.slot_blocks), num_warps=4)
    return slots, DevicePlan(index, count, length, kept if spec.plan.policy == "top_k" else None)
