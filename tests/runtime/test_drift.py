"""Injected faults raise an alarm, and nothing that is not finite reaches a screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import FakeClock, Screen
from hypothesis import given, settings, strategies as st
from worlds import random_frames, random_weights, tiny_spec, tiny_world

from dreamloop.demos.action_log import ActionLog
from dreamloop.demos.replay import replay_log
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.models.core.memory import slot_of
from dreamloop.models.core.world import World, load_world, save_world, zoo_names
from dreamloop.runtime import DriftMonitor, Engine, FaultError, FrameLoop, Session, engine_status, open_engine
from dreamloop.runtime.drift import CANARY_EVERY_FRAMES
from dreamloop.runtime.engines import AUTO_ORDER

HEALTHY_FRAMES, ALARM_WITHIN_FRAMES = 45, 60


def steady_world(folder: Path) -> World:
    """A tiny world whose frames change little, so that it stays where its start frames are."""
    spec = tiny_spec()
    weights = random_weights(spec)
    for name in ("dynamics.output.weight", "dynamics.output.bias"):
        weights[name] *= 0.02
    return save_world(folder, spec, weights, random_frames(spec, 3), "# steady\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return steady_world(tmp_path_factory.mktemp("world"))


def looped(session: Session, monitor: DriftMonitor | None = None) -> tuple[FrameLoop, Screen]:
    clock = FakeClock()
    screen, source = Screen(clock), ScriptedSource(session.world.spec.actions, seed=2)
    return FrameLoop(session, source, screen, clock=clock, monitor=monitor), screen


def after_step(engine: Engine, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], None]) -> None:
    """From now on `fault` is done to the state after every step."""
    step = engine.step

    def faulty(state: Any, actions: np.ndarray, *view: Any) -> None:
        step(state, actions, *view)
        fault(state)
    monkeypatch.setattr(engine, "step", faulty)


def into_the_wrong_slot(state: Any, world: World) -> None:
    spec, stride = world.spec, world.spec.tokens_padded
    own = slot_of(spec.memory, int(state.frame[0])) * stride
    other = (own + stride) % (spec.memory.slots * stride)
    state.ring[:, :, :, :, other : other + stride] = state.ring[:, :, :, :, own : own + stride]
    state.ring[:, :, :, :, own : own + stride] = 0


def test_a_healthy_dream_raises_no_alarm(world: World, engine: Engine) -> None:
    with Session(world, engine) as session:
        monitor = DriftMonitor(engine)
        loop, _ = looped(session, monitor)
        assert [shown.alarms for shown in loop.frames(2 * HEALTHY_FRAMES)] == [()] * 2 * HEALTHY_FRAMES
        assert monitor.values.keys() == {"mean", "spread", "saturation", "motion", "key_norm", "canary"}
        assert monitor.values["canary"] == 0


@pytest.mark.skipif(not engine_status("native").available, reason="the kernels are not built")
def test_keys_in_int8_are_watched_as_well(world: World) -> None:
    with Session(world, "native", "int8") as session:
        monitor = DriftMonitor(session.engine)
        loop, _ = looped(session, monitor)
        assert [shown.alarms for shown in loop.frames(HEALTHY_FRAMES)] == [()] * HEALTHY_FRAMES
        exact = np.sqrt(session.world.spec.dynamics.head_size)
        assert 0.3 * exact < monitor.values["key_norm"] < 3 * exact


def test_a_world_that_does_drift_is_noticed(tmp_path: Path) -> None:
    """The plain tiny world: its latents walk away from its start frames."""
    with Session(tiny_world(tmp_path), "onnxruntime", threads=1) as session:
        monitor = DriftMonitor(session.engine)
        loop, _ = looped(session, monitor)
        loop.run(ALARM_WITHIN_FRAMES)
        assert {alarm.statistic for alarm in monitor.alarms} == {"mean", "spread", "saturation"}
        assert monitor.count == len(monitor.alarms) == 3  # one each, however long it lasts


def test_jumps_of_the_session_are_no_drift(world: World, engine: Engine) -> None:
    with Session(world, engine) as session:
        monitor = DriftMonitor(engine)
        loop, _ = looped(session, monitor)
        for move in (lambda: session.rewind(3), lambda: session.reset(1), lambda: session.rewind(0)):
            loop.run(7)
            move()
            monitor.forget()
        loop.run(7)
        assert monitor.count == 0 and not monitor.alarms


def first_alarm(loop: FrameLoop) -> tuple[int, str]:
    """(frames from the fault to the alarm, the alarm)."""
    for count, shown in enumerate(loop.frames(ALARM_WITHIN_FRAMES), start=1):
        if shown.alarms:
            return count, shown.alarms[0]
    raise AssertionError("no alarm")


def test_a_wrong_slot_raises_an_alarm_at_once(world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(world, engine) as session:
        loop, _ = looped(session, DriftMonitor(engine, canary_every_frames=0))
        loop.run(HEALTHY_FRAMES)
        after_step(engine, monkeypatch, lambda state: into_the_wrong_slot(state, world))
        count, text = first_alarm(loop)
        assert count == 1 and "slots" in text


SCALED = ["output.weight", "blocks.0.qkv.weight", "blocks.1.down.weight", "modulation.weight", "blocks.1.key_norm"]


@pytest.mark.parametrize("name", SCALED)
def test_scaled_weights_raise_an_alarm_within_sixty_frames(world: World, name: str) -> None:
    if not engine_status("torch").available:
        pytest.skip("torch is not installed: its weights can be changed while it plays")
    import torch
    engine: Any = open_engine(world, "torch", threads=1)
    with Session(world, engine) as session:
        loop, _ = looped(session, DriftMonitor(engine))
        loop.run(HEALTHY_FRAMES)
        with torch.no_grad():
            dict(engine.dynamics.named_parameters())[name].mul_(1.3)
        count, _ = first_alarm(loop)
        assert count <= ALARM_WITHIN_FRAMES


def test_statistics_alone_notice_an_output_that_is_scaled(world: World) -> None:
    if not engine_status("torch").available:
        pytest.skip("torch is not installed: its weights can be changed while it plays")
    import torch
    engine: Any = open_engine(world, "torch", threads=1)
    with Session(world, engine) as session:
        monitor = DriftMonitor(engine, canary_every_frames=0)
        loop, _ = looped(session, monitor)
        loop.run(HEALTHY_FRAMES)
        with torch.no_grad():
            engine.dynamics.output.weight.mul_(60.0)
        first_alarm(loop)
        assert monitor.alarms[0].statistic in ("mean", "spread", "saturation", "motion")


# -- the worlds that ship ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=zoo_names())
def shipped(request: pytest.FixtureRequest) -> Engine:
    world = load_world(request.param)
    return open_engine(world, next(name for name in AUTO_ORDER if engine_status(name).available), threads=1)


def with_weights_scaled(engine: Engine, name: str, factor: float) -> Callable[..., None]:
    """The step of an engine like this one whose weights are not the world's."""
    weights = {**engine.world.weights, name: engine.world.weights[name] * np.float32(factor)}
    return open_engine(dataclasses.replace(engine.world, weights=weights), engine.name, threads=1).step


def watched(engine: Engine, canary_every_frames: int = CANARY_EVERY_FRAMES) -> tuple[FrameLoop, DriftMonitor]:
    monitor = DriftMonitor(engine, canary_every_frames=canary_every_frames)
    return looped(Session(engine.world, engine), monitor)[0], monitor


def test_a_shipped_world_dreams_without_an_alarm(shipped: Engine) -> None:
    loop, monitor = watched(shipped)
    loop.run(120)
    assert [alarm.text for alarm in monitor.alarms] == []


@pytest.mark.long
def test_a_shipped_world_dreams_for_minutes_without_an_alarm(shipped: Engine) -> None:
    for start in range(len(shipped.world.starts)):
        session, monitor = Session(shipped.world, shipped, seed=start, start=start), DriftMonitor(shipped)
        looped(session, monitor)[0].run(2000)
        assert [alarm.text for alarm in monitor.alarms] == []


@pytest.mark.parametrize("name", ["output.weight", "blocks.0.qkv.weight", "blocks.1.down.weight"])
def test_a_shipped_world_with_weights_a_twentieth_too_large_alarms_in_time(shipped: Engine, name: str,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _ = watched(shipped)
    loop.run(HEALTHY_FRAMES)
    monkeypatch.setattr(shipped, "step", with_weights_scaled(shipped, f"dynamics.{name}", 1.05))
    assert first_alarm(loop)[0] <= ALARM_WITHIN_FRAMES


def test_a_shipped_world_that_runs_wild_alarms_by_its_statistics_alone(shipped: Engine,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    loop, monitor = watched(shipped, canary_every_frames=0)
    loop.run(HEALTHY_FRAMES)
    monkeypatch.setattr(shipped, "step", with_weights_scaled(shipped, "dynamics.output.weight", 3.0))
    first_alarm(loop)
    assert monitor.alarms[0].statistic in monitor.bounds.ranges


def test_a_shipped_world_alarms_at_a_wrong_slot_and_at_what_is_not_finite(shipped: Engine,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    for fault, statistic in ((lambda state: into_the_wrong_slot(state, shipped.world), "slots"), (poison, "finite")):
        loop, monitor = watched(shipped)
        loop.run(30)
        with monkeypatch.context() as patch:
            after_step(shipped, patch, fault)
            assert first_alarm(loop)[0] == 1 and monitor.alarms[0].statistic == statistic


# -- what is not finite --------------------------------------------------------------------------------


def poison(state: Any) -> None:
    state.latent[0, 0, 0, 0] = np.nan
    state.ring[...] = float("nan")


def test_a_session_refuses_a_frame_that_is_not_finite_and_stays(world: World, engine: Engine,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(world, engine) as session, Session(world, engine) as straight:
        for _ in range(12):
            session.step({"attack"})
            straight.step({"attack"})
        shown = session.render()
        with monkeypatch.context() as patch:
            after_step(engine, patch, lambda state: state.latent.__setitem__(..., np.inf))
            for _ in range(3):
                with pytest.raises(FaultError, match="frame 13 is not finite; frame 12 stays"):
                    session.step({"turn_left"})
        again = session.render()
        assert (again.index, again.pixels.tobytes()) == (12, shown.pixels.tobytes())
        for _ in range(12):
            assert (session.step({"turn_left"}).pixels == straight.step({"turn_left"}).pixels).all()


def test_rewinding_heals_a_ring_that_was_damaged(world: World, engine: Engine,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(world, engine) as session, Session(world, engine) as straight:
        for _ in range(13):
            session.step({"attack"})
        with monkeypatch.context() as patch:
            after_step(engine, patch, poison)
            with pytest.raises(FaultError):
                session.step()
        with pytest.raises(FaultError):
            session.step()  # the other slots are still poisoned
        session.rewind(2)
        for _ in range(11):
            straight.step({"attack"})
        assert (session.step().pixels == straight.step().pixels).all()


@settings(deadline=None, max_examples=10)
@given(faults=st.sets(st.integers(0, 24), max_size=12))
def test_the_loop_shows_the_last_good_frame_and_counts(world: World, faults: set[int]) -> None:
    """At every moment the screen shows what a run without the faulty frames shows."""
    engine = open_engine(world, "onnxruntime", threads=1)
    step, calls = engine.step, iter(range(25))

    def faulty(state: Any, actions: np.ndarray, *view: Any) -> None:
        step(state, actions, *view)
        if next(calls) in faults:
            state.latent[...] = np.nan
    engine.step = faulty  # type: ignore[method-assign]
    with Session(world, engine) as session, Session(world, "onnxruntime", threads=1) as straight:
        loop, screen = looped(session)
        last = session.render().pixels
        for number, shown in enumerate(loop.frames(25)):
            if number not in faults:
                last = straight.step(shown.action).pixels
            assert bool(shown.fault) == (number in faults)
            assert (screen.frames[-1].pixels == last).all()
        assert loop.held_frames == len(faults) and loop.presented == 25


@pytest.fixture
def log_path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"


def test_an_alarm_reanchors_where_asked_and_the_log_replays(world: World, log_path: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(world, "onnxruntime", threads=1)
    with Session(world, engine, start=1) as session, ActionLog(log_path, session, 1) as log:
        monitor = DriftMonitor(engine, reanchor=True)
        source = ScriptedSource(world.spec.actions, seed=2)
        loop = FrameLoop(session, source, log, clock=FakeClock(), monitor=monitor)
        with monkeypatch.context() as patch:
            records = []
            for shown in loop.frames(20):
                log.write(shown)
                records.append(shown)
                if shown.id == 9:
                    after_step(engine, patch, lambda state: state.latent.fill(np.nan))
                if shown.id == 10:
                    patch.undo()
        assert [bool(r.fault) for r in records] == [i == 10 for i in range(1, 21)]
        assert [r.start for r in records] == [None] * 10 + [1] + [None] * 9
        assert [alarm.statistic for alarm in monitor.alarms] == ["finite"] and session.index == 9
    steady_world(tmp_path / "tiny")
    report = replay_log(str(log_path), verify=True, world=str(tmp_path / "tiny"))
    assert report["equal"] and report["frames"] == 21
