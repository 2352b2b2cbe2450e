"""Engines `tensorrt` and `tensorrt-rtx`: one code path, on an NVIDIA GPU.

The graphs are those of the onnxruntime engine (onnx_graph.py), compiled by trt_build.py and kept by trt_cache.py.
Ring and buffers are torch tensors on the GPU; form `in_place` has the ring's memory as input and output of the
graph, so a frame is written where it stays. After the first pass everything has a fixed address and the pass is
replayed as one CUDA graph: by TensorRT for RTX itself, for TensorRT by torch.

Building is tested on machines without a GPU. What runs on one is not: see docs/export.md.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.base import State, empty_state, refuse_linear

LARGEST_CHUNK = 16  # frames that `decode` and `encode` take at once
WRITING = ("in_place", "plugin")  # forms that write the ring themselves
EDGES = {"decode": ("latents", "frames"), "encode": ("frames", "latents")}


class TensorRTEngine:
    """precision: see onnx_precision.py; form: `in_place`, `portable`, `sparse`, or `plugin` (plain TensorRT, bf16);
    refit: engines that take the weights of the next world of this name and these sizes (trt_refit.py); threads are not
    used."""

    name = "tensorrt"

    def __init__(self, world: World, precision: str = "fp16", threads: int | None = None,
                 form: str = "in_place", refit: bool = False) -> None:
        refuse_linear(self.name, world)
        try:
            from dreamloop.runtime.engines import onnx_graph, onnx_precision, trt_build, trt_cache, trt_plugin
        except ImportError as error:
            raise EngineError(f"engine {self.name} cannot run: {error}; pip install 'dreamloop[onnx]'") from error
        self._trt = trt_build.library(self.name)
        self.arch = trt_build.device_architecture()
        if not self.arch:
            raise EngineError(f"engine {self.name} has no NVIDIA GPU that torch can use here")
        if form not in onnx_graph.TENSORRT_FORMS:
            raise EngineError(f"engine {self.name} knows form {', '.join(onnx_graph.TENSORRT_FORMS)}, "
                              f"not {str(form)[:40]!r}")
        if form == "plugin":
            trt_plugin.bindings(self.name)
        self._torch = importlib.import_module("torch")
        self._base = onnx_precision.precision_of(precision).base
        self.world, self.precision, self.form = world, precision, form
        self._refit = refit
        self._load, self._log = trt_cache.load_or_build, trt_build.log_of(self.name)
        self._runtime = self._trt.Runtime(self._log)
        self._versions = {"library": trt_build.version(self.name), "builder": onnx_graph.BUILDER_VERSION}
        self.reports: dict[str, dict[str, Any]] = {}
        self._executions: dict[tuple[str, int], Execution] = {}

    def new_state(self, batch: int = 1) -> State:
        kind = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[self._base]
        ring = self._torch.zeros(self.world.spec.ring_shape(batch), dtype=getattr(self._torch, kind), device="cuda")
        return empty_state(self.world.spec, ring, batch)

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        from dreamloop.runtime.engines.onnx_pass import write_inputs
        spec, frames = self.world.spec, state.frame + 1
        run = self._execution("step", state.batch)
        for layer in range(spec.dynamics.layers):
            for part, name in enumerate(("key", "value")):
                run.bind(f"{name}_{layer}", state.ring[layer, part])
                if self.form in WRITING:
                    run.bind(f"ring_{name}_{layer}", state.ring[layer, part])
        z: np.ndarray | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            inputs = pass_inputs(spec, frames, state.seed, actions, index, view_frames)
            x = inputs.noise if z is None else np.float32(1 - sigma) * z + np.float32(sigma) * inputs.noise
            write_inputs(spec, state.latent, x, inputs, run.host)
            run()
            z = run.fetch("z")
        assert z is not None
        if self.form not in WRITING:
            for layer in range(spec.dynamics.layers):
                for part, name in enumerate(("key", "value")):
                    fresh = run.device[f"new_{name}_{layer}"]
                    for player, slot in enumerate(inputs.slot):
                        first = int(slot) * spec.tokens_padded
                        state.ring[layer, part, player, :, first : first + spec.tokens] = fresh[player]
        state.latent, state.frame = z, frames

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._in_chunks("decode", latents)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return self._in_chunks("encode", frames)

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "precision": self.precision, "form": self.form, **self._versions,
                "arch": self.arch, "device": self._torch.cuda.get_device_name(), "builds": self.reports}

    def _execution(self, kind: str, batch: int) -> Execution:
        """The running form of a graph, built or loaded at its first use."""
        if (kind, batch) not in self._executions:
            engine, report = self._load(self.name, self.world, kind, batch, self.form, self.precision, self.arch,
                                        self._refit)
            self.reports[f"{kind} {batch}"] = report
            loaded = self._runtime.deserialize_cuda_engine(engine)
            if loaded is None:
                raise EngineError(f"engine {self.name} cannot load the {kind} engine for {self.arch}")
            self._executions[kind, batch] = Execution(self._trt, self._torch, loaded)
        return self._executions[kind, batch]

    def _in_chunks(self, kind: str, values: np.ndarray) -> np.ndarray:
        """Chunks of 16, 8, 4, 2 and 1: five engines serve every B."""
        from dreamloop.runtime.engines.onnx_engine import chunks
        source, result = EDGES[kind]
        parts = []
        for start, stop in chunks(len(values), LARGEST_CHUNK):
            run = self._execution(kind, stop - start)
            run.host[source][...] = values[start:stop]
            run()
            parts.append(run.fetch(result))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class TensorRTForRTXEngine(TensorRTEngine):
    """The same on TensorRT for RTX."""

    name = "tensorrt-rtx"


class Execution:
    """One engine with all its buffers: `host` (numpy, pinned) by name of input, `device` by name of input or output.
    Ring buffers are bound by the caller."""

    def __init__(self, trt: Any, torch: Any, engine: Any) -> None:
        self._torch, self._engine = torch, engine
        self._stream = torch.cuda.Stream()
        self._graph: Any = None
        self._warm = False
        self.device: dict[str, Any] = {}
        self._pinned: dict[str, Any] = {}
        self._own_graphs = hasattr(trt, "CudaGraphStrategy")
        if self._own_graphs:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = engine.create_execution_context(config)
        else:
            self._context = engine.create_execution_context()
        types = {trt.DataType.FLOAT: torch.float32, trt.DataType.HALF: torch.float16, trt.DataType.BF16: torch.bfloat16,
                 trt.DataType.INT32: torch.int32, trt.DataType.INT64: torch.int64, trt.DataType.BOOL: torch.bool,
                 trt.DataType.UINT8: torch.uint8}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if name.startswith(("key_", "value_", "ring_")):
                continue
            shape, kind = tuple(engine.get_tensor_shape(name)), types[engine.get_tensor_dtype(name)]
            self.bind(name, torch.zeros(shape, dtype=kind, device="cuda"))
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._pinned[name] = torch.zeros(shape, dtype=kind, pin_memory=True)
        self.host = {name: tensor.numpy() for name, tensor in self._pinned.items()}

    def bind(self, name: str, tensor: Any) -> None:
        """Use the memory of `tensor` from now on; a captured graph of other addresses is given up."""
        before = self.device.get(name)
        if before is not None and before.data_ptr() == tensor.data_ptr():
            return
        assert tensor.is_contiguous(), name
        self.device[name], self._graph, self._warm = tensor, None, False
        self._context.set_tensor_address(name, tensor.data_ptr())

    def __call__(self) -> None:
        """Copy `host` to the GPU, run, and wait."""
        with self._torch.cuda.stream(self._stream):
            for name, pinned in self._pinned.items():
                self.device[name].copy_(pinned, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
            elif self._warm and not self._own_graphs:
                from dreamloop.runtime.gpu.graph import capture
                self._graph = capture(self._enqueue, stream=self._stream)
                self._graph.replay()
            else:
                self._enqueue()
                self._warm = True
        self._stream.synchronize()

    def fetch(self, name: str) -> np.ndarray:
        """An output as a fresh numpy array."""
        return np.asarray(self.device[name].cpu().numpy())

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._torch.cuda.current_stream().cuda_stream):
            raise EngineError("TensorRT could not run a pass; its log says why")
