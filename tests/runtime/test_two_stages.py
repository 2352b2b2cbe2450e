"""The frame loop in two stages: making beside presenting, its gain, its price, and the same frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import FakeClock, FakeThread, Screen, Script, TimedEngine
from hypothesis import given, settings, strategies as st

from dreamloop.demos.action_log import ActionLog
from dreamloop.demos.replay import replay_log
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.models.core.errors import ActionError
from dreamloop.models.core.world import World
from dreamloop.runtime import Command, DriftMonitor, Frame, FrameLoop, Presented, Profiler, Session, SystemClock
from dreamloop.runtime.engines.base import State

BUDGET_MS = 20.0
WORK = st.lists(st.sampled_from([0.0, 0.5, 0.99, 1.0, 1.01, 1.5, 2.0, 3.7, 12.0]), min_size=1, max_size=40)


def run(world: World, work: Sequence[float], late: str = "slow", present: float = 0.0, jitter_s: float = 0.0,
        commands: Sequence[Command] = (), budget_ms: float | None = BUDGET_MS,
        profiler: Profiler | None = None) -> tuple[list[Presented], Script, Screen, FrameLoop]:
    """Frames whose steps take `work` budgets each, on a screen that takes `present` budgets."""
    clock = FakeClock(jitter_s)
    engine = TimedEngine(world, clock, [share * BUDGET_MS / 1000 for share in work])
    source, screen = Script(clock, commands), Screen(clock, present * BUDGET_MS / 1000)
    loop = FrameLoop(Session(world, engine), source, screen, budget_ms, late, clock, profiler,
                     compute=FakeThread(clock))
    return list(loop.frames(len(work))), source, screen, loop


def indices(screen: Screen) -> list[int]:
    return [int(frame.pixels[0, 0, 0]) for frame in screen.frames]


def test_every_frame_is_shown_once_in_order_with_the_record_of_its_own_input(world: World) -> None:
    commands = [Command({"turn_left"}), Command({"attack"}), Command(), Command({"turn_right", "attack"})]
    records, source, screen, loop = run(world, [0.5] * 4, commands=commands)
    assert indices(screen) == [1, 2, 3, 4] == [r.index for r in records] == [r.id for r in records]
    assert [int(f.pixels[0, 1, 0]) for f in screen.frames] == [1, 4, 0, 6]
    assert [r.input_id for r in records] == [1, 2, 3, 4] and len(source.read_s) == 4
    assert loop.session.index == loop.presented == 4


def test_a_frame_is_presented_when_the_next_one_begins(world: World) -> None:
    records, source, screen, _ = run(world, [0.9] * 6, present=0.9)
    assert screen.began_s[:-1] == pytest.approx(source.read_s[1:])
    assert np.diff(source.read_s) * 1000 == pytest.approx([BUDGET_MS] * 5)
    assert not any(r.late for r in records)  # in one stage each of them would be


def test_stages_of_a_thread_meet_end_to_end_however_late_it_begins_and_however_soon_it_is_done(world: World) -> None:
    """As on a busy machine: the thread gets its turn 6 ms after the job was given, and the loop the next one only after
    the job is done. Else a trace would show two things at once on one track."""
    clock, profiler = FakeClock(), Profiler()

    class Busy(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            clock.spend(0.006)
            done: Future[Any] = Future()
            done.set_result(fn(*args, **kwargs))
            clock.spend(0.001)
            return done
    engine = TimedEngine(world, clock, [0.005] * 4)
    FrameLoop(Session(world, engine), Script(clock), Screen(clock, 0.002), BUDGET_MS, clock=clock, profiler=profiler,
              compute=Busy()).run(4)
    for track in {span.track for span in profiler.spans}:
        spans = sorted((span for span in profiler.spans if span.track == track), key=lambda s: (s.start_s, s.stop_s))
        assert len(spans) >= 4 and all(a.stop_s <= b.start_s for a, b in pairwise(spans))


def test_the_price_is_a_budget_of_latency_and_it_is_told(world: World) -> None:
    profiler = Profiler()
    records, _, _, _ = run(world, [0.25] * 6, present=0.1, profiler=profiler)
    assert [r.latency_ms for r in records] == pytest.approx([1.1 * BUDGET_MS] * 6)
    assert [r.waited_ms for r in records] == pytest.approx([0.75 * BUDGET_MS] * 6)
    assert profiler.summary()["wait"]["p50_ms"] == pytest.approx(0.75 * BUDGET_MS)
    assert profiler.summary()["frame"]["p50_ms"] == pytest.approx(1.1 * BUDGET_MS)


@settings(deadline=None, max_examples=100)
@given(work=WORK, late=st.sampled_from(["slow", "repeat", "degrade"]), present=st.sampled_from([0.0, 0.4, 1.0]))
def test_late_frames_are_exactly_those_not_ready_when_the_next_was_due(world: World, work: list[float], late: str,
                                                                       present: float) -> None:
    records, source, _, loop = run(world, work, late, present)
    assert [r.late for r in records] == [share > 1.0 for share in work]
    assert loop.late_frames == sum(share > 1.0 for share in work)
    assert (np.diff(source.read_s) * 1000 >= BUDGET_MS - 1e-6).all()  # never a burst
    if late != "slow":
        beats = (np.array(source.read_s) - source.read_s[0]) * 1000 / BUDGET_MS
        assert beats == pytest.approx(np.rint(beats), abs=1e-6)


@pytest.mark.parametrize("late", ["slow", "repeat"])
def test_a_step_of_twice_the_budget_keeps_the_latency_and_builds_no_queue(world: World, late: str) -> None:
    records, source, screen, _ = run(world, [2.0] * 250, late, present=0.2)
    assert np.percentile([r.latency_ms for r in records], 99) < 2 * BUDGET_MS + BUDGET_MS
    assert indices(screen) == list(range(1, 251))
    assert np.diff(source.read_s) * 1000 == pytest.approx([2 * BUDGET_MS] * 249)


def test_one_slow_frame_and_a_stalled_window_are_late_once_each(world: World) -> None:
    records, _, _, _ = run(world, [0.5] * 5 + [4.2] + [0.5] * 10, "repeat")
    assert [(r.id, r.repeats) for r in records if r.late] == [(6, 4)]
    clock = FakeClock()
    screen = Screen(clock)
    loop = FrameLoop(Session(world, TimedEngine(world, clock)), Script(clock), screen, BUDGET_MS, "repeat", clock,
                     compute=FakeThread(clock))
    found = []
    for record in loop.frames(12):
        screen.present_s = 0.13 if record.id == 4 else 0.0  # the fifth is 6.5 budgets on its way to the screen
        found.append((record.id, record.late, record.repeats))
    assert [(number, repeats) for number, late, repeats in found if late] == [(6, 6)]  # the one that had to wait for it


def test_ten_thousand_sleeps_that_wake_late_do_not_drift(world: World) -> None:
    _, source, _, loop = run(world, [0.3] * 10_000, jitter_s=0.002)
    assert source.read_s[-1] - source.read_s[1] == pytest.approx(9_998 * BUDGET_MS / 1000, abs=1e-6)
    assert loop.late_frames == 0


@pytest.mark.parametrize("jump", [5000.0, -5000.0])
def test_a_clock_that_jumps_costs_at_most_one_frame(world: World, jump: float) -> None:
    _, source, screen, loop = run(world, [0.3] * 4 + [jump] + [0.3] * 10)
    assert np.diff(source.read_s)[6:] * 1000 == pytest.approx([BUDGET_MS] * 8, abs=1e-3)
    assert loop.late_frames <= 1 and indices(screen) == list(range(1, 16))


def test_a_pause_shows_the_frame_on_its_way_then_holds(world: World) -> None:
    still = Command(advance=False)
    records, source, screen, loop = run(world, [0.5] * 3, commands=[Command(), still, still, still, Command()])
    assert indices(screen) == [1, 2, 3] and screen.holds == 2 and loop.session.index == 3
    assert [r.input_id for r in records] == [1, 5, 6]
    assert np.diff(source.read_s) * 1000 == pytest.approx([BUDGET_MS] * 5)


def test_stop_shows_the_frame_on_its_way_and_makes_no_other(world: World) -> None:
    clock = FakeClock()
    source, screen = Script(clock, [Command(), Command(), Command(stop=True)]), Screen(clock)
    loop = FrameLoop(Session(world, TimedEngine(world, clock)), source, screen, BUDGET_MS, clock=clock,
                     compute=FakeThread(clock))
    loop.run()
    assert indices(screen) == [1, 2] and loop.session.index == 2


def test_without_a_budget_the_slower_stage_sets_the_pace(world: World) -> None:
    _, source, _, _ = run(world, [1.0] * 5, present=3.0, budget_ms=None)
    assert np.diff(source.read_s)[1:] * 1000 == pytest.approx([3 * BUDGET_MS] * 3)


def test_an_unknown_action_and_a_broken_engine_come_through(world: World) -> None:
    with pytest.raises(ActionError, match="fly"):
        run(world, [0.5] * 3, commands=[Command(), Command({"fly"})])
    clock = FakeClock()
    engine = TimedEngine(world, clock)
    loop = FrameLoop(Session(world, engine), Script(clock), Screen(clock), BUDGET_MS, clock=clock,
                     compute=FakeThread(clock))

    def broken(state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        raise ZeroDivisionError
    engine.step = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        loop.run(3)


# -- a thread, the machine's clock, a real engine ------------------------------------------------------


class Recorder:
    """A sink that notes which thread it is called on, and looks at the engine meanwhile."""

    def __init__(self, other: Session) -> None:
        self.other, self.pixels, self.threads = other, list[bytes](), set[int]()

    def present(self, frame: Frame) -> None:
        self.threads.add(threading.get_ident())
        self.pixels.append(frame.pixels.tobytes())
        self.other.step()  # another player of the same engine, at the same time

    def hold(self) -> None:
        raise AssertionError("nothing pauses here")


def test_two_threads_make_the_frames_of_one_and_the_log_replays(world: World, folder: Path, tmp_path: Path) -> None:
    frames = 60
    with ThreadPoolExecutor(1) as compute, Session(world, threads=1, seed=3) as session, \
            ActionLog(tmp_path / "log", session, 0) as log:
        recorder = Recorder(session.branch())

        class Both(Recorder):
            def present(self, frame: Frame) -> None:
                recorder.present(frame)
                log.present(frame)
        loop = FrameLoop(session, ScriptedSource(world.spec.actions, seed=1), Both(recorder.other), 1.0, "repeat",
                         SystemClock(), monitor=DriftMonitor(session.engine), compute=compute)
        for shown in loop.frames(frames):
            log.write(shown)
    assert recorder.threads == {threading.get_ident()}
    with Session(world, threads=1, seed=3) as straight, Session(world, straight.engine, seed=3) as beside:
        keys = ScriptedSource(world.spec.actions, seed=1)
        assert [straight.step(keys.read().action).pixels.tobytes() for _ in range(frames)] == recorder.pixels
        for _ in range(frames):
            beside.step()
        assert (beside.latent == recorder.other.latent).all()
    report = replay_log(str(tmp_path / "log"), verify=True, world=str(folder))
    assert report["equal"] and report["frames"] == frames + 1
