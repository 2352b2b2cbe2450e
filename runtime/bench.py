"""How fast each engine makes a frame of a world here, verified before timed. The verb `dreamloop bench`.

    dreamloop bench doom-arena --json

Every variant plays the same actions on the same number of threads. It is first held to the float64 oracle: one
step from the same state, the largest difference of the latents against a bound of its precision; what fails
is not timed. Then the variants take turns of some frames, so that a busy machine slows all alike and none is timed
while the threads of another are still awake: the first frames of a turn do not count.

    p50_ms, p95_ms, p99_ms   of a whole frame: host inputs, pass, decoder; dynamics_ms, decode_ms: medians of the parts
    pass_ms                  median of the network's pass alone, where an engine says what its operations take (native)
    ratio                    median of plain torch (eager, float32) over the median of this variant
    share_of_limit           (sum over operations of FLOP / measured limit of their precision) / median of the pass, or
                             of the dynamics where an engine does not say what the pass alone takes
    operations               where the milliseconds of a native pass go; see bench_limits.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamloop.models.core.errors import DreamloopError, EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.bench_limits import breakdown, breakdown_table, hardware, least_seconds, measured_limits
from dreamloop.runtime.clock import SystemClock
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine, State, checked_threads

VERIFY_FRAMES = 8
TURN, SETTLING = 30, 10  # frames of a turn that count, and those before them that do not
# largest error of a latent, as a share of the largest latent of the oracle; random tiny worlds measure a tenth of it,
# doom-arena a quarter: bf16 0.009, int8 0.020, int8-static 0.033
BOUNDS = {"fp32": 1e-4, "bf16": 0.05, "bf16-qk8": 0.05, "fp8": 0.15, "fp8-qk8": 0.2, "int8": 0.15, "int8-static": 0.15}
REFERENCE = "torch-eager-fp32"
Clock = Callable[[], float]


@dataclass(frozen=True)
class Variant:
    """One row of the table: an engine in one precision, and how it is opened."""

    name: str
    precision: str
    open: Callable[[World, int], Engine]
    float_attention: bool = False  # in float32 whatever the precision


def _own(engine: str, precision: str) -> Callable[[World, int], Engine]:
    return lambda world, threads: open_engine(world, engine, precision, threads)


def _compiled(world: World, threads: int) -> Engine:
    engine: Engine = importlib.import_module("dreamloop.runtime.engines.torch_engine").CompiledTorchEngine(
        world, threads=threads)
    return engine


def _openvino(precision: str) -> Callable[[World, int], Engine]:
    def opened(world: World, threads: int) -> Engine:
        module = importlib.import_module("dreamloop.runtime.engines.openvino_engine")
        engine: Engine = module.OpenVinoEngine(world, precision, threads)
        return engine
    return opened


def _onnx_int8(world: World, threads: int) -> Engine:
    engine: Engine = importlib.import_module("dreamloop.runtime.engines.onnx_int8").OnnxInt8Engine(
        world, threads=threads)
    return engine


VARIANTS = {v.name: v for v in (
    Variant("native-fp32", "fp32", _own("native", "fp32")),
    Variant("native-bf16", "bf16", _own("native", "bf16")),
    Variant("native-int8", "int8", _own("native", "int8")),
    Variant("native-int8-static", "int8-static", _own("native", "int8-static")),
    Variant(REFERENCE, "fp32", _own("torch", "fp32")),
    Variant("torch-compile-fp32", "fp32", _compiled),
    Variant("onnxruntime-fp32", "fp32", _own("onnxruntime", "fp32")),
    Variant("onnxruntime-int8", "int8", _onnx_int8, float_attention=True),
    Variant("openvino-fp32", "fp32", _openvino("fp32")),
    Variant("openvino-bf16", "bf16", _openvino("bf16")))}


def chosen(engines: str) -> list[Variant]:
    """The variants of a comma-separated list: full names, engines (all their precisions), or `all`."""
    names = [name.strip() for name in engines.split(",") if name.strip()]
    picked = []
    for name in names:
        found = [VARIANTS[name]] if name in VARIANTS else [
            v for v in VARIANTS.values() if name == "all" or v.name.startswith(f"{name}-")]
        if not found:
            raise DreamloopError(f"no variant {name[:100]!r}; known: all, {', '.join(VARIANTS)}")
        picked += [v for v in found if v not in picked]
    if not picked:
        raise DreamloopError("no engine was named")
    return picked


def bench(world: World, engines: str = "all", frames: int = 300, threads: int = 2,
          clock: Clock | None = None) -> dict[str, Any]:
    """The report: `engines` name -> figures, `unavailable` name -> reason, and what they were measured on.

    Raises `DreamloopError` for an unknown variant, and where torch, which everything is verified with, is missing.
    """
    variants = chosen(engines)
    checked_threads(threads)  # some variants are opened past `open_engine`
    if REFERENCE not in {v.name for v in variants}:
        variants.append(VARIANTS[REFERENCE])
    history = oracle_steps(world)
    running: dict[str, Engine] = {}
    rows: dict[str, dict[str, Any]] = {}
    unavailable: dict[str, str] = {}
    for variant in variants:
        try:
            engine = variant.open(world, threads)
            error = largest_error(engine, history)
        except (EngineError, ImportError, OSError) as reason:
            unavailable[variant.name] = str(reason).splitlines()[0]
            continue
        bound = BOUNDS[variant.precision] * max(float(np.abs(step.after.latent).max()) for step in history)
        if not error <= bound:
            unavailable[variant.name] = f"error {error:.3g} against the float64 oracle is above the bound {bound:.3g}"
            continue
        running[variant.name], rows[variant.name] = engine, {"error_vs_oracle": error}
    if REFERENCE not in running:
        raise DreamloopError(f"nothing to compare with: {unavailable[REFERENCE]}")
    said: dict[str, list[dict[str, float]]] = {}
    for name, times in timed(running, frames, clock or SystemClock().now, said).items():
        rows[name] |= figures(times)
    limits = measured_limits(running)
    passes = len(world.spec.dynamics.sigmas)  # an engine says what the last one took
    for name, row in rows.items():
        row["ratio"] = round(rows[REFERENCE]["p50_ms"] / row["p50_ms"], 3)
        if name in said:
            row["pass_ms"] = round(1e3 * passes * float(np.median([sum(frame.values()) for frame in said[name]])), 4)
        if limits:
            variant = VARIANTS[name]
            least = 1e3 * least_seconds(world.spec, limits, variant.precision, variant.float_attention)
            row["share_of_limit"] = round(least / row.get("pass_ms", row["dynamics_ms"]), 3)
    operations = {name: breakdown(world.spec, frames_of, limits, VARIANTS[name].precision)
                  for name, frames_of in said.items()}
    return {"world": world.name, "frames": frames, "threads": threads, "hardware": hardware(), "engines": rows,
            "unavailable": unavailable, "operations": operations,
            "limits_gflops": {p: round(v / 1e9, 1) for p, v in limits.items()}}


# -- verifying -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OracleStep:
    """A state before a step, the actions, and the same state after it, all in float64 torch."""

    before: State
    actions: np.ndarray
    after: State


def actions_of(world: World, frame: int) -> np.ndarray:
    """One player's actions of a frame, (1, A) float32, a function of the frame."""
    return np.random.default_rng(frame).integers(0, 2, (1, world.spec.actions.size)).astype(np.float32)


def oracle_steps(world: World) -> list[OracleStep]:
    """The first frames from the world's first start, stepped in float64."""
    oracle = open_engine(world, "torch", "fp64")
    state = oracle.new_state(1)
    state.seed[:] = 7
    state.latent = oracle.encode(world.starts[:1]).astype(np.float32)
    steps = []
    for frame in range(VERIFY_FRAMES):
        before = state.copy()
        oracle.step(state, actions_of(world, frame))
        steps.append(OracleStep(before, actions_of(world, frame), state.copy()))
    return steps


def largest_error(engine: Engine, steps: Sequence[OracleStep], players: int = 1) -> float:
    """Largest difference of a latent after one step from the oracle's own state; NaN if there is one.

    players: so many in one step, each at another of the oracle's steps. All rounds use one ring, so that what an engine
    captures for a ring (a CUDA graph) is what is checked.
    """
    errors, state = [], engine.new_state(players)
    for first in range(len(steps)):
        picked = [steps[(first + player) % len(steps)] for player in range(players)]
        ring = np.concatenate([step.before.ring.float().numpy() for step in picked], axis=2)
        if hasattr(engine, "load_ring"):
            engine.load_ring(state, ring)
        elif isinstance(state.ring, np.ndarray):
            state.ring[...] = ring
        else:
            state.ring.copy_(state.ring.new_tensor(ring))
        state.latent, state.frame, state.seed = (
            np.concatenate([getattr(step.before, name) for step in picked]) for name in ("latent", "frame", "seed"))
        engine.step(state, np.concatenate([step.actions for step in picked]))
        expected = np.concatenate([step.after.latent for step in picked])
        errors.append(np.max(np.abs(state.latent.astype(np.float64) - expected)))
    return float(np.max(errors))


# -- timing --------------------------------------------------------------------------------------------


def timed(engines: dict[str, Engine], frames: int, clock: Clock,
          said: dict[str, list[dict[str, float]]] | None = None) -> dict[str, np.ndarray]:
    """Seconds of (dynamics, decode) per frame and engine, (frames, 2) each; the engines take turns. said: is filled
    with what the operations of each frame took, of every engine that says so."""
    states: dict[str, State] = {}
    for name, engine in engines.items():
        states[name] = engine.new_state(1)
        states[name].latent = engine.encode(engine.world.starts[:1])
    times = {name: np.zeros((frames, 2)) for name in engines}
    for first in range(0, frames, TURN):
        for name, engine in engines.items():
            state = states[name]
            for frame in range(first - SETTLING, min(first + TURN, frames)):
                actions = actions_of(engine.world, int(state.frame[0]))
                began = clock()
                engine.step(state, actions)
                between = clock()
                engine.decode(state.latent)
                ended = clock()
                if frame >= first:
                    times[name][frame] = between - began, ended - between
                    if said is not None and hasattr(engine, "operations"):
                        said.setdefault(name, []).append(engine.operations())
    return times


def figures(times: np.ndarray) -> dict[str, float]:
    """Figures of one engine from its (frames, 2) seconds."""
    whole = 1e3 * times.sum(axis=1)
    p50, p95, p99 = np.percentile(whole, [50, 95, 99])
    dynamics, decode = 1e3 * np.median(times, axis=0)
    return {"p50_ms": round(float(p50), 4), "p95_ms": round(float(p95), 4), "p99_ms": round(float(p99), 4),
            "fps": round(float(1e3 / p50), 2), "dynamics_ms": round(float(dynamics), 4),
            "decode_ms": round(float(decode), 4)}


# -- showing it ---------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = [f"{report['world']} on {report['hardware']}, {report['threads']} threads, {report['frames']} frames",
             f"{'':<24}{'p50 ms':>9}{'p99 ms':>9}{'fps':>8}{'pass':>8}{'decode':>8}{'ratio':>8}{'limit':>7}"
             f"{'error':>10}"]
    for name, row in sorted(report["engines"].items(), key=lambda item: item[1]["p50_ms"]):
        lines.append(f"{name:<24}{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['fps']:8.1f}{row['dynamics_ms']:8.2f}"
                     f"{row['decode_ms']:8.2f}{row['ratio']:8.2f}{row.get('share_of_limit', float('nan')):7.2f}"
                     f"{row['error_vs_oracle']:10.1e}")
    lines += [f"{name}: {why}" for name, why in report["unavailable"].items()]
    return "\n".join(lines + breakdown_table(report["operations"]))
