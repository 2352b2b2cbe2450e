"""Shorter views at play, on every engine: the same approximation, repeated by rewind, branch and log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clocks import FakeClock
from oracle import FLOOR, max_difference, moved, play, random_actions, start
from worlds import tiny_world

from dreamloop.demos.action_log import ActionLog
from dreamloop.demos.replay import replay_log
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.demos.sinks import NoSink, Sinks
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime import Command, Engine, FrameLoop, Session, engine_status, open_engine
from dreamloop.runtime.engines import ENGINE_NAMES
from dreamloop.runtime.engines.torch_engine import TorchEngine

AVAILABLE = [name for name in ENGINE_NAMES if engine_status(name).available]
VIEWS = (None, 2, None, 3, 3, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world") / "tiny"


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return tiny_world(folder)


@pytest.fixture(scope="module", params=AVAILABLE)
def engine(request: pytest.FixtureRequest, world: World) -> Engine:
    return open_engine(world, request.param, threads=1)


@pytest.mark.parametrize("view_frames", [2, 3])
def test_every_engine_makes_the_same_of_a_shorter_view(world: World, engine: Engine, view_frames: int) -> None:
    exact, plain = TorchEngine(world, "fp64"), TorchEngine(world, "fp32")
    state = start(engine, seed=11)
    play(engine, state, 20)
    actions = random_actions(world, 1, 20)
    states = [moved(other, state) for other in (exact, plain, engine, engine)]
    for other, its in zip((exact, plain, engine), states, strict=False):
        other.step(its, actions, view_frames)
    expected, usual, made, whole = states
    assert max_difference(made, expected) <= 2 * max_difference(usual, expected) + FLOOR
    engine.step(whole, actions)
    assert max_difference(made, whole) > 1e-3  # it does read less


def test_rewind_and_branch_repeat_the_views(world: World, engine: Engine) -> None:
    with Session(world, engine, seed=3) as session:
        made = [session.step({"attack"}, view_frames=view).pixels for view in VIEWS * 4]
        branch = session.branch()
        for back, other in ((5, session), (11, branch)):
            assert (other.rewind(back).pixels == made[-1 - back]).all()
        session.rewind(session.history_frames)
        plain = [session.step({"attack"}).pixels for _ in made]
        assert (plain[0] == made[0]).all() and not (plain[-1] == made[-1]).all()


@pytest.mark.parametrize("view_frames", [1, 0, -3])
def test_a_view_without_the_frame_before_is_refused(world: World, engine: Engine, view_frames: int) -> None:
    with Session(world, engine) as session:
        with pytest.raises(DreamloopError, match=f"view_frames={view_frames} must be 2 or more"):
            session.step(view_frames=view_frames)
        assert session.index == 0


class Slow:
    """Random keys whose reading makes one frame in three late; now and then it goes back."""

    def __init__(self, world: World, clock: FakeClock) -> None:
        self.clock, self.keys, self.count = clock, ScriptedSource(world.spec.actions, seed=4), 0

    def read(self) -> Command:
        self.count += 1
        self.clock.spend(0.03 if self.count % 3 == 0 else 0.001)
        return Command(rewind=4) if self.count % 17 == 0 else self.keys.read()


def test_a_log_of_degraded_frames_replays_bit_for_bit(world: World, folder: Path, engine: Engine,
                                                      tmp_path: Path) -> None:
    clock = FakeClock()
    with Session(world, engine, seed=5) as session, ActionLog(tmp_path / "log", session, 0) as log:
        loop = FrameLoop(session, Slow(world, clock), Sinks(NoSink(), log), 20.0, "degrade", clock)
        for shown in loop.frames(60):
            log.write(shown)
    said = [json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines()[1:]]
    assert {line.get("view") for line in said} == {None, 2} and any(line["hash"] == "" for line in said)
    report = replay_log(str(tmp_path / "log"), verify=True, world=str(folder))
    assert report["equal"] and report["frames"] == 61
    text = (tmp_path / "log").read_text("utf-8")
    (tmp_path / "log").write_text(text.replace(', "view": 2', ""), "utf-8")  # the event is what makes it so
    assert not replay_log(str(tmp_path / "log"), verify=True, world=str(folder))["equal"]
    (tmp_path / "log").write_text(text.replace('"view": 2', '"view": 1', 1), "utf-8")
    with pytest.raises(DreamloopError, match="view_frames=1 must be 2 or more"):
        replay_log(str(tmp_path / "log"), verify=True, world=str(folder))
    (tmp_path / "log").write_text(text.replace('"view": 2', '"view": "2"', 1), "utf-8")
    with pytest.raises(DreamloopError, match="view is not a whole number"):
        replay_log(str(tmp_path / "log"), verify=True, world=str(folder))


def test_restore_decodes_when_somebody_looks(world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(world, engine) as session:
        shown = [session.step({"attack"}).pixels for _ in range(6)]
        bookmark, latent = session.snapshot(), session.latent
        session.step()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "decode", None)  # whoever decodes, fails
            frame = session.restore(bookmark)
            assert frame.index == 6 and (session.latent == latent).all()
        session.step()
        assert (frame.pixels == shown[-1]).all() and frame.pixels is frame.pixels
        assert np.shares_memory(session.reset(0).pixels, world.starts) is False
