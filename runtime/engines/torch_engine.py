"""Engine `torch`: the definition, run frame by frame against the ring.

The networks are those that training uses; only the attention differs: fresh keys and values go into
the frame's own slot of the ring first, then every query reads what the plan lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.models.networks.autoencoder import Autoencoder, to_frames
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.networks.ring import RingPass
from dreamloop.runtime.engines.base import State, empty_state

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

    @torch.inference_mode()
    def step(self, state: State, actions: np.ndarray) -> None:
        spec = self.world.spec
        frames = state.frame + 1
        previous = self._tensor(state.latent)[:, None]
        action = self._tensor(actions)[:, None]
        x: Tensor | None = None
        for index, sigma in enumerate(spec.dynamics.sigmas):
            inputs = pass_inputs(spec, frames, state.seed, actions, index)
            noise = self._tensor(inputs.noise)[:, None]
            x = noise if x is None else (1 - sigma) * x + sigma * noise
            ring = RingPass(spec, state.ring, inputs)
            x = self.dynamics(previous, x, action, self._tensor(inputs.condition)[:, None], ring.attend)
        assert x is not None
        state.latent = x[:, 0].float().cpu().numpy()
        state.frame = frames

    @torch.inference_mode()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        return to_frames(self.world.spec, self.autoencoder.decode(self._tensor(latents))).cpu().numpy()

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        return self.autoencoder.encode(torch.from_numpy(frames).to(self.device)).float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "precision": self.precision, "torch": torch.__version__,
                "threads": torch.get_num_threads(), "device": str(self.device)}

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)
