"""Several players on one engine, each with their own keys, one pass of the network for all.

    with BatchedSession("doom-arena", seats=4) as game:
        seat = game.join(seed=7)
        frames = game.step({seat: {"turn_left"}})           # seat -> Frame
        game.leave(seat)

The number of seats is fixed, so that the engine's buffers and graphs are made once: who joins or
leaves changes nothing but their own seat, and nobody waits. The world's start frames are encoded
beforehand; only a start from another image is encoded while the others play. An empty seat makes the
same first frame again and again; its cost is that of a player. Frames are those of single sessions:
bit for bit where an engine's arithmetic does not hang on the batch, else within the rounding of its
sums. `dreamloop profile --players 4` measures what coming and going costs.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np

from dreamloop.models.core import memory
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine, State, turn_of
from dreamloop.runtime.session import Action, Frame, checked_seed, start_image

MOST_SEATS = 1 << 16


class BatchedSession:
    """world, engine: as for `Session`; seats: B, how many can play at once. faults: how many frames of
    each seat were not finite and gave way to the last good one."""

    def __init__(self, world: World | str | os.PathLike[str], seats: int, engine: str | Engine = "auto",
                 precision: str | None = None, threads: int | None = None) -> None:
        if not 1 <= seats <= MOST_SEATS:
            raise DreamloopError(f"seats={seats} must be 1 to {MOST_SEATS}")
        self.world = world if isinstance(world, World) else load_world(world)
        self.engine = open_engine(self.world, engine, precision, threads) if isinstance(engine, str) else engine
        if self.engine.world.hash != self.world.hash:
            raise DreamloopError(f"the engine holds world {self.engine.world.name}, not this {self.world.name}")
        self._turn = turn_of(self.engine)
        try:
            self._state: State | None = self.engine.new_state(seats)
        except MemoryError as error:
            raise DreamloopError(f"seats={seats} take more memory than there is ({error})") from error
        self._taken = np.zeros(seats, bool)
        self._given: dict[int, np.ndarray] = {}  # start images that are on the screen
        self.faults = np.zeros(seats, np.int64)
        with self._turn:  # each by itself, as a single session does it
            self._starts = [self.engine.encode(image[None])[0] for image in self.world.starts]
            for _ in range(getattr(self.engine, "building_frames", 1)):  # nobody plays yet: let it build now
                self.engine.step(self._state, self._no_keys())
            self.engine.decode(self._state.latent)

    @property
    def seats(self) -> int:
        return len(self._taken)

    @property
    def players(self) -> tuple[int, ...]:
        """Seats that are taken."""
        return tuple(int(seat) for seat in np.flatnonzero(self._taken))

    def _no_keys(self) -> np.ndarray:
        return np.zeros((self.seats, self.world.spec.actions.size), np.float32)

    def _live(self) -> State:
        if self._state is None:
            raise DreamloopError("the session is closed")
        return self._state

    def _player(self, seat: int) -> int:
        if not 0 <= seat < self.seats or not self._taken[seat]:
            raise DreamloopError(f"nobody plays on seat {seat}; taken: {', '.join(map(str, self.players)) or 'none'}")
        return seat

    def join(self, seed: int = 0, start: int | np.ndarray = 0) -> int:
        """Take a free seat, which starts as `Session.reset` does; returns its number."""
        self._live()
        free = np.flatnonzero(~self._taken)
        if not len(free):
            raise DreamloopError(f"all {self.seats} seats are taken")
        self.start(int(free[0]), seed, start)
        self._taken[free[0]] = True
        return int(free[0])

    def start(self, seat: int, seed: int = 0, start: int | np.ndarray = 0) -> Frame:
        """Start a seat over and return its start as frame 0, without decoding anything; nobody else notices."""
        if not 0 <= seat < self.seats:
            raise DreamloopError(f"seat={seat} must be 0 to {self.seats - 1}")
        state, image = self._live(), start_image(self.world, start)
        seed = checked_seed(seed)
        if isinstance(start, np.ndarray) and start.ndim > 0:
            with self._turn:
                latent = self.engine.encode(image[None])[0]
        else:
            latent = self._starts[operator.index(start)]
        state.ring[:, :, seat] = 0
        state.latent[seat], state.frame[seat], state.seed[seat] = latent, 0, seed
        self._given[seat] = image
        return Frame(0, image.copy())

    def leave(self, seat: int) -> None:
        """Free a seat."""
        self._live()
        self._taken[self._player(seat)] = False
        self._given.pop(seat, None)

    def step(self, actions: Mapping[int, Action]) -> dict[int, Frame]:
        """Make the next frame of every player. actions: seat -> action, None for whoever is not in it.
        What is refused (a free seat, an unknown action) is refused before anybody moves."""
        state, vectors = self._live(), self._no_keys()
        for seat, action in actions.items():
            vectors[self._player(seat)] = self.world.spec.actions.vector(action)
        state.frame[~self._taken] = 0  # an empty seat never gets far
        frames, latents = state.frame.copy(), state.latent.copy()
        with self._turn:
            self.engine.step(state, vectors)
        for seat in map(int, np.flatnonzero(~np.isfinite(state.latent).all(axis=(1, 2, 3)))):
            first = memory.slot_of(self.world.spec.memory, int(frames[seat]) + 1) * self.world.spec.tokens_padded
            state.ring[:, :, seat, :, first : first + self.world.spec.tokens_padded] = 0
            state.latent[seat], state.frame[seat] = latents[seat], frames[seat]
            self.faults[seat] += 1
        self._given = {seat: image for seat, image in self._given.items() if state.frame[seat] == 0}
        return self.render()

    def render(self) -> dict[int, Frame]:
        """The frame of every player, decoded afresh; changes nothing."""
        state = self._live()
        with self._turn:
            pixels = self.engine.decode(state.latent) if set(self.players) - self._given.keys() else None
        return {seat: Frame(int(state.frame[seat]), self._given[seat].copy() if seat in self._given or pixels is None
                            else pixels[seat]) for seat in self.players}

    def close(self) -> None:
        """Let go of the state; a second call does nothing."""
        self._state = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
