"""The ONNX graphs on OpenVINO, for `dreamloop bench` to compare with; nothing plays on it.

    pip install 'dreamloop[openvino]'

The ring lies in numpy arrays that the compiled graph reads in place; fresh keys and values are written into each
player's slot after the pass, as the ONNX Runtime engine does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import onnx_cache
from dreamloop.runtime.engines.base import State, empty_state, refuse_linear
from dreamloop.runtime.engines.onnx_pass import commit, write_inputs

HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """precision: `fp32` or `bf16`, which OpenVINO then uses where it can. For one player."""

    name = "openvino"

    def __init__(self, world: World, precision: str = "fp32", threads: int | None = None) -> None:
        refuse_linear(self.name, world)
        try:
            import openvino
        except (ImportError, OSError) as error:
            raise EngineError(f"engine openvino cannot run: {str(error).splitlines()[0]}; "
                              "pip install 'dreamloop[openvino]'") from error
        if precision not in HINTS:
            raise EngineError(f"engine openvino knows precision {', '.join(HINTS)}, not {str(precision)[:40]!r}")
        self.world, self.precision = world, precision
        self._openvino, self._core = openvino, openvino.Core()
        self._options = {"INFERENCE_PRECISION_HINT": HINTS[precision], "NUM_STREAMS": "1",
                         "INFERENCE_NUM_THREADS": str(threads or 2), "PERFORMANCE_HINT": "LATENCY"}
        self._requests: dict[str, Any] = {}
        self._ring_address = 0

    def new_state(self, batch: int = 1) -> State:
        return empty_state(self.world.spec, np.zeros(self.world.spec.ring_shape(batch), np.float32), batch)

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        spec, frames = self.world.spec, state.frame + 1
        request = self._request("step")
        values = self._bound(request, state.ring)
        z: np.ndarray | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            inputs = pass_inputs(spec, frames, state.seed, actions, index, view_frames)
            x = inputs.noise if z is None else np.float32(1 - sigma) * z + np.float32(sigma) * inputs.noise
            write_inputs(spec, state.latent, x, inputs, values)
            request.infer()
            z = request.get_tensor("z").data.copy()
        assert z is not None
        fresh = np.stack([np.stack([request.get_tensor(f"new_{kind}_{layer}").data for kind in ("key", "value")])
                          for layer in range(spec.dynamics.layers)])
        commit(spec, state.ring, inputs.slot, fresh)
        state.latent, state.frame = z, frames

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._one("decode", latents)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return self._one("encode", frames)

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "precision": self.precision, "openvino": self._openvino.__version__,
                "threads": int(self._options["INFERENCE_NUM_THREADS"]), "device": "cpu"}

    def _request(self, kind: str) -> Any:
        if kind not in self._requests:
            model = self._core.read_model(onnx_cache.load_or_build(self.world, kind, 1))
            self._requests[kind] = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        return self._requests[kind]

    def _bound(self, request: Any, ring: np.ndarray) -> dict[str, np.ndarray]:
        """Every input but the ring's as an array to write to; the ring's layers are bound as they lie."""
        values = {}
        rebind = ring.__array_interface__["data"][0] != self._ring_address
        for port in request.model_inputs:
            name = port.any_name
            kind, _, layer = name.rpartition("_")
            if kind not in ("key", "value"):
                values[name] = request.get_tensor(name).data
            elif rebind:
                part = ring[int(layer), 0 if kind == "key" else 1]
                request.set_tensor(name, self._openvino.Tensor(part, shared_memory=True))
        self._ring_address = ring.__array_interface__["data"][0]
        return values

    def _one(self, kind: str, batch: np.ndarray) -> np.ndarray:
        request, done = self._request(kind), []
        for value in batch:
            request.get_input_tensor(0).data[...] = value[None]
            request.infer()
            done.append(request.get_output_tensor(0).data.copy())
        return np.concatenate(done)
