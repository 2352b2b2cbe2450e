"""A session on every engine that runs here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import FakeClock, TimedEngine
from hypothesis import given, settings, strategies as st
from worlds import random_frames, tiny_world

from dreamloop.models.core.errors import ActionError, DreamloopError, EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime import Engine, Session, engine_status, open_engine
from dreamloop.runtime.engines import AUTO_ORDER, ENGINE_NAMES, choice_of

UNAVAILABLE = [name for name in ENGINE_NAMES if not engine_status(name).available]
NAMES = ("turn_left", "turn_right", "attack")


def actions(count: int, seed: int = 0) -> list[set[str]]:
    draws = np.random.default_rng(seed).random((count, len(NAMES))) < 0.4
    return [{name for name, held in zip(NAMES, row, strict=True) if held} for row in draws]


def play(session: Session, count: int, seed: int = 0) -> list[np.ndarray]:
    return [session.step(action).pixels for action in actions(count, seed)]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all((a == b).all() for a, b in zip(left, right, strict=True))


def state_of(session: Session) -> tuple[Any, ...]:
    state = session._live().copy()
    return np.asarray(state.ring), state.latent, state.frame, state.seed, session.seed


def unchanged(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_frames_are_fresh_uint8_arrays_with_rising_indices(world: World, engine: Engine) -> None:
    with Session(world, engine) as session:
        first, second = session.step({"attack"}), session.step(None)
    spec = world.spec
    assert (first.index, second.index) == (1, 2)
    for frame in (first, second):
        assert frame.pixels.shape == (spec.frame_height, spec.frame_width, 3) and frame.pixels.dtype == np.uint8
    assert not np.shares_memory(first.pixels, second.pixels)


def test_out_is_written_and_returned(world: World, engine: Engine) -> None:
    buffer = np.zeros((world.spec.frame_height, world.spec.frame_width, 3), np.uint8)
    with Session(world, engine) as session, Session(world, engine) as plain:
        frame = session.step({"attack"}, out=buffer)
        assert frame.pixels is buffer
        assert (buffer == plain.step({"attack"}).pixels).all()


def test_names_mappings_and_vectors_are_the_same_action(world: World, engine: Engine) -> None:
    forms: list[Any] = [{"turn_left", "attack"}, ["attack", "turn_left"], {"turn_left": 1.0, "attack": 1},
                        np.array([1, 0, 1], np.float32)]
    results = []
    for form in forms:
        with Session(world, engine) as session:
            results.append([session.step(form).pixels])
    assert all(same(results[0], other) for other in results[1:])


def test_the_action_changes_the_frame(world: World, engine: Engine) -> None:
    with Session(world, engine) as left, Session(world, engine) as right:
        assert not (left.step("turn_left").pixels == right.step("turn_right").pixels).all()


def test_same_seed_same_frames_and_another_seed_others(world: World, engine: Engine) -> None:
    with Session(world, engine, seed=3) as a, Session(world, engine, seed=3) as b, Session(world, engine, seed=4) as c:
        frames = play(a, 12)
        assert same(frames, play(b, 12))
        assert not same(frames, play(c, 12))


def test_reset_starts_over_whatever_came_before(world: World, engine: Engine) -> None:
    with Session(world, engine, seed=3) as session:
        frames = play(session, 12)
        start = session.reset(0)
        assert start.index == 0 and (start.pixels == world.starts[0]).all()
        assert same(frames, play(session, 12))
        session.reset(1)
        assert not same(frames, play(session, 12))
        session.reset(world.starts[0], seed=3)
        assert same(frames, play(session, 12))


def test_prime_with_nothing_but_a_start_is_a_reset(world: World, engine: Engine) -> None:
    with Session(world, engine, seed=3) as primed, Session(world, engine, seed=3) as plain:
        primed.prime(world.starts[:1], np.zeros((1, 3), np.float32))
        assert same(play(primed, 6), play(plain, 6))


def test_prime_shows_the_last_real_frame_and_continues_its_count(world: World, engine: Engine) -> None:
    real = random_frames(world.spec, 9, seed=5)
    with Session(world, engine) as session:
        shown = session.prime(real, actions(9))
        assert shown.index == 8 and (shown.pixels == real[-1]).all()
        assert np.abs(session.latent - engine.encode(real[-1:])[0]).max() == 0
        assert session.step().index == 9


def test_primed_history_is_remembered_beyond_the_last_frame(world: World, engine: Engine) -> None:
    real = random_frames(world.spec, 9, seed=5)
    other = real.copy()
    other[3] = real[4]
    dreams = []
    for frames in (real, other):
        with Session(world, engine) as session:
            session.prime(frames, actions(9))
            session.step()
            dreams.append(session.latent)
    assert np.abs(dreams[0] - dreams[1]).max() > 1e-5


@settings(deadline=None, max_examples=8)
@given(before=st.integers(0, 25), after=st.integers(1, 8))
def test_restore_replays_bit_for_bit_any_number_of_times(world: World, engine: Engine, before: int,
                                                         after: int) -> None:
    with Session(world, engine, seed=9) as session:
        play(session, before)
        bookmark = session.snapshot()
        shown = session.render().pixels
        frames = play(session, after, seed=1)
        for _ in range(2):
            session.step({"attack"})
            restored = session.restore(bookmark)
            assert restored.index == before and (restored.pixels == shown).all()
            assert same(frames, play(session, after, seed=1))


def test_a_snapshot_restores_another_session_and_its_seed(world: World, engine: Engine) -> None:
    with Session(world, engine, seed=9) as one, Session(world, engine, seed=1) as two:
        play(one, 5)
        two.restore(one.snapshot())
        assert two.seed == 9 and same(play(one, 5), play(two, 5))


def test_a_snapshot_of_another_world_is_refused(world: World, engine: Engine, tmp_path: Path) -> None:
    other = tiny_world(tmp_path, seed=1)
    with Session(world, engine) as session, Session(other, engine.name, threads=1) as stranger:
        before = state_of(session)
        with pytest.raises(DreamloopError, match=r"snapshot is of world"):
            session.restore(stranger.snapshot())
        assert unchanged(before, state_of(session))


def test_a_snapshot_of_another_engine_is_refused(world: World, engine: Engine) -> None:
    with (Session(world, engine) as session, Session(world, TimedEngine(world, FakeClock())) as other,
          pytest.raises(DreamloopError, match=r"timed.*this session runs on")):
        session.restore(other.snapshot())


REFUSED: dict[str, tuple[Callable[[Session], Any], type[Exception], str]] = {
    "unknown name": (lambda s: s.step({"fly"}), ActionError, r"fly.*turn_left, turn_right, attack"),
    "wrong vector": (lambda s: s.step(np.zeros(4, np.float32)), ActionError, r"\(4,\), expected \(3,\)"),
    "not finite": (lambda s: s.step({"attack": float("nan")}), ActionError, "finite"),
    "out of a wrong shape": (lambda s: s.step(out=np.zeros((3, 3, 3), np.uint8)), DreamloopError,
                             r"out is uint8 \(3, 3, 3\), expected uint8 \(32, 48, 3\)"),
    "out of a wrong type": (lambda s: s.step(out=np.zeros((32, 48, 3), np.float32)), DreamloopError, "out is float32"),
    "start beyond": (lambda s: s.reset(3), DreamloopError, "start=3.*0 to 2"),
    "start below": (lambda s: s.reset(-1), DreamloopError, "start=-1"),
    "start of a wrong type": (lambda s: s.reset("0"), DreamloopError, "start='0'"),  # type: ignore[arg-type]
    "image of a wrong shape": (lambda s: s.reset(np.zeros((48, 32, 3), np.uint8)), DreamloopError, "start is"),
    "seed below": (lambda s: s.reset(0, seed=-1), DreamloopError, "seed=-1"),
    "seed between two": (lambda s: s.reset(0, seed=1.5), DreamloopError, "seed=1.5"),  # type: ignore[arg-type]
    "seed beyond": (lambda s: s.reset(0, seed=1 << 64), DreamloopError, "seed="),
    "prime without frames": (lambda s: s.prime(np.zeros((0, 32, 48, 3), np.uint8), []), DreamloopError, "at least one"),
    "prime with too few actions": (lambda s: s.prime(np.zeros((3, 32, 48, 3), np.uint8), [None]), DreamloopError,
                                   "3 frames, 1 actions"),
    "prime with an unknown name": (lambda s: s.prime(np.zeros((2, 32, 48, 3), np.uint8), [None, "fly"]), ActionError,
                                   "fly"),
    "prime with one frame's shape": (lambda s: s.prime(np.zeros((32, 48, 3), np.uint8), [None]), DreamloopError,
                                     r"\(n, 32, 48, 3\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_session_as_it_was(world: World, engine: Engine, case: str) -> None:
    refused, kind, message = REFUSED[case]
    with Session(world, engine, seed=2) as session:
        play(session, 7)
        before = state_of(session)
        with pytest.raises(kind, match=message):
            refused(session)
        assert unchanged(before, state_of(session))


def test_read_only_out_is_refused(world: World, engine: Engine) -> None:
    buffer = np.zeros((32, 48, 3), np.uint8)
    buffer.setflags(write=False)
    with Session(world, engine) as session, pytest.raises(DreamloopError, match="read-only"):
        session.step(out=buffer)


def test_close_is_idempotent_and_final(world: World, engine: Engine) -> None:
    session = Session(world, engine)
    session.close()
    session.close()
    for use in (session.step, session.reset, session.render, session.snapshot):
        with pytest.raises(DreamloopError, match="closed"):
            use()


def test_an_engine_of_another_world_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DreamloopError, match="the engine holds world tiny"):
        Session(tiny_world(tmp_path, seed=1), engine)


# -- choosing an engine ----------------------------------------------------------------------------


def test_auto_takes_the_first_that_can_run_and_says_so(world: World) -> None:
    opened = open_engine(world)
    assert opened.name == next(name for name in AUTO_ORDER if engine_status(name).available)
    assert opened.name in choice_of(opened) and "first of" in choice_of(opened)


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_a_named_engine_never_falls_back(world: World, name: str) -> None:
    with pytest.raises(EngineError, match=rf"engine {name} is not available: .+") as raised:
        open_engine(world, name)
    assert "\n" not in str(raised.value)


def test_an_unknown_engine_is_refused_with_the_known_ones(world: World) -> None:
    with pytest.raises(EngineError, match=r"'quantum'.*auto, native.*onnxruntime"):
        open_engine(world, "quantum")


def test_auto_that_no_engine_satisfies_gives_every_reason(world: World) -> None:
    with pytest.raises(EngineError, match="no engine can run here") as raised:
        open_engine(world, "auto", precision="fp3")
    assert all(name in str(raised.value) for name in AUTO_ORDER)


@pytest.mark.parametrize("engine", ["auto", *ENGINE_NAMES])
@pytest.mark.parametrize("threads", [0, 65, 100_000])
def test_threads_that_no_frame_could_use_are_refused_before_anything_is_built(world: World, engine: str,
                                                                              threads: int) -> None:
    with pytest.raises(EngineError, match=rf"^threads={threads} must be 1 to 64$"):
        open_engine(world, engine, threads=threads)
