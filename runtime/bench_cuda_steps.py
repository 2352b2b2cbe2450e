"""A frame of a world, of a preset, of many players, each verified before it is timed.

Steps, players and action to pixels are held to the float64 oracle, with as many players and, where the engine captures
a graph, by that graph. A preset has no oracle: its captured network is held to the eager one. Times are of a whole
frame, decoder included, from the host and back to it: what a player waits for between key and pixels, without a
screen. The presets' times are those of the device alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dreamloop.models.core.world import World
from dreamloop.runtime.bench import BOUNDS, OracleStep, actions_of, largest_error
from dreamloop.runtime.bench_cuda_kernels import one_line, timed_ms
from dreamloop.runtime.bench_cuda_presets import Preset, PresetFrame, operations
from dreamloop.runtime.bench_limits import pass_operations, seconds_at_limits
from dreamloop.runtime.engines.base import Engine
from dreamloop.runtime.engines.torch_engine import CompiledTorchEngine, TorchEngine
from dreamloop.runtime.engines.triton_engine import TritonEngine
from dreamloop.runtime.engines.triton_linear import NARROW
from dreamloop.runtime.profiler import percentiles
from dreamloop.runtime.session import Session

VARIANTS = (("torch-eager", "bf16"), ("triton-eager", "bf16"), ("triton", "bf16"), ("triton", "bf16-qk8"),
            ("triton", "fp8"), ("triton", "fp8-qk8"), ("triton", "fp32"), ("torch-compile", "bf16"),
            ("torch-compile-reduce-overhead", "bf16"))
PRESET_BOUND = 2e-2  # of the largest change that a preset's eager network makes: both run the same kernels
PLAYERS = (1, 2, 4, 8, 16, 32, 64)
WARMUP = 20
COMPILING_S = 150.0  # what a variant of torch.compile may take: it does not begin with less
Left = Callable[[], float]
Put = Callable[[str, dict[str, Any]], None]


class EagerTriton(TritonEngine):
    """The triton engine without its graph: what capturing is measured against."""

    def step(self, state: Any, actions: np.ndarray, view_frames: int | None = None) -> None:
        self._run(state, actions, view_frames, self._frame)


def opened(engine: str, precision: str, world: World, device: str, toy: bool) -> Engine:
    """A variant; raises what its engine raises."""
    if engine == "torch-eager":
        return TorchEngine(world, precision, device=device)
    if engine.startswith("torch-compile"):
        if toy:
            raise RuntimeError("compiling takes a minute on a CPU: not part of a toy run")
        mode = "reduce-overhead" if "reduce" in engine else "default"
        return CompiledTorchEngine(world, precision, device=device, mode=mode)
    kind = EagerTriton if engine == "triton-eager" else TritonEngine
    return kind(world, precision, device=device, **({"calibration_frames": 6} if toy else {}))


def forget_others(device: torch.device) -> None:
    """Give back what engines before this one held: it would count as memory of the next one, and what the collector
    finds while that one captures a graph could spoil the graph."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def least_ms(flop: dict[str, float], limits: dict[str, float], precision: str) -> float | None:
    """Milliseconds of a pass where every product runs at the measured limit of what it is made in: FP8 for `NARROW` of
    an engine in FP8, bf16 for all else (also for queries times keys in int8, whose limit is not measured); None where
    no limit is that of the precision."""
    kind = precision.split("-")[0]
    if kind not in limits or "bf16" not in limits:
        return None
    speeds = {name: 1e12 * limits[name] for name in (kind, "bf16")}
    return 1e3 * sum(seconds_at_limits(flop, speeds, dict.fromkeys(NARROW, kind), "bf16").values())


def peak_gib(device: torch.device) -> float:
    """The most memory that was in use since `forget_others`: what was taken to build an engine is not in it where that
    was called after it."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)


def verified(engine: Engine, precision: str, history: list[OracleStep], players: int = 1) -> float:
    """The engine's error against the oracle, for so many players in one step; raises where it is above its bound."""
    error = largest_error(engine, history, players)
    bound = BOUNDS[precision] * max(float(np.abs(step.after.latent).max()) for step in history)
    if not error <= bound:
        raise RuntimeError(f"error {error:.3g} against the float64 oracle is above the bound {bound:.3g}")
    return error


def step_row(engine: Engine, error: float, frames: int) -> dict[str, Any]:
    """Percentiles of `frames` frames of one player."""
    state = engine.new_state(1)
    state.latent = engine.encode(engine.world.starts[:1])
    samples = []
    for frame in range(-WARMUP, frames):
        began = time.perf_counter()
        engine.step(state, actions_of(engine.world, frame + WARMUP))
        engine.decode(state.latent)
        if frame >= 0:
            samples.append(1e3 * (time.perf_counter() - began))
    found = percentiles(samples)
    return {**{name: round(value, 4) for name, value in found.items()}, "fps": round(1e3 / found["p50_ms"], 1),
            "error_vs_oracle": error}


def steps(world: World, device: str, frames: int, toy: bool, limits: dict[str, float], history: list[OracleStep],
          left: Left, put: Put) -> None:
    """Every variant of a frame of the world, verified first. put(name, row): takes each as it is measured."""
    place = torch.device(device)
    engine: Engine | None = None
    for kind, precision in VARIANTS:
        name = f"{kind}-{precision}"
        if left() <= (COMPILING_S if kind.startswith("torch-compile") and not toy else 0):
            put(name, {"unavailable": "no time was left"})
            continue
        engine = None  # the one before
        forget_others(place)
        try:
            engine = opened(kind, precision, world, device, toy)
            forget_others(place)
            row = step_row(engine, verified(engine, precision, history), frames)
        except Exception as reason:  # one variant that fails leaves the others as they are
            put(name, {"unavailable": one_line(reason)})
            continue
        if place.type == "cuda":
            row["peak_gib"] = peak_gib(place)
        least = least_ms(pass_operations(world.spec), limits, precision)
        if least is not None:
            row["share_of_limit"] = round(len(world.spec.dynamics.sigmas) * least / row["p50_ms"], 4)
        put(name, row)


def players(world: World, device: str, frames: int, toy: bool, history: list[OracleStep], left: Left, put: Put) -> None:
    """Frames a second of all players together, B in one step; each B is verified first, with players at different
    times."""
    forget_others(torch.device(device))
    engine = opened("triton", "bf16", world, device, toy)
    single = 0.0
    for count in PLAYERS[: 3 if toy else None]:
        if left() <= 0:
            put(str(count), {"unavailable": "no time was left"})
            continue
        forget_others(torch.device(device))
        try:
            error = verified(engine, "bf16", history, count)
        except RuntimeError as reason:
            put(str(count), {"unavailable": one_line(reason)})
            continue
        state = engine.new_state(count)
        state.seed[:] = np.arange(count)
        state.latent = np.repeat(engine.encode(world.starts[:1]), count, axis=0)
        samples = []
        for frame in range(-WARMUP, max(frames // 4, 3)):
            actions = np.repeat(actions_of(world, frame + WARMUP), count, axis=0)
            began = time.perf_counter()
            engine.step(state, actions)
            if frame >= 0:
                samples.append(1e3 * (time.perf_counter() - began))
        p50 = float(np.median(samples))  # the graph holds the decoder
        row = {"step_ms": round(p50, 4), "frames_per_s": round(1e3 * count / p50, 1), "error_vs_oracle": error}
        if count == 1:
            single = 1e3 / p50
        if single:
            row["times_single"] = round(1e3 * count / p50 / single, 2)
        if device != "cpu":
            row["peak_gib"] = peak_gib(torch.device(device))
        put(str(count), row)


def latency(world: World, device: str, frames: int, toy: bool, history: list[OracleStep]) -> dict[str, Any]:
    """From the call with an action to its pixels on the host, through a session; the engine is verified first."""
    engine = opened("triton", "bf16", world, device, toy)
    error = verified(engine, "bf16", history)
    samples = []
    with Session(world, engine=engine, seed=7) as session:
        for frame in range(-WARMUP, frames):
            action = actions_of(world, frame + WARMUP)[0]
            began = time.perf_counter()
            session.step(action).pixels.sum()
            if frame >= 0:
                samples.append(1e3 * (time.perf_counter() - began))
    return {**{name: round(value, 4) for name, value in percentiles(samples).items()}, "error_vs_oracle": error}


def preset_row(preset: Preset, device: torch.device, precision: str, limits: dict[str, float]) -> dict[str, Any]:
    """Milliseconds of a frame of a preset: network, and network with decoder, eager and captured. The eager network's
    values must be finite, and on a GPU the captured network's must be those of the eager one; no oracle stands behind a
    preset."""
    frame = PresetFrame(preset, device, precision)
    forget_others(device)
    row: dict[str, Any] = {"weights": "random, for latency only"}
    frame.eagerly()
    expected = frame.step().clone()
    if not torch.isfinite(expected).all():
        raise RuntimeError("the network gives values that are not finite")
    if device.type == "cuda":
        row["captured_error"] = same_network(frame.captured(), expected, frame.latent)
    row["network_eager_ms"] = timed_ms(frame.step, device, captured=False)
    network_ms, frame_ms = timed_ms(frame.step, device, inner=3), timed_ms(frame.eagerly, device, inner=3)
    if device.type == "cuda":
        row |= {"network_ms": network_ms, "frame_ms": frame_ms}
        row["peak_gib"] = peak_gib(device)
    else:
        row |= {"frame_eager_ms": frame_ms}
    best = row.get("network_ms", row["network_eager_ms"])
    flop = operations(preset)
    row["tflop"] = sum(flop.values()) / 1e12
    for name, counted in (("share_of_limit", precision), ("share_of_bf16_limit", "bf16")):
        least = least_ms(flop, limits, counted)
        if least is not None:
            row[name] = round(least / best, 4)
    if limits.get("copy"):
        row["share_of_copy_limit"] = frame.read_bytes / 1e9 / limits["copy"] / (best / 1e3)
    row["fps"] = round(1e3 / row.get("frame_ms", frame_ms), 2)
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def same_network(found: torch.Tensor, expected: torch.Tensor, latent: torch.Tensor) -> float:
    """Error of what a network made of `latent`, as a share of the largest change that the expected one made to it;
    raises where it is above `PRESET_BOUND`."""
    error = float((found - expected).abs().max() / (expected - latent).abs().max())
    if not error <= PRESET_BOUND:
        raise RuntimeError(f"the captured network differs from the eager one by {error:.3g} of what it changes, "
                           f"above the bound {PRESET_BOUND}")
    return error
