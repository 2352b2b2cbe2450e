"""Engine `torch`: the definition, run frame by frame against the ring.

The networks are those that training uses; only the attention differs: fresh keys and values go into
the frame's own slot of the ring first, then every query reads what the plan lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.models.networks.autoencoder import Autoencoder, to_frames
from dreamloop.models.networks.dit import Dynamics, rotate
from dreamloop.models.networks.ring import RingPass
from dreamloop.runtime.engines.base import State, empty_state, refuse_linear

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine:
    """precision: `fp32`, `bf16`, or `fp64` (the oracle that the tests hold every engine to)."""

    name = "torch"

    def __init__(self, world: World, precision: str = "fp32", threads: int | None = None, device: str = "cpu") -> None:
        if precision not in PRECISIONS:
            raise EngineError(f"engine torch knows precisions {', '.join(PRECISIONS)}, not {precision!r}")
        if device != "cpu" and not torch.cuda.is_available():
            raise EngineError(f"engine torch: device {device} is not available here")
        if threads:
            torch.set_num_threads(threads)
        self.world, self.precision, self.device = world, precision, torch.device(device)
        self.dtype = PRECISIONS[precision]
        self.dynamics = Dynamics(world.spec)
        self.autoencoder = Autoencoder(world.spec)
        for prefix, module in (("dynamics.", self.dynamics), ("autoencoder.", self.autoencoder)):
            module.load_state_dict({name.removeprefix(prefix): torch.from_numpy(value)
                                    for name, value in world.weights.items() if name.startswith(prefix)})
            module.to(self.device, self.dtype).eval().requires_grad_(False)

    def new_state(self, batch: int = 1) -> State:
        ring = torch.zeros(self.world.spec.ring_shape(batch), dtype=self.dtype, device=self.device)
        return empty_state(self.world.spec, ring, batch)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """On a GPU: kernels are launched on the engine's own, and convolutions in fp32 are not rounded to ten bits, as
        torch would have them."""
        if self.device.type != "cuda":
            yield
            return
        cudnn = torch.backends.cudnn
        with torch.cuda.device(self.device), cudnn.flags(
                enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic,
                allow_tf32=self.dtype != torch.float32):
            yield

    @torch.inference_mode()
    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        spec = self.world.spec
        frames = state.frame + 1
        previous = self._tensor(state.latent)[:, None]
        action = self._tensor(actions)[:, None]
        x: Tensor | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            inputs = pass_inputs(spec, frames, state.seed, actions, index, view_frames)
            noise = self._tensor(inputs.noise)[:, None]
            x = noise if x is None else (1 - sigma) * x + sigma * noise
            ring = RingPass(spec, state.ring, inputs)
            x = self.dynamics(previous, x, action, self._tensor(inputs.condition)[:, None], ring.attend)
        assert x is not None
        state.latent = x[:, 0].float().cpu().numpy()
        state.frame = frames

    @torch.inference_mode()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        with self.placed():
            return to_frames(self.world.spec, self.autoencoder.decode(self._tensor(latents))).cpu().numpy()

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        with self.placed():
            return self.autoencoder.encode(torch.from_numpy(frames).to(self.device)).float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "precision": self.precision, "torch": torch.__version__,
                "threads": torch.get_num_threads(), "device": str(self.device)}

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)


class CompiledTorchEngine(TorchEngine):
    """The torch engine with its networks compiled by `torch.compile`, for one player. Compiling takes minutes, so
    `dreamloop bench` compares with it and nothing plays on it. mode, backend: of torch.compile; mode `reduce-overhead`
    captures CUDA graphs, for which the ring is marked as staying where it is; backend `eager` traces and compiles
    nothing, for tests."""

    name = "torch-compile"

    def __init__(self, world: World, precision: str = "fp32", threads: int | None = None, device: str = "cpu",
                 mode: str = "default", backend: str = "inductor") -> None:
        refuse_linear(self.name, world)
        super().__init__(world, precision, threads, device)
        self.mode = mode
        if world.spec.plan.policy == "top_k":
            raise EngineError("engine torch-compile cannot choose blocks while it plays; torch can")
        self._pass = torch.compile(self._frame, dynamic=False, fullgraph=True, mode=mode, backend=backend)
        self._decode = torch.compile(self.autoencoder.decode, dynamic=False, fullgraph=True, mode=mode, backend=backend)

    def _frame(self, previous: Tensor, x: Tensor, action: Tensor, condition: Tensor, ring: Tensor, turns: list[Tensor],
               rows: Tensor, mask: Tensor) -> Tensor:
        """One pass over tensors alone: the ring is written in place at `rows` (T,), and read under `mask`."""
        cos, sin, store_cos, store_sin, sink_cos, sink_sin = turns
        sinks = self.world.spec.memory.sink_frames * self.world.spec.tokens_padded

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _linear: Tensor | None) -> Tensor:
            keys, values = ring[layer]
            keys.index_copy_(2, rows, rotate(k, store_cos, store_sin)[:, :, 0].to(keys.dtype))
            values.index_copy_(2, rows, v[:, :, 0])
            if sinks:
                old = keys[:, :, :sinks].unflatten(2, (self.world.spec.memory.sink_frames, -1))
                turned = rotate(old, sink_cos, sink_sin).flatten(2, 3).to(keys.dtype)
                keys = torch.cat([turned, keys[:, :, sinks:]], dim=2)
            query = rotate(q, cos, sin)[:, :, 0].to(keys.dtype)
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)[:, :, None]

        return self.dynamics(previous, x, action, condition, attend)

    @torch.inference_mode()
    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        spec, frames = self.world.spec, state.frame + 1
        assert state.batch == 1, state.batch
        if self.mode == "reduce-overhead":
            torch._dynamo.mark_static_address(state.ring)
        x: Tensor | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            i = pass_inputs(spec, frames, state.seed, actions, index, view_frames)
            noise = self._tensor(i.noise)[:, None]
            x = noise if x is None else (1 - sigma) * x + sigma * noise
            ring = RingPass(spec, state.ring, i)  # its tensors only: turns and mask
            turns = [ring.cos, ring.sin, ring.store_cos, ring.store_sin, ring.sink_cos, ring.sink_sin]
            rows = torch.arange(ring.rows[0].start, ring.rows[0].stop, device=self.device)
            x = self._pass(self._tensor(state.latent)[:, None], x, self._tensor(actions)[:, None],
                           self._tensor(i.condition)[:, None], state.ring, turns, rows, ring.mask)
        assert x is not None
        state.latent, state.frame = x[:, 0].float().cpu().numpy(), frames

    @torch.inference_mode()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        return to_frames(self.world.spec, self._decode(self._tensor(latents))).cpu().numpy()
