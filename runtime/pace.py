"""When frames are due, and what gives way after a late one. Bookkeeping only: no clock, no session.

    due of frame n = anchor + n * budget

Deadlines are absolute, so the jitter of a sleep never adds up. `Pace` is the schedule of a frame loop, `Relief`
what the contract `degrade` leaves out of its next frame:

    level 0      the whole view
    level 1, 2   half of the window, a quarter: frames further back are not read, sinks are
    the last     and after a late frame the next one is not decoded, never twice in a row

A late frame goes up a level. Enough frames on time go down one, on trial: where that makes a frame late at once,
the next trial waits twice as long.
"""

from __future__ import annotations

import math

from dreamloop.models.core.errors import DreamloopError

LATE = ("slow", "repeat", "degrade")
VIEW_DIVISORS = (2, 4)
SHORTEST_VIEW_FRAMES = 2
PATIENCE_FRAMES, MOST_PATIENCE_FRAMES = 35, 560  # a second, and a quarter of a minute


class Pace:
    """The schedule of one loop. budget_ms: time between two frames, None for no pace; late: one of `LATE`."""

    def __init__(self, budget_ms: float | None, late: str) -> None:
        if late not in LATE:
            raise DreamloopError(f"late={late!r} must be one of {', '.join(LATE)}")
        if budget_ms is not None and not budget_ms > 0:
            raise DreamloopError(f"budget_ms={budget_ms} must be above 0, or None for no pace")
        self.budget_ms, self.late = budget_ms, late
        self._anchor_s, self._beat = 0.0, 0

    def begin(self, now_s: float) -> None:
        """The first frame is due now."""
        self._anchor_s, self._beat = now_s, 0

    @property
    def due_s(self) -> float:
        """When the next frame is to begin."""
        return self._anchor_s + self._beat * (self.budget_ms or 0.0) / 1000

    def settle(self, done_s: float) -> tuple[bool, int]:
        """The frame that was due has been done by done_s: fix when the next one is. Returns (whether it was late,
        how many deadlines the picture before it stood for)."""
        if self.budget_ms is None:
            return False, 0
        if done_s < self.due_s:  # the clock fell back: nothing waits for it to catch up
            self._anchor_s, self._beat = done_s, 1
            return False, 0
        beats = math.ceil((done_s - self.due_s) * 1000 / self.budget_ms - 1e-9)
        if beats <= 1:
            self._beat += 1
            return False, 0
        if self.late == "slow":
            self._anchor_s, self._beat = done_s, 0
            return True, 0
        self._beat += beats
        return True, beats - 1


class Relief:
    """What `degrade` leaves out of the next frame. window_frames: of the world's memory."""

    def __init__(self, window_frames: int) -> None:
        self.views = tuple(view for divisor in VIEW_DIVISORS
                           if (view := window_frames // divisor) >= SHORTEST_VIEW_FRAMES)
        self.level, self.skips_decoding = 0, False
        self._patience, self._on_time, self._on_trial = PATIENCE_FRAMES, 0, False

    @property
    def view_frames(self) -> int | None:
        """For `Session.advance`."""
        return self.views[self.level - 1] if self.level else None

    def after(self, late: bool, decoded: bool) -> None:
        """A frame was made, as said here."""
        self.skips_decoding = late and decoded and self.level == len(self.views)
        if late:
            if self._on_trial:
                self._patience = min(2 * self._patience, MOST_PATIENCE_FRAMES)
            self.level = min(self.level + 1, len(self.views))
            self._on_time, self._on_trial = 0, False
        elif decoded:
            self._on_time += 1
            if self._on_time >= self._patience:
                self._patience = PATIENCE_FRAMES if self.level == 0 else self._patience
                self._on_time, self._on_trial = 0, self.level > 0
                self.level = max(self.level - 1, 0)
