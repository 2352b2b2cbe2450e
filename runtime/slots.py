"""The slots of one player's ring, shared between moments and copied at most once.

    ring      slot 0   slot 1   slot 2   ...        the engine reads and writes it in place
    held      part     part     None                a frozen copy of each slot, None where nothing lies
    changed            yes                          slots written since their copy was taken

A frame is written into one slot, so between two moments of a game only the slots of the frames in
between differ: `freeze` copies those alone and shares the others with every earlier moment, and
`put` writes those alone back. Neither ever copies the whole ring because of one frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamloop.models.core import memory
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec

Part = Any  # keys and values of one slot, (L, 2, H, T_padded, D); an array of the engine's kind, or numpy
Parts = tuple[Part | None, ...]  # of every slot; None is a slot that was never written


class SharedSlots:
    """Around the ring of a state of one player; the ring is written through an engine or `put`."""

    def __init__(self, spec: WorldSpec, ring: Any) -> None:
        self.spec, self.ring = spec, ring
        self._held: list[Part | None] = [None] * spec.memory.slots
        self._changed: set[int] = set()

    def _place(self, slot: int) -> tuple[Any, ...]:
        first = slot * self.spec.tokens_padded
        return (slice(None), slice(None), 0, slice(None), slice(first, first + self.spec.tokens_padded))

    def written(self, frame: int) -> None:
        """An engine has made `frame`: its slot differs from every copy of it."""
        self._changed.add(memory.slot_of(self.spec.memory, frame))

    def doubt(self) -> None:
        """Whatever the ring holds, no copy is to be trusted to be the same: the next `put` writes all."""
        self._changed.update(range(len(self._held)))

    def clear(self, frame: int) -> None:
        """Forget what `frame` wrote."""
        slot = memory.slot_of(self.spec.memory, frame)
        self.ring[self._place(slot)] = 0
        self._changed.add(slot)

    def freeze(self) -> Parts:
        """The ring as it is now; costs a copy of the slots written since the last time."""
        for slot in self._changed:
            part = self.ring[self._place(slot)]
            if isinstance(part, np.ndarray):
                part = part.copy()
                part.setflags(write=False)
            else:
                part = part.clone()
            self._held[slot] = part
        self._changed.clear()
        return tuple(self._held)

    def put(self, parts: Parts) -> None:
        """Make the ring what it was when `parts` was taken; costs a copy of the slots that differ."""
        for slot, part in enumerate(parts):
            if self._held[slot] is part and slot not in self._changed:
                continue
            self.ring[self._place(slot)] = 0 if part is None else like(self.ring, part)
            self._held[slot] = part
        self._changed.clear()

    def check(self, parts: Parts, frame: int) -> None:
        """Refuse parts that the ring of this world cannot hold after `frame`, by name."""
        held = memory.slot_frames(self.spec.memory, frame + 1) != memory.EMPTY
        if len(parts) != len(held) or any((part is not None) != bool(full)
                                          for part, full in zip(parts, held, strict=True)):
            raise DreamloopError(f"the state does not hold the slots that frame {frame} of this world leaves")
        loaded = [part for part in parts if isinstance(part, np.ndarray)]  # others came from this engine itself
        if not loaded:
            return
        expected = plain(self.ring[self._place(0)])
        shape, kind = expected.shape, expected.dtype
        for part in loaded:
            if part.shape != shape or part.dtype != kind:
                raise DreamloopError(f"a slot of the state is {part.dtype} {part.shape}, expected {kind} {shape}")


def plain(part: Part) -> np.ndarray:
    """A part as a numpy array; bfloat16, which numpy has not, as its bits in int16."""
    if isinstance(part, np.ndarray):
        return part
    part = part.cpu()
    return np.asarray(part.view(_torch_int16()) if "bfloat16" in str(part.dtype) else part)


def like(ring: Any, part: Part) -> Part:
    """A part as the ring's kind of array, the inverse of `plain`."""
    if isinstance(ring, np.ndarray) or not isinstance(part, np.ndarray):
        return part
    import torch
    tensor = torch.from_numpy(part.copy())  # torch dislikes read-only memory
    return (tensor.view(ring.dtype) if tensor.dtype == torch.int16 else tensor).to(ring.device)


def part_bytes(part: Part | None) -> int:
    """Memory that a part takes."""
    return 0 if part is None else int(part.nbytes)


def _torch_int16() -> Any:
    import torch
    return torch.int16
