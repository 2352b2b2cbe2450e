"""The frame loop: a clock, an input source, a frame sink and a deadline around a session.

    wait until due -> read input -> dynamics -> decode -> present
                      |<------- input-to-present latency ------->|

Input is read last, just before the step that uses it, and what is presented is the frame just
made. A frame is late when it is presented after the next one was due to begin; what then happens to
the schedule (pace.py) is the contract `late`:

    slow      the next frame begins at once and the schedule moves with it: game time slows down,
              no input is skipped, and two frames never begin closer than the budget
    repeat    the old frame stands for the missed deadlines (they are counted), and the next frame
              begins at the next one: the schedule never moves
    degrade   as repeat, and the next frames do less: they read fewer frames of the past, and where
              that is not enough, the frame after a late one is made but not decoded

None makes up for lost time with a burst. With `compute`, a thread, the loop has two stages:

    loop      | read n | present n - 1 | wait for n ...  | read n + 1 | present n | ...
    compute            | dynamics n    | decode n |                   | dynamics n + 1 ...

so making and presenting may take a budget each. The price is latency: frame n is presented when frame
n + 1 begins, one budget after its input was read, and that input was read while frame n - 2 was on the
screen. A frame is late when it is not ready, or the screen not free, at that moment.

A frame that is not finite is never shown: the last good one is presented again and counted
(`held_frames`). With a drift monitor its alarms are counted and, where it is told to re-anchor, the
frame after an alarm starts over from a start frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.clock import Clock, SystemClock
from dreamloop.runtime.drift import DriftMonitor
from dreamloop.runtime.pace import Pace, Relief
from dreamloop.runtime.profiler import Profiler
from dreamloop.runtime.session import Action, FaultError, Frame, Session
from dreamloop.runtime.snapshot import Snapshot

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

    @property
    def makes_frame(self) -> bool:
        """Whether there is something to present."""
        return not self.stop and (self.advance or self.jumps)


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
    reading the input to the return of `present`; waited_ms: how long of that the finished frame lay
    waiting for its turn (in two stages); interval_ms: since the presenting before it (0 for
    the first); late: missed its deadline; repeats: how many deadlines the frame before it stood for.
    rewound: how many frames it went back, None where it did not; saved, loaded: names of bookmarks;
    fault: why the frame before it was shown again instead of a new one; alarms: what the drift
    monitor said of it; view_frames: how far back it was allowed to read, None for all; decoded: False
    where the old picture stood instead.
    """

    id: int
    index: int
    input_id: int
    action: np.ndarray = field(repr=False)
    start: int | np.ndarray | None = field(repr=False)
    made_ms: float
    latency_ms: float
    waited_ms: float
    interval_ms: float
    late: bool
    repeats: int
    rewound: int | None = None
    saved: str = ""
    loaded: str = ""
    fault: str = ""
    alarms: tuple[str, ...] = ()
    view_frames: int | None = None
    decoded: bool = True

    @property
    def degraded(self) -> bool:
        """Whether something was left out of it to save time."""
        return self.view_frames is not None or not self.decoded


@dataclass(frozen=True)
class _Made:
    """A frame between its making and its presenting. frame: None where it was not decoded; stage: what made it;
    began, read, stepped, decoded: seconds; device: see `Profiler.add_device`; the rest as in `Presented`."""

    frame: Frame | None
    index: int
    input_id: int
    command: Command
    action: np.ndarray
    stage: str
    began: float
    read: float
    stepped: float
    decoded: float
    rewound: int | None
    saved: str
    fault: str
    alarms: tuple[str, ...]
    view_frames: int | None
    device: Sequence[tuple[str, float, float]] = ()


class FrameLoop:
    """budget_ms: time between two frames, None runs as fast as it can; compute: a thread for the second
    stage, such as `ThreadPoolExecutor(1)`, None for one stage; recent: the last records; bookmarks: what
    sources saved, by name. While `frames` has given a record and waits, nobody uses the session."""

    def __init__(self, session: Session, source: Source, sink: Sink, budget_ms: float | None = None,
                 late: str = "slow", clock: Clock | None = None, profiler: Profiler | None = None,
                 monitor: DriftMonitor | None = None, compute: Executor | None = None) -> None:
        self.pace = Pace(budget_ms, late)
        self.relief = Relief(session.world.spec.memory.window_frames) if late == "degrade" else None
        self.session, self.source, self.sink = session, source, sink
        self.budget_ms, self.late = budget_ms, late
        self.clock: Clock = clock or SystemClock()
        self.profiler, self.monitor, self.compute = profiler, monitor, compute
        self._device_stages = None if profiler is None else getattr(session.engine, "device_stages", None)
        if self._device_stages is not None:
            getattr(session.engine, "measure_stages")()  # noqa: B009  an engine has both or none
        self.presented = self.late_frames = self.repeated_frames = self.held_frames = 0
        self.degraded_frames = 0
        self._anchor: int | None = None  # the start frame to go to next
        self.recent: deque[Presented] = deque(maxlen=RECENT_FRAMES)
        self.bookmarks: dict[str, Snapshot] = {}
        self._saved = ""
        self._inputs = 0
        self._last_present_s: float | None = None

    def run(self, count: int | None = None) -> None:
        """Present `count` frames, or go on until the source says stop."""
        for _ in self.frames(count):
            pass

    def frames(self, count: int | None = None) -> Iterator[Presented]:
        """The same as `run`, one record at a time."""
        self.pace.begin(self.clock.now())
        self._last_present_s = None
        yield from self._in_turn(count) if self.compute is None else self._in_two_stages(count, self.compute)

    def _in_turn(self, count: int | None) -> Iterator[Presented]:
        end = None if count is None else self.presented + count
        while end is None or self.presented < end:
            self._wait()
            began = self.clock.now()
            command = self._read()
            if command.stop:
                return
            if not command.makes_frame:
                self._hold()
                continue
            made = self._make(command, self._vector(command), began)
            done = self._show(made)
            settled = self._settle(made, done)
            yield self._record(replace(made, alarms=self._watch(made)), made.decoded, done, *settled)

    def _in_two_stages(self, count: int | None, compute: Executor) -> Iterator[Presented]:
        waiting: tuple[_Made, bool, int] | None = None  # made in the beat before this one
        left = count
        while True:
            self._wait()
            began = self.clock.now()
            command = Command(stop=True) if left == 0 else self._read()
            if command.makes_frame:
                job = compute.submit(partial(self._make_and_watch, command, self._vector(command), began))
                try:
                    record = None if waiting is None else self._present(*waiting)
                finally:
                    made = job.result()
                waiting = (made, *self._settle(made, self.clock.now()))
                left = None if left is None else left - 1
            elif waiting is not None:
                record, waiting = self._present(*waiting), None
                self.pace.settle(self.clock.now())
            elif command.stop:
                return
            else:
                record = None
                self._hold()
            if record is not None:
                yield record
            if command.stop:
                return

    # -- the parts of a beat -----------------------------------------------------------------------

    def _wait(self) -> None:
        if self.budget_ms is not None:
            self.clock.sleep_until(self.pace.due_s)

    def _read(self) -> Command:
        """The input at this moment, and what it asks for besides a frame."""
        command = self.source.read()
        self._inputs += 1
        if command.save and not command.stop:
            self.bookmarks[command.save], self._saved = self.session.snapshot(), command.save
        if command.makes_frame and self._anchor is not None:
            command, self._anchor = replace(command, reset=self._anchor), None
        return command

    def _vector(self, command: Command) -> np.ndarray:
        """The action as the world sees it; what cannot be done is refused before anything changes."""
        if command.load and command.load not in self.bookmarks:
            raise DreamloopError(f"no bookmark {command.load[:100]!r} was saved")
        return self.session.world.spec.actions.vector(None if command.jumps else command.action)

    def _hold(self) -> None:
        """The loop is paused for this beat."""
        self.sink.hold()
        self._last_present_s = self.clock.now()
        self.pace.settle(self._last_present_s)

    def _make(self, command: Command, vector: np.ndarray, began: float) -> _Made:
        """One frame, from an input that has been read to its pixels."""
        session, now, relief = self.session, self.clock.now, self.relief
        read = now()
        rewound, frame, fault, view_frames = None, None, "", None
        if command.reset is not None:
            stage, frame = "reset", session.reset(command.reset)
        elif command.load:
            stage, frame = "load", session.restore(self.bookmarks[command.load])
        elif command.rewind:
            rewound = min(command.rewind, session.history_frames)
            stage, frame = "rewind", session.rewind(rewound)
        else:
            stage, view_frames = "dynamics", relief.view_frames if relief else None
            try:
                session.advance(vector, view_frames)
            except FaultError as error:  # the session stands at the last good frame
                fault = str(error)
                self.held_frames += 1
        stepped = now()
        device = self._device_stages() if self._device_stages is not None and stage == "dynamics" else ()
        if frame is None and not (relief and relief.skips_decoding):
            frame = session.render()
        if frame is not None:
            frame.pixels  # noqa: B018  decoded here, where its time is counted
        saved, self._saved = self._saved, ""
        return _Made(frame, session.index, self._inputs, command, vector, stage, began, read, stepped, now(), rewound,
                     saved, fault, (), view_frames, device)

    def _make_and_watch(self, command: Command, vector: np.ndarray, began: float) -> _Made:
        made = self._make(command, vector, began)
        return replace(made, alarms=self._watch(made))

    def _watch(self, made: _Made) -> tuple[str, ...]:
        """What the monitor says of the frame just made; decides whether the next one re-anchors."""
        if self.monitor is None:
            return ()
        if made.command.jumps:
            self.monitor.forget()
        alarms = self.monitor.fault(self.session, made.fault) if made.fault else self.monitor.observe(self.session)
        if alarms and self.monitor.reanchor:
            self._anchor = self.monitor.anchor()
        return tuple(alarm.text for alarm in alarms)

    def _settle(self, made: _Made, done: float) -> tuple[bool, int]:
        """Whether the frame of this beat was late, and how many deadlines the picture before it stood for."""
        late, repeats = self.pace.settle(done)
        self.late_frames += late
        self.repeated_frames += repeats
        if self.relief is not None:
            self.relief.after(late, made.frame is not None)
        return late, repeats

    def _present(self, made: _Made, late: bool, repeats: int) -> Presented:
        """Present a frame of the beat before."""
        turn = self.clock.now()
        return self._record(made, turn, self._show(made), late, repeats)

    def _show(self, made: _Made) -> float:
        """Give a frame to the sink; returns when that was done."""
        if made.frame is not None:
            self.sink.present(made.frame)
        else:
            self.sink.hold()
        return self.clock.now()

    def _record(self, made: _Made, turn: float, done: float, late: bool, repeats: int) -> Presented:
        """Count a frame that was presented from `turn` to `done`."""
        self.presented += 1
        interval = 0.0 if self._last_present_s is None else done - self._last_present_s
        self._last_present_s = done
        record = Presented(
            self.presented, made.index, made.input_id, made.action, made.command.reset,
            (made.decoded - made.began) * 1000, (done - made.began) * 1000, (turn - made.decoded) * 1000,
            interval * 1000, late, repeats, made.rewound, made.saved, made.command.load if made.stage == "load" else "",
            made.fault, made.alarms, made.view_frames, made.frame is not None)
        self.degraded_frames += record.degraded
        if self.profiler is not None:
            self._profile(self.profiler, made, turn, done)
        self.recent.append(record)
        return record

    def _profile(self, profiler: Profiler, made: _Made, turn: float, done: float) -> None:
        number, maker = self.presented, "frame loop" if self.compute is None else "compute"
        profiler.add(number, "input", made.began, made.read)
        profiler.add(number, made.stage, made.read, made.stepped, maker)
        if made.frame is not None:
            profiler.add(number, "decode", made.stepped, made.decoded, maker)
        profiler.add_device(number, made.device, made.stepped)
        if self.compute is not None:
            profiler.add(number, "wait", made.decoded, turn, "waiting")
        profiler.add(number, "present" if made.frame is not None else "hold", turn, done)
