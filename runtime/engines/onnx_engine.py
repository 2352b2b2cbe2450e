"""Engine `onnxruntime`: plays a world without torch, on graphs of our own making.

The ring is one array of the State, bound to the graph in place (onnx_pass.py), so no frame copies it: of numpy, or of
torch on an NVIDIA GPU where ONNX Runtime's CUDA provider is there (onnx_device.py).
Forms and precisions are those of the graphs (onnx_graph.py, onnx_precision.py), as far as ONNX Runtime has
kernels for them on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.base import State, empty_state, import_package, refuse_linear
from dreamloop.runtime.engines.onnx_device import best
from dreamloop.runtime.engines.onnx_pass import StepPass, open_session

DEFAULT_THREADS = 2  # one frame is too little work for more
LARGEST_CHUNK = 16  # frames that `decode` and `encode` take at once
IN_PLACE_VERSION = (1, 25)  # of ONNX Runtime, the first with the operators of opset 24
INPUT = {"decode": "latents", "encode": "frames"}


class OnnxEngine:
    """precision: of the graphs, see onnx_precision.py. threads: cores that one pass may use; None is two, or the
    one there is. form: `portable`, `sparse` or `in_place`; None is the faster dense one."""

    name = "onnxruntime"

    def __init__(self, world: World, precision: str = "fp32", threads: int | None = None,
                 form: str | None = None) -> None:
        refuse_linear(self.name, world)
        try:
            import onnx

            onnxruntime = import_package("onnxruntime")
            from dreamloop.runtime.engines import onnx_cache, onnx_graph, onnx_precision
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            raise EngineError(f"engine onnxruntime cannot run: {str(error).splitlines()[0]}; "
                              "pip install 'dreamloop[onnx]'") from error
        self.device = best(onnxruntime)
        form = form or _best_form(world, precision, onnxruntime.__version__, self.device.name)
        if form not in onnx_graph.FORMS:
            raise EngineError(f"engine onnxruntime knows form {', '.join(onnx_graph.FORMS)}, not {str(form)[:40]!r}")
        self.dtype = onnx_precision.precision_of(precision).dtype
        if precision == "bf16":
            raise EngineError("engine onnxruntime has no bfloat16 products; use fp32 or fp16")
        self.world, self.precision, self.form = world, precision, form
        self.threads = threads or min(DEFAULT_THREADS, _cores())
        self.load_or_build = onnx_cache.load_or_build
        self._runtime = onnxruntime
        self._versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__,
                          "builder": onnx_graph.BUILDER_VERSION}
        self._sessions: dict[tuple[str, int], Any] = {}
        self._passes: dict[int, StepPass] = {}

    def new_state(self, batch: int = 1) -> State:
        return empty_state(self.world.spec, self.device.zeros(self.world.spec.ring_shape(batch), self.dtype), batch)

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        spec, frames = self.world.spec, state.frame + 1
        run = self._passes.get(state.batch)
        if run is None:
            run = StepPass(self._session("step", state.batch), spec, state.batch, self.device)
            self._passes[state.batch] = run
        run.bind_ring(state.ring)
        z: np.ndarray | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            inputs = pass_inputs(spec, frames, state.seed, actions, index, view_frames)
            x = inputs.noise if z is None else np.float32(1 - sigma) * z + np.float32(sigma) * inputs.noise
            z = run(state.latent, x, inputs)
        assert z is not None
        run.commit(state.ring, inputs.slot)
        state.latent, state.frame = z.copy(), frames

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._in_chunks("decode", np.ascontiguousarray(latents, np.float32))

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return self._in_chunks("encode", np.ascontiguousarray(frames))

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "precision": self.precision, "form": self.form, **self._versions,
                "threads": self.threads, "providers": ", ".join(self.device.providers), "device": self.device.name,
                **({"note": self.device.note} if self.device.note else {})}

    def _session(self, kind: str, batch: int) -> Any:
        """The ONNX Runtime session of a graph, made at its first use."""
        if (kind, batch) not in self._sessions:
            data = self.load_or_build(self.world, kind, batch, self.form, self.precision)
            self._sessions[kind, batch] = open_session(self._runtime, data, self.threads,
                                                       self.form == "in_place", self.device)
        return self._sessions[kind, batch]

    def _in_chunks(self, kind: str, values: np.ndarray) -> np.ndarray:
        """One graph after the other over (B, ...), in chunks of 16, 8, 4, 2 and 1: five graphs serve every B."""
        parts = [self._session(kind, stop - start).run(None, {INPUT[kind]: values[start:stop]})[0]
                 for start, stop in chunks(len(values), LARGEST_CHUNK)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _best_form(world: World, precision: str, version: str, device: str) -> str:
    """`in_place` where ONNX Runtime has its operators and it copies nothing: attention is then one node of a layer, and
    the frame's slot is written inside the pass. With sinks it would copy the keys; that a GPU has the operators is not
    known."""
    known = tuple(int(part) for part in version.split(".")[:2]) >= IN_PLACE_VERSION
    fits = known and precision == "fp32" and device == "cpu" and not world.spec.memory.sink_frames
    return "in_place" if fits else "portable"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks(count: int, largest: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive chunks of `largest`, then of falling powers of two."""
    start = 0
    while start < count:
        size = min(largest, 1 << ((count - start).bit_length() - 1))
        yield start, start + size
        start += size
