"""The protocol of an engine, and the state that its caller owns.

An engine executes one world on one backend. It holds weights and no player: everything that makes
the next frame what it is lies in a `State`, which the caller owns, copies and batches.

    latent   z_(t-1)  ->  step: ONE pass of the network  ->  z_t, keys and values in slot_of(t)
"""

from __future__ import annotations

import importlib
import os
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World

MOST_THREADS = 64  # a log or a state file may name any number; a frame is work for a few


@dataclass
class State:
    """B players at their own frame indices.

    ring    (L, 2, B, H, S * T_padded, D)   keys and values; an array of the engine's own kind
    latent  (B, C, latent height, latent width) float32 numpy: z of the last frame
    frame   (B,) int64: index of the last frame made; 0 right after a reset
    seed    (B,) uint64: key of the noise
    """

    ring: Any
    latent: np.ndarray
    frame: np.ndarray
    seed: np.ndarray

    @property
    def batch(self) -> int:
        return len(self.frame)

    def copy(self) -> State:
        """A state that shares nothing with this one; costs one copy of the ring."""
        ring = self.ring.clone() if hasattr(self.ring, "clone") else self.ring.copy()
        return State(ring, self.latent.copy(), self.frame.copy(), self.seed.copy())


class Engine(Protocol):
    """What a backend provides. Nothing here is thread-safe: who shares an engine holds its `turn_of`."""

    name: str
    precision: str
    world: World

    def new_state(self, batch: int = 1) -> State:
        """An empty ring, zero latents, frame 0, seeds 0."""

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        """Make the next frame of every player, in place: one network evaluation per frame and
        noise level. actions: (B, A) float32, as `ActionSpec.vector` returns them; view_frames: for
        `pass_inputs`, an approximation that reads less of the past. An engine whose first frames with a state take
        longer, for it builds something, says how many in `building_frames`."""

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """(B, C, latent height, latent width) float32 -> (B, H, W, 3) uint8, freshly made. An engine that
        can write to a caller's memory has `decode_into(latents, frames)` besides."""

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8 -> (B, C, latent height, latent width) float32."""

    def describe(self) -> dict[str, Any]:
        """Name, precision, library versions, threads, device: what identifies its arithmetic."""


def checked_threads(threads: int | None) -> int | None:
    """A number of threads that an engine may be given, None for the engine's own choice; raises `EngineError`."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise EngineError(f"threads={threads} must be 1 to {MOST_THREADS}")
    return threads


def empty_state(spec: WorldSpec, ring: Any, batch: int) -> State:
    """The state that `new_state` returns, around a zero ring of the engine's own kind."""
    return State(ring, np.zeros((batch, *spec.latent_shape), np.float32),
                 np.zeros(batch, np.int64), np.zeros(batch, np.uint64))


def refuse_linear(name: str, world: World) -> None:
    """For the constructor of an engine without the linear branch of a plan: `EngineError` where the world has one."""
    if world.spec.plan.linear:
        raise EngineError(f"engine {name} has no linear branch for what a plan skips, as world {world.name} asks; "
                          "torch and triton have it")


def turn_of(engine: Engine) -> threading.RLock:
    """The lock that goes with an engine: sessions hold it while the engine works for them, so that those on several
    threads take turns."""
    lock: threading.RLock = vars(engine).setdefault("turn", threading.RLock())
    return lock


def import_package(name: str) -> ModuleType:
    """Import a backend's package. ONNX Runtime (1.29 and later) sends its makers figures about its use, from a thread
    that wakes some seconds into a game and takes memory and time there; it does so only where the user has set
    ORT_DISABLE_TELEMETRY to 0."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(name)
