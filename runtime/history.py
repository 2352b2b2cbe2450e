"""The past of one timeline: moments to go back to, and the moves that lead on from each.

    moment 0 --moves--> moment 4 --moves--> moment 8 --moves--> now

A session marks a moment every few frames. To go back to a frame it takes the last moment before it
and makes the moves again: the same arithmetic, so the same bits. Moments share their slots
(slots.py), and where they take more than `max_bytes` the one that is missed least goes: the one
with the shortest gap for its age. So the near past is dense, the far past sparse, and memory
stays under one bound for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.slots import Parts, part_bytes

MARK_EVERY_FRAMES = 4
LONGEST_GAP_FRAMES = 128  # the most frames that one rewind plays again
MAX_FRAMES = 1000
MAX_BYTES = 40_000_000


class Move(NamedTuple):
    """What made a frame: the action, (A,) float32, and how far back the pass was allowed to read, None for all."""

    action: np.ndarray
    view_frames: int | None = None


class HistoryError(DreamloopError):
    """A frame further back than the history goes; the session is as it was."""


@dataclass(frozen=True, eq=False)
class Moment:
    """Everything that the next frames of one player follow from, immutable.

    latent: (C, latent height, latent width) float32; given: the start or primed image that is on
    the screen, (H, W, 3) uint8, None where the frame was dreamed.
    """

    index: int
    seed: int
    latent: np.ndarray
    given: np.ndarray | None
    parts: Parts

    def bytes_after(self, before: Moment | None) -> int:
        """Memory that this moment takes beyond an earlier one that it shares slots with."""
        own = self.latent.nbytes + (0 if self.given is None else self.given.nbytes)
        shared = (None,) * len(self.parts) if before is None else before.parts
        return own + sum(part_bytes(part) for part, old in zip(self.parts, shared, strict=True) if part is not old)


@dataclass(frozen=True, eq=False)
class Mark:
    """A moment and the moves from it to the next mark or to now."""

    moment: Moment
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """An immutable past: its marks, oldest first, and the memory that their moments take together."""

    marks: tuple[Mark, ...] = ()
    bytes: int = 0


class History:
    """The timeline that a session is on, growing as it plays."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_frames: int = MAX_FRAMES) -> None:
        self.max_bytes, self.max_frames = max_bytes, max_frames
        self._past = Timeline()  # its last mark has no moves yet: those are the newest
        self._newest: list[Move] = []

    @property
    def oldest(self) -> int:
        """Index of the first frame that `back_to` can reach."""
        return self._past.marks[0].moment.index

    @property
    def bytes(self) -> int:
        """Memory of all moments; moves come on top, a few hundred bytes a frame at most."""
        return self._past.bytes

    def begin(self, moment: Moment) -> None:
        """Forget everything before `moment`."""
        self._past, self._newest = Timeline((Mark(moment),), moment.bytes_after(None)), []

    def note(self, move: Move) -> bool:
        """Keep what made a frame; True where it is time to `mark` it."""
        self._newest.append(move)
        return len(self._newest) >= MARK_EVERY_FRAMES

    def mark(self, moment: Moment) -> None:
        """Add the frame just noted as a moment to go back to."""
        *before, last = self._past.marks
        self._past = Timeline((*before, Mark(last.moment, tuple(self._newest)), Mark(moment)),
                              self._past.bytes + moment.bytes_after(last.moment))
        self._newest = []
        self._bound(moment.index)

    def _bound(self, now: int) -> None:
        """Drop marks until the bounds hold; the newest always stays."""
        while len(self._past.marks) > 1 and now - self._past.marks[1].moment.index >= self.max_frames:
            self._drop(0)
        while len(self._past.marks) > 1 and self._past.bytes > self.max_bytes:
            at = [mark.moment.index for mark in self._past.marks]
            gaps = [(after - before, i) for i, (before, after) in enumerate(zip(at, at[2:], strict=False), start=1)]
            short = [(gap / (now - at[i] + 1), i) for gap, i in gaps if gap <= LONGEST_GAP_FRAMES]
            self._drop(min(short)[1] if short else 0)

    def _drop(self, i: int) -> None:
        """Take out mark i; its moves go to the mark before it."""
        marks = list(self._past.marks)
        gone = marks.pop(i)
        before = marks[i - 1].moment if i else None
        freed = gone.moment.bytes_after(before) + marks[i].moment.bytes_after(gone.moment)
        if i:
            marks[i - 1] = Mark(marks[i - 1].moment, marks[i - 1].moves + gone.moves)
        self._past = Timeline(tuple(marks), self._past.bytes - freed + marks[i].moment.bytes_after(before))

    def timeline(self) -> Timeline:
        """The past up to now, to `follow` later."""
        *before, last = self._past.marks
        return Timeline((*before, Mark(last.moment, tuple(self._newest))), self._past.bytes)

    def follow(self, timeline: Timeline) -> None:
        """Be on this timeline, at its end."""
        *before, last = timeline.marks
        self._past, self._newest = Timeline((*before, Mark(last.moment)), timeline.bytes), list(last.moves)
        self._bound(last.moment.index)

    def back_to(self, index: int) -> tuple[Timeline, tuple[Move, ...]]:
        """(the past that ends with the last moment at or before frame `index`, the moves from that
        moment on to the frame). Changes nothing. Raises `HistoryError` for a frame too far back."""
        if index < self.oldest:
            raise HistoryError(f"frame {index} is before the history, which goes back to frame {self.oldest}")
        marks, size = list(self.timeline().marks), self._past.bytes
        while marks[-1].moment.index > index:
            size -= marks[-1].moment.bytes_after(marks[-2].moment)
            del marks[-1]
        last = marks.pop()
        return Timeline((*marks, Mark(last.moment)), size), last.moves[: index - last.moment.index]
