"""What a frame costs against the length of the memory, plan by plan: `dreamloop bench --sparse`.

    dreamloop bench --sparse --json

Worlds of random weights (bench_worlds.py) that differ in window and plan alone, on the native engine. Each plan is held
to the float64 oracle in one step from a full memory of random keys and values, at every window; then the plans of a
window take turns, step by step. A plan stays flat where `growth`, its median at the longest window over that at the
shortest, stays near one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import PlanSpec
from dreamloop.runtime.bench_limits import hardware, keys_read
from dreamloop.runtime.bench_worlds import sparse_spec, synthetic_world
from dreamloop.runtime.clock import SystemClock
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine, State

WINDOWS = (16, 32, 64, 128, 256, 512)
PLANS = {"dense": PlanSpec(block_tokens=20), "window": PlanSpec("window", 8, 20), "radial": PlanSpec("radial", 4, 20),
         "top_k": PlanSpec("top_k", block_tokens=20, top_blocks=32)}
BOUND = 1e-4  # of a latent, as a share of the largest: float32 against float64
WARMUP_FRAMES = 3


def bench_sparse(windows: Sequence[int] = WINDOWS, frames: int = 30, threads: int = 2,
                 clock: Callable[[], float] | None = None) -> dict[str, Any]:
    """The report: `plans` name -> `windows` -> {`p50_ms`, `keys`, `error_vs_oracle`}, and `growth`; `keys`: how many a
    query token reads on average. Raises `DreamloopError` where a plan errs: what is wrong is not timed."""
    now = clock or SystemClock().now
    plans: dict[str, dict[str, Any]] = {name: {"windows": {}} for name in PLANS}
    for window in windows:
        running: dict[str, tuple[Engine, State]] = {}
        for name, plan in PLANS.items():
            world = synthetic_world(sparse_spec(window, plan))
            engine = open_engine(world, "native", "fp32", threads)
            state = full_memory(engine)
            error = _error(engine, state)
            if not error <= BOUND:
                raise DreamloopError(f"plan {name} over {window} frames errs by {error:.3g} against the float64 oracle")
            running[name] = engine, state
            plans[name]["windows"][str(window)] = {"keys": keys_read(world.spec) / world.spec.tokens,
                                                   "error_vs_oracle": error}
        for name, seconds in _timed(running, frames, now).items():
            plans[name]["windows"][str(window)]["p50_ms"] = round(1e3 * float(np.median(seconds)), 4)
    for rows in plans.values():
        first, last = (rows["windows"][str(window)]["p50_ms"] for window in (windows[0], windows[-1]))
        rows["growth"] = round(last / first, 3)
    return {"windows": list(windows), "frames": frames, "threads": threads, "hardware": hardware(), "plans": plans}


def full_memory(engine: Engine) -> State:
    """One player far into a session, whose keys, values and latent are random."""
    state, generator = engine.new_state(1), np.random.default_rng(1)
    state.ring[...] = 0.5 * generator.standard_normal(state.ring.shape, np.float32)
    state.latent[...] = generator.standard_normal(state.latent.shape, np.float32)
    state.frame[:] = 10 * engine.world.spec.memory.slots
    return state


def _error(engine: Engine, state: State) -> float:
    """Error of one step from a copy of the state, as a share of the largest latent of the oracle."""
    exact = open_engine(engine.world, "torch", "fp64")
    found, expected = state.copy(), exact.new_state(1)
    expected.ring.copy_(expected.ring.new_tensor(state.ring))
    expected.latent, expected.frame, expected.seed = state.latent.copy(), state.frame.copy(), state.seed.copy()
    for player, its_engine in ((found, engine), (expected, exact)):
        its_engine.step(player, np.zeros((1, engine.world.spec.actions.size), np.float32))
    return float(np.max(np.abs(found.latent - expected.latent)) / np.max(np.abs(expected.latent)))


def _timed(running: dict[str, tuple[Engine, State]], frames: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each step, plan by plan; the plans take turns."""
    times: dict[str, list[float]] = {name: [] for name in running}
    for frame in range(-WARMUP_FRAMES, frames):
        for name, (engine, state) in running.items():
            latent = state.latent
            began = now()
            engine.step(state, np.zeros((1, engine.world.spec.actions.size), np.float32))
            if frame >= 0:
                times[name].append(now() - began)
            state.latent = latent  # every step from the same latent: random weights lead nowhere
    return times


def table(report: dict[str, Any]) -> str:
    """The report as lines of text: milliseconds a step, and in brackets the keys that a query reads."""
    plans = report["plans"]
    lines = [f"ms a step on {report['hardware']}, {report['threads']} threads, {report['frames']} frames; "
             "in brackets the keys that a query reads", f"{'window':<8}" + "".join(f"{name:>20}" for name in plans)]
    for window in map(str, report["windows"]):
        cells = [plan["windows"][window] for plan in plans.values()]
        lines.append(f"{window:<8}" + "".join(f"{cell['p50_ms']:11.2f} ({cell['keys']:6.0f})" for cell in cells))
    return "\n".join([*lines, f"{'growth':<8}" + "".join(f"{plan['growth']:20.2f}" for plan in plans.values())])
