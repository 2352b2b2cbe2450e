"""Time that a test owns: a clock that never waits, an engine that spends its seconds, a thread beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
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


class FakeThread(Executor):
    """A thread in the time of a fake clock: a job begins when it is submitted, whoever waits for its result
    is then no earlier than its end, and neither takes time from the other."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        begun = self.clock.seconds
        done = _Done(self.clock)
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        done.at, self.clock.seconds = self.clock.seconds, begun
        return done


class _Done(Future[Any]):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock, self.at = clock, 0.0

    def result(self, timeout: float | None = None) -> Any:
        self.clock.seconds = max(self.clock.seconds, self.at)
        return super().result(timeout)


class TimedEngine:
    """An engine whose step takes the next of `step_s` seconds of the fake clock, or `short` of them where the
    view is shortened. Its picture can be read: pixel (0, 0) holds the frame's index, pixel (0, 1) the action
    that made it. views: the view of every step."""

    name, precision = "timed", "exact"

    def __init__(self, world: World, clock: FakeClock, step_s: Iterable[float] = (), decode_s: float = 0.0,
                 short: float = 1.0) -> None:
        self.world, self.clock, self.short, self.views = world, clock, short, list[int | None]()
        self._step_s, self._decode_s = iter(step_s), decode_s

    def new_state(self, batch: int = 1) -> State:
        return empty_state(self.world.spec, np.zeros(self.world.spec.ring_shape(batch), np.float32), batch)

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        self.clock.spend(next(self._step_s, 0.0) * (1.0 if view_frames is None else self.short))
        self.views.append(view_frames)
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
