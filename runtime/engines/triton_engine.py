"""Engine `triton`: a whole frame as one captured CUDA graph, on an NVIDIA GPU.

    engine = open_engine(world, "triton")                         # bf16; see KINDS for the other precisions
    engine = TritonEngine(world, "bf16", device="cpu")            # the same step without a GPU, to test it

Slot, plan, rotations and noise are made on the device from the frame's index and seed; the network runs on the kernels
of runtime/gpu/; the decoder follows in the same graph. The host copies a few kilobytes in, launches, copies latent and
pixels back and waits once: nothing else of a frame is the host's. Ring and state are those of the torch engine, so
snapshots, batches and replays work as they do there.

`decode` returns the pixels that the graph has made already where it is asked about the latents of one of the last two
frames, and decodes afresh where it is asked about any others.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.models.networks.autoencoder import to_frames
from dreamloop.runtime.engines.base import State
from dreamloop.runtime.engines.torch_engine import TorchEngine
from dreamloop.runtime.engines.triton_frame import OUTPUTS, Buffers, Graphs
from dreamloop.runtime.engines.triton_linear import FRAMES, Watch, rollouts
from dreamloop.runtime.engines.triton_network import Network
from dreamloop.runtime.gpu import kernels_for, why_plain
from dreamloop.runtime.gpu.plans import EVER

STAGES = ("inputs", "network", "decoder")  # of a frame on the device
# precision -> that of what is not in FP8 or, with qk8, in int8
KINDS = {"bf16": "bf16", "bf16-qk8": "bf16", "fp8": "bf16", "fp8-qk8": "bf16", "fp32": "fp32"}
FP8_CAPABILITY = (8, 9)  # the first GPUs that multiply in FP8
CAPABILITY = (8, 0)  # of a GPU whose tensor cores multiply bf16
FP8_MULTIPLE = 16  # of both sides of a product's weights (torch._scaled_mm on a GPU)


class TritonEngine(TorchEngine):
    """precision: `bf16`, `fp8` (qkv, up and down in FP8, the rest in bf16), either with `-qk8` (queries times keys in
    int8 too), or `fp32`. device: `cuda`, or `cpu` to test the arithmetic; threads are torch's own. calibration_frames:
    of each self-rollout that finds the scales of FP8."""

    name = "triton"

    def __init__(self, world: World, precision: str = "bf16", threads: int | None = None, device: str = "cuda",
                 calibration_frames: int = FRAMES) -> None:
        if precision not in KINDS:
            raise EngineError(f"engine triton knows precisions {', '.join(KINDS)}, not {str(precision)[:40]!r}")
        d = world.spec.dynamics
        if precision.startswith("fp8") and (d.width % FP8_MULTIPLE or d.mlp_width % FP8_MULTIPLE):
            raise EngineError(f"engine triton: FP8 products need widths that are multiples of {FP8_MULTIPLE}, not "
                              f"{d.width} and {d.mlp_width}")
        if device != "cpu":
            if reason := why_missing(device):
                raise EngineError(f"engine triton cannot run: {reason}")
            if precision.startswith("fp8") and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
                raise EngineError(f"engine triton: {torch.cuda.get_device_name(device)} has no FP8 products; "
                                  f"precisions that it has: bf16, bf16-qk8, fp32")
        super().__init__(world, KINDS[precision], threads, device)
        self.precision = precision
        self.kernels = kernels_for(device)
        fused_noise = "noise" if why_plain(device) else "noise_kernel"
        self._normal = import_module(f"dreamloop.runtime.gpu.{fused_noise}").normal
        self._buffers: dict[int, Buffers] = {}
        self._graphs = Graphs()
        self.building_frames = 1 + OUTPUTS if self.device.type == "cuda" else 1
        self._marks: list[Any] = []  # events between the stages of a frame, where somebody measures
        self._marked = False  # whether they are those of the last frame
        weights = {name: value.detach() for name, value in self.dynamics.state_dict().items()}
        self.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        narrow = torch.int8 if precision.endswith("-qk8") else None
        self.network = Network(world.spec, weights, self.kernels, narrow=narrow)
        if precision.startswith("fp8"):
            self.largest = self._calibrated(calibration_frames)
            self.network = Network(world.spec, weights, self.kernels, largest=self.largest, narrow=narrow)
            self._graphs = Graphs()
        del self.dynamics  # its weights live on in the network

    def _calibrated(self, frames: int) -> dict[tuple[int, str], float]:
        """Largest inputs of the products over self-rollouts in bf16."""
        watch = self.network.watch = Watch()
        spec, starts = self.world.spec, self.world.starts

        def play(start: int, actions: list[np.ndarray]) -> None:
            state = self.new_state(1)
            state.seed[:], state.latent = start, self.encode(starts[start : start + 1])
            for action in actions:
                self._run(state, action, None, self._frame)
        rollouts(play, len(starts), spec.actions.size, frames)
        return watch.largest()

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        self._run(state, actions, view_frames, self._captured if self.device.type == "cuda" else self._frame)

    @torch.inference_mode()
    def _run(self, state: State, actions: np.ndarray, view_frames: int | None, make: Any) -> None:
        buffers = self._buffers.get(state.batch)
        if buffers is None:
            buffers = self._buffers[state.batch] = Buffers(self.world.spec, state.batch, self.device)
        host = buffers.inputs.host
        host["frame"][:] = state.frame + 1
        host["seed"][:] = state.seed.view(np.int64)
        host["view"][:] = EVER if view_frames is None else view_frames
        host["latent"][:], host["action"][:] = state.latent, actions
        output = buffers.next_output()
        on_gpu = self.device.type == "cuda"
        named = torch.cuda.nvtx.range(f"dreamloop frame {state.frame[0] + 1}") if on_gpu else nullcontext()
        with self.placed(), named:
            buffers.inputs.upload()
            make(buffers, output, state.ring)
            buffers.outputs[output].download()
            if on_gpu:
                torch.cuda.current_stream(self.device).synchronize()
        self._marked = bool(self._marks)
        state.latent = buffers.outputs[output].host["latent"].copy()
        state.frame = state.frame + 1

    def _captured(self, buffers: Buffers, output: int, ring: Tensor) -> None:
        self._graphs.run(ring, output, lambda: self._frame(buffers, output, ring))

    def _frame(self, buffers: Buffers, output: int, ring: Tensor) -> None:
        """Everything of a frame that the device does; what the graph holds."""
        spec, given, made = self.world.spec, buffers.inputs.device, buffers.outputs[output].device
        self._mark(0)
        inputs = self.network.inputs(given["frame"], given["view"])
        size = int(np.prod(spec.latent_shape))
        x: Tensor | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            noise = self._normal(given["seed"], given["frame"], size, index).view_as(given["latent"])
            x = noise if x is None else (1 - sigma) * x + sigma * noise
            if index == 0:
                self._mark(1)
            x = self.network(given["latent"], x, given["action"], index, inputs, ring)
        assert x is not None
        self._mark(2)
        made["latent"].copy_(x)
        pixels = self.autoencoder.decode(x.to(self.dtype, memory_format=torch.channels_last))
        made["pixels"].copy_(to_frames(spec, pixels))
        self._mark(3)

    def _mark(self, place: int) -> None:
        if self._marks:
            self._marks[place].record()

    def measure_stages(self) -> None:
        """From now on, note when the device begins and ends each stage of a frame: graphs are captured anew, with event
        nodes between the stages, in the next `building_frames` frames. Does nothing without a GPU."""
        if self.device.type == "cuda" and not self._marks:
            self._marks = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(len(STAGES) + 1)]
            self._graphs = Graphs()

    def device_stages(self) -> list[tuple[str, float, float]]:
        """(stage, start, stop) of the last frame by the device's own clock, in milliseconds from its first stage."""
        if not self._marked:
            return []
        first, *rest = self._marks
        moments = [0.0, *(float(first.elapsed_time(event)) for event in rest)]
        return list(zip(STAGES, moments, moments[1:], strict=False))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        buffers = self._buffers.get(len(latents))
        pixels = None if buffers is None else buffers.pixels_of(latents)
        return super().decode(latents) if pixels is None else pixels

    def describe(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {**super().describe(), "precision": self.precision, "device": device,
                "kernels": self.kernels.__name__.rpartition(".")[2],
                "noise": self._normal.__module__.rpartition(".")[2]}


def why_missing(device: str = "cuda") -> str:
    """Why this engine cannot run on a GPU here, in one line, or an empty string."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no NVIDIA GPU with CUDA here"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than sm_80, which the kernels are for"
    return why_plain(device)


