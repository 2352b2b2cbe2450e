"""Engine `onnxruntime`: plays a world without torch, on graphs of our own making.

The ring is one numpy array of the State. Each layer's keys and values are a contiguous part of it
and are bound to the graph in place, so no frame copies the ring; after the pass the fresh keys and
values are written into each player's own slot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamloop.models.core.conditioning import PassInputs, pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.base import State, empty_state, import_package

DEFAULT_THREADS = 2  # one frame is too little work for more
LARGEST_CHUNK = 16  # frames that `decode` and `encode` take at once
SINK_INPUTS = ("store_cos", "store_sin", "sink_cos", "sink_sin")
INPUT = {"decode": "latents", "encode": "frames"}
PROVIDERS = ["CPUExecutionProvider"]
MASKED = -1e9  # added to a score, leaves exactly 0 after the softmax


class OnnxEngine:
    """precision: `fp32`. threads: cores that one pass may use; None is two, or the one there is."""

    name = "onnxruntime"

    def __init__(self, world: World, precision: str = "fp32", threads: int | None = None) -> None:
        try:
            import onnx
            onnxruntime = import_package("onnxruntime")

            from dreamloop.runtime.engines import onnx_cache, onnx_graph
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            raise EngineError(f"engine onnxruntime cannot run: {str(error).splitlines()[0]}; "
                              "pip install 'dreamloop[onnx]'") from error
        if precision not in onnx_graph.PRECISIONS:
            known = ", ".join(onnx_graph.PRECISIONS)
            raise EngineError(f"engine onnxruntime knows precision {known}, not {str(precision)[:40]!r}")
        self.world, self.precision = world, precision
        self.threads = threads or min(DEFAULT_THREADS, _cores())
        self._load_or_build = onnx_cache.load_or_build
        self._runtime = onnxruntime
        self._versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__,
                          "builder": onnx_graph.BUILDER_VERSION}
        self._sessions: dict[tuple[str, int], Any] = {}
        self._passes: dict[int, StepPass] = {}

    def new_state(self, batch: int = 1) -> State:
        return empty_state(self.world.spec, np.zeros(self.world.spec.ring_shape(batch), np.float32), batch)

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        spec, frames = self.world.spec, state.frame + 1
        run = self._passes.get(state.batch)
        if run is None:
            run = StepPass(self._session("step", state.batch), spec, state.batch, self._runtime)
            self._passes[state.batch] = run
        run.bind_ring(state.ring)
        z: np.ndarray | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            inputs = pass_inputs(spec, frames, state.seed, actions, index, view_frames)
            x = inputs.noise if z is None else np.float32(1 - sigma) * z + np.float32(sigma) * inputs.noise
            z = run(state.latent, x, inputs)
        assert z is not None
        commit(spec, state.ring, inputs.slot, run.fresh)
        state.latent, state.frame = z.copy(), frames

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._in_chunks("decode", np.ascontiguousarray(latents, np.float32))

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return self._in_chunks("encode", np.ascontiguousarray(frames))

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "precision": self.precision, **self._versions, "threads": self.threads,
                "providers": ", ".join(PROVIDERS), "device": "cpu"}

    def _session(self, kind: str, batch: int) -> Any:
        """The ONNX Runtime session of a graph, made at its first use."""
        if (kind, batch) not in self._sessions:
            options = self._runtime.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.execution_mode = self._runtime.ExecutionMode.ORT_SEQUENTIAL
            # threads wait awake within a pass, but not between passes, where another session runs
            options.add_session_config_entry("session.force_spinning_stop", "1")
            options.log_severity_level = 3
            data = self._load_or_build(self.world, kind, batch)
            self._sessions[kind, batch] = self._runtime.InferenceSession(data, options, providers=PROVIDERS)
        return self._sessions[kind, batch]

    def _in_chunks(self, kind: str, values: np.ndarray) -> np.ndarray:
        """One graph after the other over (B, ...), in chunks of 16, 8, 4, 2 and 1: five graphs serve every B."""
        parts = [self._session(kind, stop - start).run(None, {INPUT[kind]: values[start:stop]})[0]
                 for start, stop in _chunks(len(values))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class StepPass:
    """The step graph for B players with all its buffers bound.

    fresh: (L, 2, B, H, T, D) float32, keys and values of the last call, owned by this object.
    """

    def __init__(self, session: Any, spec: WorldSpec, batch: int, runtime: Any) -> None:
        self.session, self.spec, self.batch, self._runtime = session, spec, batch, runtime
        d = spec.dynamics
        self.fresh = np.zeros((d.layers, 2, batch, d.heads, spec.tokens, d.head_size), np.float32)
        self.z = np.zeros((batch, *spec.latent_shape), np.float32)
        self.binding = session.io_binding()
        self.values = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()
                       if not i.name.startswith(("key_", "value_"))}
        for name, value in self.values.items():
            self.binding.bind_ortvalue_input(name, self._value(value))
        self.binding.bind_ortvalue_output("z", self._value(self.z))
        for layer in range(d.layers):
            self.binding.bind_ortvalue_output(f"new_key_{layer}", self._value(self.fresh[layer, 0]))
            self.binding.bind_ortvalue_output(f"new_value_{layer}", self._value(self.fresh[layer, 1]))
        self._ring_address = 0

    def _value(self, array: np.ndarray) -> Any:
        """`array` as an OrtValue over the same memory."""
        assert array.flags.c_contiguous
        return self._runtime.OrtValue.ortvalue_from_numpy(array)

    def bind_ring(self, ring: np.ndarray) -> None:
        """Read keys and values from this ring, in place, until another one is bound."""
        assert ring.shape == self.spec.ring_shape(self.batch) and ring.dtype == np.float32, (ring.shape, ring.dtype)
        address = ring.__array_interface__["data"][0]
        if address == self._ring_address:
            return
        for layer in range(self.spec.dynamics.layers):
            self.binding.bind_ortvalue_input(f"key_{layer}", self._value(ring[layer, 0]))
            self.binding.bind_ortvalue_input(f"value_{layer}", self._value(ring[layer, 1]))
        self._ring_address = address

    def __call__(self, previous: np.ndarray, x: np.ndarray, inputs: PassInputs) -> np.ndarray:
        """z_t, (B, C, h, w), in a buffer that the next call overwrites; keys and values in `fresh`."""
        values = self.values
        values["previous"][...], values["x"][...] = previous, x
        for name in ("action", "condition", "cos", "sin", *(SINK_INPUTS if self.spec.memory.sink_frames else ())):
            values[name][...] = getattr(inputs, name)
        write_mask(self.spec, inputs, values["mask"])
        self.session.run_with_iobinding(self.binding)
        return self.z


def write_mask(spec: WorldSpec, inputs: PassInputs, out: np.ndarray) -> None:
    """The plan as numbers to add to the scores, out: (B, 1, T, S * Tp + T).

    The plan counts the fresh keys as lying in the frame's own slot; here they are the last T
    columns, and the slot itself, which still holds what is about to be overwritten, is not read.
    """
    blocks = inputs.plan.token_mask()
    ring_tokens = blocks.shape[-1]
    reads = blocks.repeat(spec.block_tokens, axis=2)[:, :, : spec.tokens]
    out[..., :ring_tokens] = np.where(reads, np.float32(0), np.float32(MASKED))
    for player, slot in enumerate(inputs.slot):
        own = int(slot) * spec.tokens_padded
        out[player, ..., ring_tokens:] = out[player, ..., own : own + spec.tokens]
        out[player, ..., own : own + spec.tokens_padded] = MASKED


def commit(spec: WorldSpec, ring: np.ndarray, slots: np.ndarray, fresh: np.ndarray) -> None:
    """Write each player's fresh keys and values, (L, 2, B, H, T, D), into that player's slot."""
    for player, slot in enumerate(slots):
        first = int(slot) * spec.tokens_padded
        ring[:, :, player, :, first : first + spec.tokens] = fresh[:, :, player]


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive chunks of 16, then of falling powers of two."""
    start = 0
    while start < count:
        size = min(LARGEST_CHUNK, 1 << ((count - start).bit_length() - 1))
        yield start, start + size
        start += size
