"""Engine `native`: the whole frame in C++ (csrc/), one call per pass, without torch or ONNX Runtime.

The host's part of a pass (condition, angles, slots, plan, noise) comes from `pass_inputs` as for
every engine; the kernels read and write the State's ring in place. A frame has the same bits for any
number of threads and any batch size; another instruction tier rounds differently in the last bits.

    fp32   everything in float32
    bf16   the products of the blocks, attention and the decoder's 3x3 convolutions, with sums and softmax in float32
    int8   the same in int8: weights per output channel; activations anew at every frame, per token in the
           blocks and per picture in the decoder; keys and values lie in the ring as int8 with a scale for every row,
           in little more than a quarter of the room
    int8-static      int8 with scales that are found once, when the engine is opened, in rollouts that the world plays
                     by itself: 96 frames deep from its first start, 16 from others
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from dreamloop.models.core import packed
from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime import kernels
from dreamloop.runtime.engines.base import State, checked_threads, empty_state, refuse_linear

DEFAULT_THREADS = 2  # one frame is too little work for more
PRECISIONS = ("fp32", "bf16", "int8", "int8-static")


class NativeEngine:
    """precision: one of `PRECISIONS`. threads: that one pass may use; None is two, or one per core there is.
    The instruction tier is the fastest that runs here, or the one that DREAMLOOP_ISA names."""

    name = "native"

    def __init__(self, world: World, precision: str = PRECISIONS[0], threads: int | None = None) -> None:
        refuse_linear(self.name, world)
        if precision not in PRECISIONS:
            raise EngineError(f"engine native knows precision {', '.join(PRECISIONS)}, not {str(precision)[:40]!r}")
        threads = checked_threads(threads) or min(DEFAULT_THREADS, _cores())
        tier = kernels.instruction_tier()  # raises where the kernels are not built
        module = importlib.import_module("dreamloop.runtime._kernels")
        self.world, self.precision = world, precision
        self._native = module.World(packed.pack(world), threads, tier, precision)

    def new_state(self, batch: int = 1) -> State:
        shape, row_bytes = self.world.spec.ring_shape(batch), self._native.ring_row_bytes()
        narrow = row_bytes != 4 * shape[-1]  # D int8 and the scale of the row
        ring = np.zeros((*shape[:-1], row_bytes), np.int8) if narrow else np.zeros(shape, np.float32)
        return empty_state(self.world.spec, ring, batch)

    def load_ring(self, state: State, ring: np.ndarray) -> None:
        """Give a state the keys and values of a float ring, as another engine keeps them; inverse: `floats_of`."""
        if state.ring.dtype == np.float32:
            state.ring[...] = ring
            return
        scale = np.abs(ring).max(axis=-1, keepdims=True).astype(np.float32) / np.float32(127)
        state.ring[..., :-4] = np.rint(ring / np.where(scale > 0, scale, 1))
        state.ring[..., -4:] = scale.view(np.int8)

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        spec, frames = self.world.spec, state.frame + 1
        z: np.ndarray | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            i = pass_inputs(spec, frames, state.seed, actions, index, view_frames)
            x = i.noise if z is None else np.float32(1 - sigma) * z + np.float32(sigma) * i.noise
            z = np.empty_like(state.latent)
            self._native.step(state.ring, np.ascontiguousarray(state.latent, np.float32), x, i.action, i.condition,
                              i.cos, i.sin, i.store_cos, i.store_sin, i.sink_cos, i.sink_sin, i.slot,
                              i.plan.block_index, i.plan.block_count, i.plan.block_length, i.plan.block_kept, z)
        assert z is not None
        state.latent, state.frame = z, frames

    def decode(self, latents: np.ndarray) -> np.ndarray:
        spec = self.world.spec
        frames = np.empty((len(latents), spec.frame_height, spec.frame_width, 3), np.uint8)
        self.decode_into(latents, frames)
        return frames

    def decode_into(self, latents: np.ndarray, frames: np.ndarray) -> None:
        """`decode` into a caller's (B, H, W, 3) uint8 array; its rows may lie apart (a part of a larger picture)."""
        self._native.decode(np.ascontiguousarray(latents, np.float32), frames)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        latents = np.empty((len(frames), *self.world.spec.latent_shape), np.float32)
        self._native.encode(np.ascontiguousarray(frames), latents)
        return latents

    def operations(self) -> dict[str, float]:
        """Seconds that each operation of the last pass took, all layers together, in the order of the pass:
        where the milliseconds of a frame go."""
        return dict(self._native.operations())

    def measure_limit(self, precision: str) -> float:
        """Operations a second (a multiplication and an addition are two) that this engine's threads reach in
        products of `precision` that stay in the caches; takes a fraction of a second."""
        return float(self._native.measure_limit(precision))

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, **self._native.describe(), "device": "cpu"}


def floats_of(rows: np.ndarray) -> np.ndarray:
    """Any part of a ring, (..., D) float32, or (..., D + 4) int8 with the scale of each row behind it, as floats."""
    return rows if rows.dtype != np.int8 else rows[..., :-4] * np.ascontiguousarray(rows[..., -4:]).view(np.float32)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
