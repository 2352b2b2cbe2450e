"""The rolling memory as bookkeeping: which frame lies in which slot, and who sees whom.

Nothing here holds a tensor. A frame's keys and values are written once, into one slot, and never
move. The network makes frames 1, 2, 3, ... (frame 0 is the start frame: it is encoded, not
generated, and leaves no keys).

    slots          [ sinks | dilated ring | window ring ]
    frame t        1 <= t <= sink_frames            -> sink slot t - 1, for ever
                   t % dilation == 0 (if dilated)   -> dilated ring, slot (t / dilation) % dilated_frames
                   otherwise                        -> window ring, next slot in turn

Frame t sees every written slot except the one it is about to overwrite, and itself. The training
mask, the uncached path, every plan and every engine take both rules from this file.

Source: attention sinks, Xiao et al. 2023 (StreamingLLM); dilated global slots as in long-context
video models. Sinks' ages are clamped to `max_age` (see core/conditioning.py).
"""

from __future__ import annotations

import numpy as np

from dreamloop.models.core.spec import MemorySpec

EMPTY = -1


def _windowed_before(memory: MemorySpec, frame: int) -> int:
    """How many frames u, sink_frames < u < frame, belong to the window ring."""
    last = frame - 1
    count = max(last - memory.sink_frames, 0)
    if memory.dilation and count:
        count -= last // memory.dilation - memory.sink_frames // memory.dilation
    return count


def is_sink(memory: MemorySpec, frame: int) -> bool:
    return 1 <= frame <= memory.sink_frames


def slot_of(memory: MemorySpec, frame: int) -> int:
    """The slot, 0 <= slot < memory.slots, that frame >= 1 is written to."""
    assert frame >= 1, frame
    if is_sink(memory, frame):
        return frame - 1
    if memory.dilation and frame % memory.dilation == 0:
        return memory.sink_frames + (frame // memory.dilation) % memory.dilated_frames
    ring = _windowed_before(memory, frame) % memory.window_frames
    return memory.sink_frames + memory.dilated_frames + ring


def slot_frames(memory: MemorySpec, frame: int) -> np.ndarray:
    """The frame that lies in each slot just before `frame` runs, (S,) int64; EMPTY where none does."""
    held = np.full(memory.slots, EMPTY, np.int64)
    sinks = min(memory.sink_frames, frame - 1)
    held[:sinks] = np.arange(1, sinks + 1)
    if memory.dilation:
        newest = (frame - 1) // memory.dilation
        for multiple in range(newest, max(newest - memory.dilated_frames, 0), -1):
            if multiple * memory.dilation > memory.sink_frames:
                held[memory.sink_frames + multiple % memory.dilated_frames] = multiple * memory.dilation
    first_window = memory.sink_frames + memory.dilated_frames
    rank = _windowed_before(memory, frame)
    count = min(rank, memory.window_frames)
    beside = count // (memory.dilation - 1) + 2 if memory.dilation else 0  # at most so many dilated ones in between
    past = np.arange(frame - 1, max(frame - 1 - count - beside, memory.sink_frames), -1)
    if memory.dilation:
        past = past[past % memory.dilation != 0]
    held[first_window + (rank - 1 - np.arange(count)) % memory.window_frames] = past[:count]
    return held


def visible(memory: MemorySpec, frame: int) -> np.ndarray:
    """Slots that frame reads, (S,) bool: all written ones, with its own slot counted as already
    holding its fresh keys (what lay there before is about to be overwritten and is not read)."""
    seen = slot_frames(memory, frame) != EMPTY
    seen[slot_of(memory, frame)] = True
    return seen


def visible_frames(memory: MemorySpec, frame: int) -> np.ndarray:
    """Frames that lie in each slot while `frame` runs, itself in its own slot, (S,) int64, EMPTY
    where a slot is not yet written."""
    held = slot_frames(memory, frame)
    held[slot_of(memory, frame)] = frame
    return held


def oldest_age(memory: MemorySpec) -> int:
    """One above the largest age, in frames, that a key other than a sink's is ever read at: the
    shortest training clip that shows every age, 0 .. oldest_age - 1."""
    window = memory.window_frames
    if memory.dilation:
        window = -(-window * memory.dilation // (memory.dilation - 1))
    return max(window, memory.dilated_frames * memory.dilation)
