"""Several players on one engine: each sees what they would see alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from clocks import FakeClock
from worlds import random_frames

from dreamloop.models.core.errors import ActionError, DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime import BatchedSession, Engine, Session

KEYS = ({"turn_left"}, {"attack", "turn_right"}, None)


def latent(game: BatchedSession, seat: int) -> np.ndarray:
    return np.array(game._live().latent[seat])


def test_players_come_and_go_and_see_what_they_would_see_alone(world: World, engine: Engine) -> None:
    alone: dict[int, Session] = {}
    with BatchedSession(world, 3, engine) as game:
        for time in range(24):
            if time in (0, 3, 4, 17):  # the last one takes the seat of whoever left
                seat = game.join(seed=time, start=time % 3)
                alone[seat] = Session(world, engine, seed=time, start=time % 3)
            if time == 12:
                game.leave(1)
                del alone[1]
            actions = {seat: KEYS[(seat + time) % 3] for seat in alone}
            frames = game.step(actions)
            assert frames.keys() == alone.keys() == set(game.players)
            for seat, session in alone.items():
                single = session.step(actions[seat])
                assert frames[seat].index == single.index
                exact = engine.name == "native"  # it promises its bits for any number of players; else roundings of
                error = np.abs(latent(game, seat) - session.latent).max()  # other sums, carried from frame to frame
                assert error <= (0 if exact else 1e-5 * single.index)
                assert np.abs(frames[seat].pixels.astype(int) - single.pixels).max() <= (0 if exact else 1)


def test_who_joins_or_leaves_makes_nobody_wait(world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine's work, in time that the test owns: a pass of all seats takes 10 ms, whoever plays, the decoding
    5, an image encoded 3. So a frame with somebody joining takes no longer than another, or 3 ms where they bring an
    image of their own, and never a pass more."""
    clock, image = FakeClock(), random_frames(world.spec, 1, seed=7)[0]

    def slowed(name: str, seconds: float) -> None:
        work = getattr(engine, name)

        def timed(*args: Any) -> Any:
            clock.spend(seconds)
            return work(*args)
        monkeypatch.setattr(engine, name, timed)
    with BatchedSession(world, 4, engine) as game:
        ring, shape = game._live().ring, game._live().latent.shape
        for name, ms in (("step", 10), ("decode", 5), ("encode", 3)):
            slowed(name, ms / 1000)
        took_ms, images = [], []
        for time in range(40):
            began = clock.now()
            if leaves := time in (9, 20, 21):
                game.leave(game.players[0])
            joins = 3 if time == 0 else int(time == 5 or leaves)
            for _ in range(joins):
                game.join(seed=time, start=image if time == 20 else time % 3)
            game.step({})
            took_ms.append(1000 * (clock.now() - began))
            images.append(time == 20)
        assert took_ms == pytest.approx([15 + 3 * image for image in images])
        assert game._live().ring is ring and game._live().latent.shape == shape  # nothing is made anew, nothing moves


def test_a_start_frame_is_shown_as_it_is(world: World, engine: Engine) -> None:
    image = random_frames(world.spec, 1, seed=7)[0]
    with BatchedSession(world, 2, engine) as game:
        seat = game.join(start=image)
        assert (game.render()[seat].pixels == image).all()
        game.step({})
        other = game.join(start=1)
        frames = game.render()
        assert (frames[seat].index, frames[other].index) == (1, 0)
        assert (frames[other].pixels == world.starts[1]).all()


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "unknown action": (lambda game: game.step({0: {"fly"}}), ActionError, "fly"),
    "an empty seat": (lambda game: game.step({1: None}), DreamloopError, "nobody plays on seat 1; taken: 0"),
    "no such seat": (lambda game: game.step({-1: None}), DreamloopError, "seat -1"),
    "leave twice": (lambda game: game.leave(1), DreamloopError, "seat 1"),
    "start beyond": (lambda game: game.join(start=9), DreamloopError, "start=9"),
    "seed below": (lambda game: game.join(seed=-1), DreamloopError, "seed=-1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_moves_nobody(world: World, engine: Engine, case: str) -> None:
    refused, kind, message = REFUSED[case]
    with BatchedSession(world, 2, engine) as game:
        game.join()
        game.step({0: {"attack"}})
        before, players = latent(game, 0), game.players
        with pytest.raises(kind, match=message):
            refused(game)
        assert (latent(game, 0) == before).all() and game.players == players


def test_a_full_game_and_a_game_without_seats_are_refused(world: World, engine: Engine) -> None:
    for seats in (0, 10**30):
        with pytest.raises(DreamloopError, match=f"seats={seats} must be 1 to"):
            BatchedSession(world, seats, engine)
    with BatchedSession(world, 1, engine) as game:
        game.join()
        with pytest.raises(DreamloopError, match="all 1 seats are taken"):
            game.join()
    with pytest.raises(DreamloopError, match="closed"):
        game.step({})


def test_a_player_whose_frame_is_not_finite_stays_and_the_others_go_on(world: World, engine: Engine,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    step = engine.step

    def faulty(state: Any, actions: np.ndarray, *view: Any) -> None:
        step(state, actions, *view)
        if state.frame[0] == 3:
            state.latent[0] = np.nan
    with BatchedSession(world, 2, engine) as game:
        game.join(seed=1)
        game.join(seed=2)
        game.step({})
        with monkeypatch.context() as patch:
            patch.setattr(engine, "step", faulty)
            frames = [game.step({}) for _ in range(3)]
        assert [f[0].index for f in frames] == [2, 2, 2] and [f[1].index for f in frames] == [2, 3, 4]
        assert (frames[2][0].pixels == frames[0][0].pixels).all() and game.faults.tolist() == [2, 0]
        assert game.step({})[0].index == 3 and np.isfinite(latent(game, 0)).all()


def test_more_seats_than_memory_is_one_line(world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What numpy raises where the system gives no memory; whether it does so hangs on the system."""
    def too_large(batch: int) -> Any:
        raise MemoryError(f"Unable to allocate {batch} rings")
    monkeypatch.setattr(engine, "new_state", too_large)
    with pytest.raises(DreamloopError, match="seats=9 take more memory than there is"):
        BatchedSession(world, 9, engine)
