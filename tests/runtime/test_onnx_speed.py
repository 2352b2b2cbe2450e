"""What the forms and the engine gain in ONNX Runtime, each in one paired run: both sides take turns, ten frames each.

    pytest -m long -s tests/runtime/test_onnx_speed.py        prints the figures; wants quiet cores
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from worlds import random_frames, random_weights, tiny_world

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.spec import MemorySpec, PlanSpec, WorldSpec
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime.engines import onnx_cache
from dreamloop.runtime.engines.base import State
from dreamloop.runtime.engines.onnx_engine import OnnxEngine
from dreamloop.runtime.engines.onnx_pass import write_inputs

FRAMES, WARMUP, WINDOW, READ = 300, 80, 64, 16
TURN = 10  # frames of one side before the other has its own
Step = Callable[[State, np.ndarray], None]


def paired(sides: dict[str, Step], state: State, frames: int, warmup: int) -> dict[str, float]:
    """Median milliseconds of a step of each side. Every side goes on from a state of its own, under equal actions.

    A side has a turn of `TURN` frames, of which the first two do not count: the threads of a session with default
    options stay awake for a while after its pass, and would take the cores from the other side.
    """
    states = {name: state.copy() for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    actions = np.zeros((1, 3), np.float32)
    for first in range(-warmup, frames, TURN):
        for name, step in sides.items():
            for frame in range(first, first + TURN):
                began = time.perf_counter()
                step(states[name], actions)
                if frame >= max(first + 2, 0):
                    seconds[name].append(1e3 * (time.perf_counter() - began))
        if first == -warmup:  # the same frames, before roundings have had time to grow
            latents = [s.latent for s in states.values()]
            assert max(float(np.max(np.abs(z - latents[0]))) for z in latents) <= 1e-3
    return {name: float(np.median(values)) for name, values in seconds.items()}


class NaiveSession:
    """What one writes first: a session with default options, numpy in, numpy out."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.session = onnxruntime.InferenceSession(onnx_cache.load_or_build(world, "step", 1),
                                                    providers=["CPUExecutionProvider"])
        self.shapes = {i.name: i.shape for i in self.session.get_inputs()}

    def step(self, state: State, actions: np.ndarray) -> None:
        spec, frames = self.world.spec, state.frame + 1
        inputs = pass_inputs(spec, frames, state.seed, actions)
        feeds = {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}
        for layer in range(spec.dynamics.layers):
            feeds[f"key_{layer}"], feeds[f"value_{layer}"] = state.ring[layer]
        write_inputs(spec, state.latent, inputs.noise, inputs, feeds)
        z, *fresh = self.session.run(None, feeds)
        first = int(inputs.slot[0]) * spec.tokens_padded
        for index, value in enumerate(fresh):  # key and value of each layer in turn
            state.ring[index // 2, index % 2][:, :, first : first + spec.tokens] = value
        state.latent, state.frame = z, frames


def sparse_over_dense(world: World, frames: int, warmup: int, threads: int = 2) -> dict[str, float]:
    dense, sparse = OnnxEngine(world, threads=threads), OnnxEngine(world, threads=threads, form="sparse")
    times = paired({"dense": dense.step, "sparse": sparse.step}, dense.new_state(1), frames, warmup)
    return {**times, "ratio": times["dense"] / times["sparse"]}


def engine_over_naive(world: World, frames: int, warmup: int, threads: int = 2) -> dict[str, float]:
    engine, naive = OnnxEngine(world, threads=threads), NaiveSession(world)
    times = paired({"naive": naive.step, "engine": engine.step}, engine.new_state(1), frames, warmup)
    return {**times, "ratio": times["naive"] / times["engine"]}


def long_window(patch: int) -> WorldSpec:
    """The shipped world's network with a memory of 64 frames, of which a frame reads 16: density 0.25."""
    spec = load_world("doom-arena").spec
    return replace(spec, memory=MemorySpec(window_frames=WINDOW), dynamics=replace(spec.dynamics, patch=patch),
                   plan=PlanSpec("window", window_frames=READ - 1))


@pytest.mark.long
@pytest.mark.parametrize("patch", [1, 2], ids=["80 tokens", "20 tokens"])
def test_the_sparse_form_is_faster_than_the_dense_one_at_a_quarter_of_the_keys(patch: int) -> None:
    spec = long_window(patch)
    world = World(spec, random_weights(spec), random_frames(spec, 1), f"{patch}" * 64)
    figures = sparse_over_dense(world, FRAMES, WARMUP)
    print(f"\nwindow of {WINDOW} frames, {READ} read, {spec.tokens} tokens a frame: dense {figures['dense']:.2f} ms, "
          f"sparse {figures['sparse']:.2f} ms, ratio {figures['ratio']:.2f}")
    assert figures["ratio"] >= 1.5


@pytest.mark.long
def test_the_engine_is_faster_than_a_naive_session() -> None:
    figures = engine_over_naive(load_world("doom-arena"), FRAMES, WARMUP)
    print(f"\ndoom-arena: naive {figures['naive']:.2f} ms, engine {figures['engine']:.2f} ms, "
          f"ratio {figures['ratio']:.2f}")
    assert figures["ratio"] >= 1.2


def test_both_measurements_run_and_their_sides_agree(tmp_path: Path) -> None:
    world = tiny_world(tmp_path, memory=MemorySpec(window_frames=8), plan=PlanSpec("window", window_frames=1))
    for measure in (sparse_over_dense, engine_over_naive):
        figures = measure(world, frames=3, warmup=9, threads=1)
        assert all(value > 0 for value in figures.values()) and len(figures) == 3
