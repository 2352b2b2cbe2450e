"""The frame loop: a clock, an input source, a frame sink and a deadline around a session.

    wait until due -> read input -> dynamics -> decode -> present
                      |<------- input-to-present latency ------->|

Input is read last, just before the step that uses it, and what is presented is the frame just
made. Frame n is due to begin at anchor + n * budget: deadlines are absolute, so the jitter of a
sleep never adds up. A frame is late when it is presented after the next one was due to begin;
what then happens to the schedule is the contract `late`:

    slow      the next frame begins at once and the schedule moves with it: game time slows down,
              no input is skipped, and two frames never begin closer than the budget
    repeat    the old frame stands for the missed deadlines (they are counted), and the next frame
              begins at the next one: the schedule never moves

    degrade   as repeat, and the frame after a late one is made but not decoded: the old picture
              stands once more, and the time of decoding is won back. Never twice in a row

None makes up for lost time with a burst. A frame that is not finite is never shown: the last
good one is presented again and counted (`held_frames`). With a drift monitor its alarms are counted
and, where it is told to re-anchor, the frame after an alarm starts over from a start frame.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.clock import Clock, SystemClock
from dreamloop.runtime.drift import DriftMonitor
from dreamloop.runtime.profiler import Profiler
from dreamloop.runtime.session import Action, FaultError, Frame, Session
from dreamloop.runtime.snapshot import Snapshot

LATE = ("slow", "repeat", "degrade")
RECENT_FRAMES = 240


@dataclass(frozen=True)
class Command:
    """What a source wants of the next frame. advance: False holds the picture (a pause); stop: leave
    the loop, make no frame. save: a name to bookmark the present under, before the frame is made.

    Instead of making a frame from the action, reset goes to a start (see `Session.reset`), rewind
    goes that many frames back, as far as the history reaches, and load goes to a bookmark.
    """

    action: Action = None
    advance: bool = True
    reset: int | np.ndarray | None = None
    stop: bool = False
    rewind: int = 0
    save: str = ""
    load: str = ""

    @property
    def jumps(self) -> bool:
        """Whether it goes somewhere else instead of on to the next frame."""
        return self.reset is not None or self.rewind > 0 or bool(self.load)


class Source(Protocol):
    """Where input comes from."""

    def read(self) -> Command:
        """The input at this moment; never waits."""


class Sink(Protocol):
    """Where frames go."""

    def present(self, frame: Frame) -> None:
        """Show a frame; on return it is on its way to the player."""

    def hold(self) -> None:
        """The loop is paused: keep showing the last frame."""


@dataclass(frozen=True)
class Presented:
    """The record of one presented frame.

    id: 1, 2, ... in the order of presenting; index: the session's own index of the frame; input_id:
    which reading of the source it shows; action: (A,) float32, as the world saw it; start: the start
    it was reset to, else None; made_ms: from reading the input to finished pixels; latency_ms: from
    reading the input to the return of `present`; interval_ms: since the presenting before it (0 for
    the first); late: missed its deadline; repeats: how many deadlines the frame before it stood for.
    rewound: how many frames it went back, None where it did not; saved, loaded: names of bookmarks;
    fault: why the frame before it was shown again instead of a new one; alarms: what the drift
    monitor said of it.
    """

    id: int
    index: int
    input_id: int
    action: np.ndarray = field(repr=False)
    start: int | np.ndarray | None = field(repr=False)
    made_ms: float
    latency_ms: float
    interval_ms: float
    late: bool
    repeats: int
    rewound: int | None = None
    saved: str = ""
    loaded: str = ""
    fault: str = ""
    alarms: tuple[str, ...] = ()
    degraded: bool = False


class FrameLoop:
    """budget_ms: time between two frames, None runs as fast as it can; recent: the last records;
    bookmarks: what sources saved, by name."""

    def __init__(self, session: Session, source: Source, sink: Sink, budget_ms: float | None = None,
                 late: str = "slow", clock: Clock | None = None, profiler: Profiler | None = None,
                 monitor: DriftMonitor | None = None) -> None:
        if late not in LATE:
            raise DreamloopError(f"late={late!r} must be one of {', '.join(LATE)}")
        if budget_ms is not None and not budget_ms > 0:
            raise DreamloopError(f"budget_ms={budget_ms} must be above 0, or None for no pace")
        self.session, self.source, self.sink = session, source, sink
        self.budget_ms, self.late = budget_ms, late
        self.clock: Clock = clock or SystemClock()
        self.profiler, self.monitor = profiler, monitor
        self.presented = self.late_frames = self.repeated_frames = self.held_frames = 0
        self.degraded_frames = 0
        self._win_back = False  # whether the next frame is to be degraded
        self._anchor: int | None = None  # the start frame to go to next
        self.recent: deque[Presented] = deque(maxlen=RECENT_FRAMES)
        self.bookmarks: dict[str, Snapshot] = {}
        self._saved = ""
        self._inputs = 0
        self._last_present_s: float | None = None
        self._anchor_s, self._beat = 0.0, 0

    def run(self, count: int | None = None) -> None:
        """Present `count` frames, or go on until the source says stop."""
        for _ in self.frames(count):
            pass

    def frames(self, count: int | None = None) -> Iterator[Presented]:
        """The same as `run`, one record at a time."""
        self._anchor_s, self._beat = self.clock.now(), 0
        self._last_present_s = None
        end = None if count is None else self.presented + count
        while end is None or self.presented < end:
            due = self._anchor_s + self._beat * (self.budget_ms or 0.0) / 1000
            if self.budget_ms is not None:
                self.clock.sleep_until(due)
            began = self.clock.now()
            command = self.source.read()
            self._inputs += 1
            if command.stop:
                return
            if command.save:
                self.bookmarks[command.save], self._saved = self.session.snapshot(), command.save
            if not command.advance and not command.jumps:
                self.sink.hold()
                self._last_present_s = self.clock.now()
                self._schedule(due, self._last_present_s)
            else:
                if self._anchor is not None:
                    command, self._anchor = replace(command, reset=self._anchor), None
                yield self._make(command, due, began)

    def _make(self, command: Command, due: float, began: float) -> Presented:
        """One frame, from an input that has just been read to its presenting."""
        session, now = self.session, self.clock.now
        vector = session.world.spec.actions.vector(None if command.jumps else command.action)
        if command.load and command.load not in self.bookmarks:
            raise DreamloopError(f"no bookmark {command.load[:100]!r} was saved")
        read = now()
        rewound, frame, fault = None, None, ""
        if command.reset is not None:
            stage, frame = "reset", session.reset(command.reset)
        elif command.load:
            stage, frame = "load", session.restore(self.bookmarks[command.load])
        elif command.rewind:
            rewound = min(command.rewind, session.history_frames)
            stage, frame = "rewind", session.rewind(rewound)
        else:
            stage = "dynamics"
            try:
                session.advance(vector)
            except FaultError as error:  # the session stands at the last good frame
                fault = str(error)
                self.held_frames += 1
        stepped = now()
        degraded, self._win_back = self._win_back and frame is None, False
        if not degraded:
            frame = frame or session.render()
        decoded = now()
        if frame is not None:
            self.sink.present(frame)
        else:
            self.sink.hold()
        done = now()
        self.presented += 1
        self.degraded_frames += degraded
        if self.profiler is not None:
            times = (began, read, stepped, decoded, done)
            for name, start, stop in zip(("input", stage, "decode", "present"), times, times[1:], strict=False):
                self.profiler.add(self.presented, name, start, stop)
        late, repeats = self._schedule(due, done)
        self.late_frames += late
        self.repeated_frames += repeats
        self._win_back = late and not degraded and self.late == "degrade"
        interval = 0.0 if self._last_present_s is None else done - self._last_present_s
        self._last_present_s = done
        record = Presented(self.presented, session.index, self._inputs, vector, command.reset,
                           (decoded - began) * 1000, (done - began) * 1000, interval * 1000, late, repeats,
                           rewound, self._saved, command.load if stage == "load" else "", fault,
                           self._watch(fault, command.jumps), degraded)
        self._saved = ""
        self.recent.append(record)
        return record

    def _watch(self, fault: str, jumped: bool) -> tuple[str, ...]:
        """What the monitor says of the frame just presented; decides whether the next one re-anchors."""
        if self.monitor is None:
            return ()
        if jumped:
            self.monitor.forget()
        alarms = self.monitor.fault(self.session, fault) if fault else self.monitor.observe(self.session)
        if alarms and self.monitor.reanchor:
            self._anchor = self.monitor.anchor()
        return tuple(alarm.text for alarm in alarms)

    def _schedule(self, due: float, done: float) -> tuple[bool, int]:
        """Fix when the next frame is due, given when this one was done; returns (late, repeats)."""
        if self.budget_ms is None:
            return False, 0
        beats = math.ceil((done - due) * 1000 / self.budget_ms - 1e-9)
        if beats <= 1:
            self._beat += 1
            return False, 0
        if self.late == "slow":
            self._anchor_s, self._beat = done, 0
            return True, 0
        self._beat += beats
        return True, beats - 1
