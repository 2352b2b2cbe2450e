"""Which slot a frame is written to and which blocks it reads, on the device, in torch: no host in between.

The closed form of models/core/memory.py and plan.py. Which frame lies in a slot while frame t runs:

    sink slot s              frame s + 1, once t >= s + 1
    dilated slot j of m      frame d n, the largest n <= t / d with n % m == j
    window slot w of n       of the frames that are neither, in order 0, 1, ..., the last one with order % n == w;
                             the i-th positive frame that d does not divide is i + (i - 1) // (d - 1)

`slot_and_plan` is the reference of the Triton kernel in schedule.py and held against `build_plan` for all policies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamloop.models.core.spec import MemorySpec, WorldSpec
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry

EVER = 1 << 62  # a view that leaves nothing out


def _windowed(memory: MemorySpec, last: Tensor) -> Tensor:
    """How many of the frames sink_frames < u <= last belong to the window ring."""
    last = last.clamp_min(memory.sink_frames)
    count = last - memory.sink_frames
    if memory.dilation:
        count = count - (last // memory.dilation - memory.sink_frames // memory.dilation)
    return count


def visible_frames(memory: MemorySpec, frames: Tensor) -> Tensor:
    """Frames that lie in each slot while `frames` (B,) run, (B, S) int64, 0 where a slot is not yet written."""
    t, device = frames[:, None], frames.device
    held = []
    sink = torch.arange(1, memory.sink_frames + 1, device=device)
    held.append(torch.where(sink <= t, sink, 0))
    if memory.dilation:
        slot = torch.arange(memory.dilated_frames, device=device)
        newest = t // memory.dilation
        frame = (newest - torch.remainder(newest - slot, memory.dilated_frames)) * memory.dilation
        held.append(torch.where(frame > memory.sink_frames, frame, 0))
    slot = torch.arange(memory.window_frames, device=device)
    newest = _windowed(memory, t) - 1
    order = newest - torch.remainder(newest - slot, memory.window_frames)
    if memory.dilation:
        positive = order + 1 + memory.sink_frames - memory.sink_frames // memory.dilation
        frame = positive + torch.div(positive - 1, memory.dilation - 1, rounding_mode="floor")
    else:
        frame = order + 1 + memory.sink_frames
    held.append(torch.where(order >= 0, frame, 0))
    return torch.cat(held, dim=1)


def slots_of(memory: MemorySpec, frames: Tensor) -> Tensor:
    """The slot that each of `frames` (B,) is written to, (B,) int32."""
    slot = memory.sink_frames + memory.dilated_frames + _windowed(memory, frames - 1) % memory.window_frames
    if memory.dilation:
        ring = memory.sink_frames + torch.div(frames, memory.dilation, rounding_mode="floor") % memory.dilated_frames
        slot = torch.where(frames % memory.dilation == 0, ring, slot)
    return torch.where(frames <= memory.sink_frames, frames - 1, slot).int()


def _reads(spec: WorldSpec, frames: Tensor, held: Tensor, view: Tensor) -> Tensor:
    """`reads` of core/plan.py for every slot, (B, parts or 1 of the query, S, parts of the key) bool."""
    plan, memory, parts = spec.plan, spec.memory, spec.blocks_per_frame
    age = frames[:, None] - held
    chosen = torch.ones(len(frames), 1, memory.slots, parts, dtype=torch.bool, device=held.device)
    if plan.policy == "window":
        chosen = chosen & (age <= plan.window_frames)[:, None, :, None]
    elif plan.policy == "radial":
        octave = torch.zeros_like(age)
        for doubling in range((2 * memory.slots * max(memory.dilation, 1)).bit_length()):
            octave = octave + (age > plan.window_frames << doubling)
        part = torch.arange(parts, device=held.device)
        away = (part[:, None] - part).abs()[None, :, None]
        near = (octave == 0)[:, None, :, None] | ((away << (octave + 1)[:, None, :, None]) < parts)
        stride = torch.ones_like(octave) << (octave - (parts.bit_length() - 1)).clamp_min(0)
        chosen = chosen & near & (held % stride == 0)[:, None, :, None]
    sink = (held >= 1) & (held <= memory.sink_frames)
    seen = (held > 0) & ((age < view[:, None]) | sink)
    return (chosen | sink[:, None, :, None]) & seen[:, None, :, None]


def slot_and_plan(spec: WorldSpec, frames: Tensor, view_frames: Tensor | None = None) -> tuple[Tensor, DevicePlan]:
    """frames: (B,) int64, each 1 or more, about to be made -> slots (B,) int32, and their plan."""
    geometry, memory, parts = Geometry.of(spec), spec.memory, spec.blocks_per_frame
    held = visible_frames(memory, frames)
    chosen = _reads(spec, frames, held, torch.full_like(frames, EVER) if view_frames is None else view_frames)
    blocks = (torch.arange(memory.slots, device=held.device)[:, None] * geometry.slot_blocks
              + torch.arange(parts, device=held.device)).flatten()
    front = torch.zeros_like(held, dtype=torch.bool)
    if spec.plan.policy == "top_k":  # what is always read stands first
        front = (held > 0) & ((held <= memory.sink_frames) | (held >= frames[:, None] - 1))
    rank = torch.where(chosen, torch.where(front, 0, 1)[:, None, :, None], 2).flatten(2)
    order = rank.argsort(dim=-1, stable=True)
    count = chosen.flatten(2).sum(-1, dtype=torch.int32)[:, None]
    length = torch.full((parts,), spec.block_tokens, dtype=torch.int32, device=held.device)
    length[-1] = spec.tokens - (parts - 1) * spec.block_tokens
    written = torch.where((held > 0)[..., None], length, 0)
    written = torch.nn.functional.pad(written, (0, geometry.slot_blocks - parts)).flatten(1)
    kept = None
    if spec.plan.policy == "top_k":
        kept = (front.sum(-1, dtype=torch.int32) * parts)[:, None, None].expand_as(count).contiguous()
    return slots_of(memory, frames), DevicePlan(blocks[order].int()[:, None].contiguous(), count, written.int(), kept)
