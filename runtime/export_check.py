"""The self-check of an export: some hundred frames beside a reference, frame by frame.

The folder's ONNX graphs are held to plain torch in float64 where torch is installed, else to the float32 graph of
form `portable`. TensorRT is held to ONNX Runtime, on a machine that has the GPU, with engines of the same graphs.
Each frame starts from the reference's own state, so an error is that of one frame. `check.json` in the folder is
what to attach to a bug report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreamloop.models.core.errors import DreamloopError, EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import engine_status, open_engine
from dreamloop.runtime.engines.base import Engine, State
from dreamloop.runtime.engines.onnx_precision import precision_of
from dreamloop.runtime.export import Export

FRAMES = 300
# error of the worst frame's latents over the reference's latents, both root mean square. doom-arena's frames differ
# from the ones before them by 0.5; fp32 measures about 1e-6, fp8 0.06, int4 0.2, int8 0.2
BOUNDS = {"fp32": 1e-4, "fp16": 0.03, "bf16": 0.1, "int8": 0.1, "fp8": 0.15, "int4": 0.3}


def check(world: World, options: Export, folder: Path, frames: int = FRAMES,
          progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Run and compare; returns the figures, which are in `check.json` too. `ok` is false where an error is above
    the bound of the precision. Raises `DreamloopError` where it cannot run here."""
    engine = _of_folder(world, options, folder)
    reference, name = _reference(world, options)
    spec, state = world.spec, reference.new_state(1)
    state.latent = reference.encode(world.starts[:1]).astype(np.float32)
    errors, sizes, seconds, largest = [], [], [], 0.0
    for frame in range(frames):
        actions = np.random.default_rng(frame // 6).integers(0, 2, (1, spec.actions.size)).astype(np.float32)
        mine = _moved(engine, state)
        began = time.perf_counter()
        engine.step(mine, actions)
        engine.decode(mine.latent)
        seconds.append(time.perf_counter() - began)
        reference.step(state, actions)
        difference = mine.latent.astype(np.float64) - state.latent
        errors.append(float(np.sqrt(np.mean(difference**2))))
        sizes.append(float(np.mean(state.latent.astype(np.float64) ** 2)))
        largest = max(largest, float(np.max(np.abs(difference))))
        if progress:
            progress(frame + 1, frames)
    bound = BOUNDS[options.precision.split("-")[0]] * float(np.sqrt(np.mean(sizes)))
    p50, p95, p99 = (round(1e3 * float(p), 3) for p in np.percentile(seconds, [50, 95, 99]))
    figures = {"frames": frames, "reference": name, "engine": engine.describe(), "worst_error": max(errors),
               "worst_frame": int(np.argmax(errors)) + 1, "largest_difference": largest, "bound": bound,
               "ok": bool(np.max(errors) <= bound), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
    (folder / "check.json").write_text(json.dumps(figures, indent=2, default=str) + "\n", "utf-8")
    return figures


def require(options: Export) -> None:
    """Raise `DreamloopError` of one line where what is to be exported cannot run here, before anything is built."""
    if options.to == "onnx" and precision_of(options.precision).base == "bf16":
        raise DreamloopError("--check cannot run bf16: ONNX Runtime has no kernels for it; the graph is for TensorRT")
    if options.to != "onnx" and not (status := engine_status(options.to)).available:
        raise DreamloopError(f"--check cannot run {options.to} here: {status.reason}")


def line(figures: dict[str, Any]) -> str:
    """The figures for a reader."""
    verdict = "within" if figures["ok"] else "ABOVE"
    return (f"{figures['frames']} frames beside {figures['reference']}: error of the worst one "
            f"{figures['worst_error']:.3g} (RMS), {verdict} the bound {figures['bound']:.3g}; "
            f"step and decode {figures['p50_ms']} ms p50, {figures['p95_ms']} p95, {figures['p99_ms']} p99; "
            "check.json says more")


def _of_folder(world: World, options: Export, folder: Path) -> Engine:
    """The engine of the target; for ONNX over the exported files instead of the cache's."""
    if options.to == "onnx":
        from dreamloop.runtime.engines.onnx_engine import OnnxEngine
        engine = OnnxEngine(world, options.precision, form=options.form)
        cached = engine.load_or_build
        engine.load_or_build = lambda w, kind, batch, *rest: (  # the folder's graphs are for one player
            (folder / f"{kind}.onnx").read_bytes() if batch == 1 else cached(w, kind, batch, *rest))
        return engine
    require(options)
    return open_engine(world, options.to, options.precision, form=options.form)


def _reference(world: World, options: Export) -> tuple[Engine, str]:
    if options.to == "onnx":
        try:
            return open_engine(world, "torch", "fp64"), "torch fp64"
        except EngineError:
            pass
    return open_engine(world, "onnxruntime", "fp32"), "onnxruntime fp32 portable"


def _moved(engine: Engine, state: State) -> State:
    """A copy of the reference's state as a state of `engine`."""
    copy = engine.new_state(1)
    ring = state.ring if isinstance(state.ring, np.ndarray) else state.ring.cpu().numpy()
    if isinstance(copy.ring, np.ndarray):
        copy.ring[...] = ring
    else:
        import torch
        copy.ring.copy_(torch.from_numpy(ring))
    copy.latent, copy.frame, copy.seed = state.latent.copy(), state.frame.copy(), state.seed.copy()
    return copy
