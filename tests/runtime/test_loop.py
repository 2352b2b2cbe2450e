"""The frame loop, in time that the tests own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from clocks import FakeClock, TimedEngine
from hypothesis import given, settings, strategies as st
from worlds import tiny_world

from dreamloop.models.core.errors import ActionError, DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime.loop import Command, FrameLoop, Presented
from dreamloop.runtime.pace import LATE, PATIENCE_FRAMES
from dreamloop.runtime.profiler import Profiler
from dreamloop.runtime.session import Frame, Session

BUDGET_MS = 20.0
WORK = st.lists(st.sampled_from([0.0, 0.5, 0.99, 1.0, 1.01, 1.5, 2.0, 3.7, 12.0]), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


class Script:
    """Reads prepared commands, then no input for ever; notes when it was asked."""

    def __init__(self, clock: FakeClock, commands: Sequence[Command] = ()) -> None:
        self.clock, self.commands, self.read_s = clock, list(commands), list[float]()

    def read(self) -> Command:
        self.read_s.append(self.clock.now())
        return self.commands.pop(0) if self.commands else Command()


class Screen:
    """Keeps what was presented, and when; presenting takes `present_s`."""

    def __init__(self, clock: FakeClock, present_s: float = 0.0) -> None:
        self.clock, self.present_s, self.holds = clock, present_s, 0
        self.frames: list[Frame] = []
        self.shown_s: list[float] = []

    def present(self, frame: Frame) -> None:
        self.clock.spend(self.present_s)
        self.frames.append(frame)
        self.shown_s.append(self.clock.now())

    def hold(self) -> None:
        self.holds += 1


def run(world: World, work: Sequence[float], late: str = "slow", jitter_s: float = 0.0,
        budget_ms: float | None = BUDGET_MS) -> tuple[list[Presented], Script, Screen, FrameLoop]:
    """Frames whose steps take `work` budgets each."""
    clock = FakeClock(jitter_s)
    engine = TimedEngine(world, clock, [share * BUDGET_MS / 1000 for share in work])
    source, screen = Script(clock), Screen(clock)
    loop = FrameLoop(Session(world, engine), source, screen, budget_ms, late, clock)
    return list(loop.frames(len(work))), source, screen, loop


def test_the_frame_shown_is_the_frame_just_made_from_the_input_just_read(world: World) -> None:
    clock = FakeClock()
    commands = [Command({"turn_left"}), Command({"attack"}), Command(), Command({"turn_right", "attack"})]
    screen = Screen(clock)
    loop = FrameLoop(Session(world, TimedEngine(world, clock)), Script(clock, commands), screen, BUDGET_MS, clock=clock)
    records = list(loop.frames(4))
    assert [int(f.pixels[0, 0, 0]) for f in screen.frames] == [1, 2, 3, 4] == [r.index for r in records]
    assert [int(f.pixels[0, 1, 0]) for f in screen.frames] == [1, 4, 0, 6]
    assert [r.input_id for r in records] == [1, 2, 3, 4] == [r.id for r in records]


def test_input_is_read_after_the_wait_and_right_before_the_step(world: World) -> None:
    _, source, screen, _ = run(world, [0.5] * 5)
    for read, shown in zip(source.read_s, screen.shown_s, strict=True):
        assert shown - read == pytest.approx(0.5 * BUDGET_MS / 1000)


def test_latency_is_from_reading_the_input_to_the_end_of_presenting(world: World) -> None:
    clock = FakeClock()
    session = Session(world, TimedEngine(world, clock, [0.003, 0.004], decode_s=0.002))
    loop = FrameLoop(session, Script(clock), Screen(clock, 0.001), BUDGET_MS, clock=clock)
    records = list(loop.frames(2))
    assert [r.latency_ms for r in records] == pytest.approx([6.0, 7.0])
    assert [r.made_ms for r in records] == pytest.approx([5.0, 6.0])
    assert [r.interval_ms for r in records] == pytest.approx([0.0, 21.0])


def test_ten_thousand_sleeps_that_wake_late_do_not_drift(world: World) -> None:
    _, source, _, loop = run(world, [0.3] * 10_000, jitter_s=0.002)
    assert source.read_s[-1] - source.read_s[1] == pytest.approx(9_998 * BUDGET_MS / 1000, abs=1e-6)
    assert loop.late_frames == 0


@settings(deadline=None, max_examples=100)
@given(work=WORK, late=st.sampled_from(["slow", "repeat"]))
def test_late_frames_are_exactly_those_shown_after_the_next_was_due(world: World, work: list[float], late: str) -> None:
    records, _, _, loop = run(world, work, late)
    assert [r.late for r in records] == [share > 1.0 for share in work]
    assert loop.late_frames == sum(share > 1.0 for share in work)
    assert loop.presented == len(work)


@settings(deadline=None, max_examples=100)
@given(work=WORK, late=st.sampled_from(["slow", "repeat"]))
def test_a_stall_is_never_made_up_for_with_a_burst(world: World, work: list[float], late: str) -> None:
    _, source, _, _ = run(world, work, late)
    assert (np.diff(source.read_s) * 1000 >= BUDGET_MS - 1e-6).all()


@settings(deadline=None, max_examples=100)
@given(work=WORK)
def test_slow_goes_on_at_once_after_a_late_frame(world: World, work: list[float]) -> None:
    _, source, _, loop = run(world, work, "slow")
    gaps_ms = np.diff(source.read_s) * 1000
    assert gaps_ms == pytest.approx([max(share, 1.0) * BUDGET_MS for share in work[:-1]], abs=1e-6)
    assert loop.repeated_frames == 0


@settings(deadline=None, max_examples=100)
@given(work=WORK)
def test_repeat_keeps_the_beat_and_counts_every_missed_deadline(world: World, work: list[float]) -> None:
    records, source, _, loop = run(world, [*work, 0.0], "repeat")
    beats = (np.array(source.read_s) - source.read_s[0]) * 1000 / BUDGET_MS
    assert beats == pytest.approx(np.rint(beats), abs=1e-6)
    assert loop.repeated_frames == sum(r.repeats for r in records) == round(beats[-1]) - len(work)


@settings(deadline=None, max_examples=100)
@given(work=WORK)
def test_degrade_keeps_the_beat_and_every_frame_of_the_world(world: World, work: list[float]) -> None:
    """The tiny world's window of 4 can be halved once. Decoding takes a quarter of the budget, a short view half of
    the step: a frame that leaves something out is that much shorter."""
    clock = FakeClock()
    engine = TimedEngine(world, clock, [share * BUDGET_MS / 1000 for share in work], BUDGET_MS / 4000, short=0.5)
    source, screen = Script(clock), Screen(clock)
    loop = FrameLoop(Session(world, engine), source, screen, BUDGET_MS, "degrade", clock)
    records = list(loop.frames(len(work)))
    late_before = skipped_before = short_before = False
    for record, share in zip(records, work, strict=True):
        short = record.view_frames is not None
        assert short or not short_before or record.id > PATIENCE_FRAMES  # a shorter view stays for a while
        assert short >= late_before  # the first answer to a late frame
        assert record.decoded != (late_before and short_before and not skipped_before)  # the second, not twice in a row
        cost = share * (0.5 if short else 1) + (0.25 if record.decoded else 0)
        assert record.made_ms == pytest.approx(cost * BUDGET_MS) and record.late == (cost > 1 + 1e-9)
        assert record.degraded == (short or not record.decoded)
        late_before, skipped_before, short_before = record.late, not record.decoded, short
    assert [r.index for r in records] == list(range(1, len(work) + 1))  # the world misses no frame
    assert len(screen.frames) == sum(r.decoded for r in records) and len(screen.frames) + screen.holds == len(work)
    assert loop.degraded_frames == sum(r.degraded for r in records)
    beats = (np.array(source.read_s) - source.read_s[0]) * 1000 / BUDGET_MS
    assert beats == pytest.approx(np.rint(beats), abs=1e-6)


def test_an_overload_that_half_a_view_cures_costs_one_late_frame_and_seldom_another(world: World) -> None:
    """A step of 1.2 budgets, 0.6 with a short view: each trial of the whole view waits twice as long."""
    clock = FakeClock()
    engine = TimedEngine(world, clock, [1.2 * BUDGET_MS / 1000] * 2000, short=0.5)
    loop = FrameLoop(Session(world, engine), Script(clock), Screen(clock), BUDGET_MS, "degrade", clock)
    late = [record.id for record in loop.frames(2000) if record.late]
    assert late[:3] == [1, 1 + 36, 37 + 71] and len(late) <= 8
    assert all(view in (None, 2) for view in engine.views)


def test_a_jump_is_always_shown(world: World) -> None:
    clock = FakeClock()
    source, screen = Script(clock, [Command(), Command(reset=1), Command()]), Screen(clock)
    session = Session(world, TimedEngine(world, clock, [0.05, 0.0]))
    records = list(FrameLoop(session, source, screen, BUDGET_MS, "degrade", clock).frames(3))
    assert [r.late for r in records] == [True, False, False] and all(r.decoded for r in records)
    assert [r.view_frames for r in records] == [None, None, 2]
    assert (screen.frames[1].pixels == world.starts[1]).all()


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("jump_s", [3600.0, 0.3, -0.3, -3600.0])
def test_a_clock_that_jumps_costs_at_most_one_frame(world: World, late: str, jump_s: float) -> None:
    """As when a lid was closed, or a clock was set: neither a burst nor a long wait afterwards."""
    clock = FakeClock()
    source, screen = Script(clock), Screen(clock)
    step_s = 0.3 * BUDGET_MS / 1000
    engine = TimedEngine(world, clock, [step_s] * 4 + [step_s + jump_s] + [step_s] * 20)
    loop = FrameLoop(Session(world, engine), source, screen, BUDGET_MS, late, clock)
    loop.run(25)
    gaps_ms = np.diff(source.read_s) * 1000
    assert gaps_ms[5:] == pytest.approx([BUDGET_MS] * 19, abs=1e-3)
    assert loop.late_frames == (jump_s > 0) and gaps_ms[4] <= 1000 * max(jump_s, 0) + 2 * BUDGET_MS
    assert loop.repeated_frames == (0 if late == "slow" or jump_s < 0 else round(gaps_ms[4] / BUDGET_MS) - 1)


def test_a_stalled_window_is_late_once_and_the_beat_goes_on(world: World) -> None:
    clock = FakeClock()
    source, screen = Script(clock), Screen(clock)
    loop = FrameLoop(Session(world, TimedEngine(world, clock)), source, screen, BUDGET_MS, "repeat", clock)
    records = []
    for record in loop.frames(20):
        records.append(record)
        screen.present_s = 0.55 if record.id == 9 else 0.0  # as when a window is dragged
    assert [r.id for r in records if r.late] == [10] and loop.repeated_frames == records[9].repeats == 27
    beats = (np.array(source.read_s) - source.read_s[0]) * 1000 / BUDGET_MS
    assert beats == pytest.approx(np.rint(beats), abs=1e-6) and round(beats[-1]) == 19 + 27


@pytest.mark.parametrize("late", ["slow", "repeat"])
def test_a_step_of_twice_the_budget_keeps_the_latency_and_builds_no_queue(world: World, late: str) -> None:
    records, source, screen, _ = run(world, [2.0] * 500, late)
    latency_ms = [r.latency_ms for r in records]
    assert np.percentile(latency_ms, 99) < 2 * BUDGET_MS + BUDGET_MS
    assert [int(f.pixels[0, 0, 0]) for f in screen.frames] == [i % 256 for i in range(1, 501)]  # every frame is shown
    assert np.diff(source.read_s) * 1000 == pytest.approx([2 * BUDGET_MS] * 499)


def test_without_a_budget_nothing_waits_and_nothing_is_late(world: World) -> None:
    records, source, _, loop = run(world, [0.1, 5.0, 0.1], budget_ms=None)
    assert np.diff(source.read_s) * 1000 == pytest.approx([2.0, 100.0])
    assert loop.late_frames == 0 and not any(r.late for r in records)


def test_a_pause_holds_the_picture_at_the_same_pace_and_makes_no_frame(world: World) -> None:
    clock = FakeClock()
    paused = Command({"attack"}, advance=False)
    source, screen = Script(clock, [Command(), paused, paused, paused, Command()]), Screen(clock)
    session = Session(world, TimedEngine(world, clock))
    records = list(FrameLoop(session, source, screen, BUDGET_MS, clock=clock).frames(2))
    assert (session.index, screen.holds, len(screen.frames)) == (2, 3, 2)
    assert np.diff(source.read_s) * 1000 == pytest.approx([BUDGET_MS] * 4)
    assert [r.input_id for r in records] == [1, 5]
    assert records[1].interval_ms == pytest.approx(BUDGET_MS)


def test_reset_shows_the_start_as_frame_zero(world: World) -> None:
    clock = FakeClock()
    source, screen = Script(clock, [Command(), Command(), Command(reset=1)]), Screen(clock)
    loop = FrameLoop(Session(world, TimedEngine(world, clock)), source, screen, BUDGET_MS, clock=clock)
    records = list(loop.frames(4))
    assert [r.index for r in records] == [1, 2, 0, 1]
    assert [r.start for r in records] == [None, None, 1, None]
    assert (screen.frames[2].pixels == world.starts[1]).all()


def test_stop_makes_no_further_frame(world: World) -> None:
    clock = FakeClock()
    session = Session(world, TimedEngine(world, clock))
    FrameLoop(session, Script(clock, [Command(), Command(stop=True)]), Screen(clock), BUDGET_MS, clock=clock).run()
    assert session.index == 1


def test_an_unknown_action_leaves_the_session_where_it_was(world: World) -> None:
    clock = FakeClock()
    session = Session(world, TimedEngine(world, clock))
    loop = FrameLoop(session, Script(clock, [Command(), Command({"fly"})]), Screen(clock), BUDGET_MS, clock=clock)
    with pytest.raises(ActionError, match=r"fly.*turn_left, turn_right, attack"):
        loop.run(2)
    assert (session.index, loop.presented) == (1, 1)


def test_stages_of_a_frame_meet_end_to_end(world: World) -> None:
    clock, profiler = FakeClock(), Profiler()
    session = Session(world, TimedEngine(world, clock, [0.004] * 3, decode_s=0.002))
    FrameLoop(session, Script(clock, [Command(), Command(reset=0)]), Screen(clock, 0.001), BUDGET_MS, clock=clock,
              profiler=profiler).run(3)
    assert [s.stage for s in profiler.spans if s.frame == 1] == ["input", "dynamics", "decode", "present"]
    assert [s.stage for s in profiler.spans if s.frame == 2] == ["input", "reset", "decode", "present"]
    one = [s for s in profiler.spans if s.frame == 3]
    assert all(a.stop_s == b.start_s for a, b in pairwise(one))
    assert profiler.summary()["dynamics"]["p50_ms"] == pytest.approx(4.0)


def test_a_profiler_costs_no_reading_of_the_clock_and_one_span_for_each_stage(world: World) -> None:
    """So that its price is that of noting the spans, which `Profiler.cost_ms` measures."""
    readings = []
    for profiler in (None, Profiler()):
        clock = FakeClock()
        session = Session(world, TimedEngine(world, clock))
        loop = FrameLoop(session, Script(clock), Screen(clock), BUDGET_MS, clock=clock, profiler=profiler)
        before, now = 0, clock.now

        def counted() -> float:
            nonlocal before
            before += 1
            return now()  # noqa: B023
        clock.now = counted  # type: ignore[method-assign]
        loop.run(50)
        readings.append(before)
    assert readings[0] == readings[1]
    assert profiler is not None and len(profiler.spans) == 50 * 4


@pytest.mark.parametrize("options", [{"late": "later"}, {"budget_ms": 0.0}, {"budget_ms": float("nan")}])
def test_an_impossible_contract_is_refused(world: World, options: dict[str, object]) -> None:
    clock = FakeClock()
    with pytest.raises(DreamloopError, match=next(iter(options))):
        FrameLoop(Session(world, TimedEngine(world, clock)), Script(clock), Screen(clock),
                  **options)  # type: ignore[arg-type]


def test_a_world_folder_is_all_a_loop_needs(tmp_path: Path) -> None:
    """The system's clock and a real engine, three frames."""
    world = tiny_world(tmp_path)
    clock = FakeClock()
    screen = Screen(clock)
    with Session(world) as session:
        FrameLoop(session, Script(clock), screen, budget_ms=1.0).run(3)
    assert [frame.index for frame in screen.frames] == [1, 2, 3]
