"""Time that a test owns: a clock that never waits, and an engine that spends its seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dreamloop.models.core.world import World
from dreamloop.runtime.engines.base import State, empty_state


class FakeClock:
    """Starts at 1000 s, so that nothing rests on zero. jitter_s: how late every sleep wakes."""

    def __init__(self, jitter_s: float = 0.0) -> None:
        self.seconds = 1000.0
        self.jitter_s = jitter_s

    def now(self) -> float:
        return self.seconds

    def sleep_until(self, deadline_s: float) -> None:
        if deadline_s > self.seconds:
            self.seconds = deadline_s + self.jitter_s

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


class TimedEngine:
    """An engine whose step takes the next of `step_s` seconds of the fake clock. Its picture can be
    read: pixel (0, 0) holds the frame's index, pixel (0, 1) the action that made it."""

    name, precision = "timed", "exact"

    def __init__(self, world: World, clock: FakeClock, step_s: Iterable[float] = (), decode_s: float = 0.0) -> None:
        self.world, self.clock = world, clock
        self._step_s, self._decode_s = iter(step_s), decode_s

    def new_state(self, batch: int = 1) -> State:
        return empty_state(self.world.spec, np.zeros(self.world.spec.ring_shape(batch), np.float32), batch)

    def step(self, state: State, actions: np.ndarray) -> None:
        self.clock.spend(next(self._step_s, 0.0))
        state.frame += 1
        state.latent[:, 0, 0, 0] = state.frame
        state.latent[:, 1, 0, 0] = actions @ (1 << np.arange(actions.shape[1]))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        self.clock.spend(self._decode_s)
        spec = self.world.spec
        frames = np.zeros((len(latents), spec.frame_height, spec.frame_width, 3), np.uint8)
        frames[:, 0, 0], frames[:, 0, 1] = latents[:, 0, 0, :1], latents[:, 1, 0, :1]
        return frames

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return np.zeros((len(frames), *self.world.spec.latent_shape), np.float32)

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "precision": self.precision}
