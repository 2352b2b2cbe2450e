"""What goes to the device and comes back for a frame, and the CUDA graph in between.

    host (pinned)  --one copy-->  frame, seed, view, latent, action
                                  graph: slot, plan, rotations, noise, network, decoder
    host (pinned)  <--one copy--  latent, pixels          two outputs in turn: the frame before stays readable

The graph is captured for one ring (addresses are part of it) and one number of players. The first frame with a ring
runs eagerly; the next one of each output runs eagerly once more, is captured behind it, and replayed from then on; a
ring that is gone takes its graphs with it.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.gpu.graph import capture

ALIGNMENT = 256  # bytes
OUTPUTS = 2
GRAPHS = 16  # rings whose graphs are kept
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Packed:
    """Named tensors in one piece of memory on the device and a pinned one on the host, so that one copy moves all.
    `host`: numpy views; `device`: tensors. Without CUDA both are the same memory."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        sizes = {name: torch.empty(0, dtype=kind).element_size() * int(np.prod(shape))
                 for name, (kind, shape) in shapes.items()}
        offsets, total = {}, 0
        for name, size in sizes.items():
            offsets[name] = total
            total += -(-size // ALIGNMENT) * ALIGNMENT
        self._host = torch.zeros(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(total, dtype=torch.uint8, device=device) if device.type == "cuda" else self._host

        def views(whole: Tensor) -> dict[str, Tensor]:
            return {name: whole[offsets[name] : offsets[name] + sizes[name]].view(kind).view(shape)
                    for name, (kind, shape) in shapes.items()}
        self.device = views(self._device)
        self.host: dict[str, np.ndarray] = {name: view.numpy() for name, view in views(self._host).items()}

    def upload(self) -> None:
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def download(self) -> None:
        if self._device is not self._host:
            self._host.copy_(self._device, non_blocking=True)


class Buffers:
    """Of B players. The outputs take turns, each with a graph of its own."""

    def __init__(self, spec: WorldSpec, players: int, device: torch.device) -> None:
        latent, b = spec.latent_shape, players
        self.inputs = Packed({"frame": (torch.int64, (b,)), "seed": (torch.int64, (b,)), "view": (torch.int64, (b,)),
                              "latent": (torch.float32, (b, *latent)),
                              "action": (torch.float32, (b, spec.actions.size))}, device)
        self.outputs = [Packed({"latent": (torch.float32, (b, *latent)),
                                "pixels": (torch.uint8, (b, spec.frame_height, spec.frame_width, 3))}, device)
                        for _ in range(OUTPUTS)]
        self.made = 0

    def next_output(self) -> int:
        """The number of the output that takes the frame that is made now."""
        self.made += 1
        return self.made % OUTPUTS

    def pixels_of(self, latents: np.ndarray) -> np.ndarray | None:
        """The pixels of latents that one of the last frames ended with, freshly copied; None of any other."""
        for back in range(min(self.made, OUTPUTS)):
            host = self.outputs[(self.made - back) % OUTPUTS].host
            if np.array_equal(host["latent"], latents):
                return host["pixels"].copy()
        return None


class Graphs:
    """Captured frames by ring and output. Graphs share their memory: they never run at the same time, and nothing of
    theirs outlives a frame."""

    def __init__(self) -> None:
        self.refused = ""  # why capturing has failed, in one line
        self._kept: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._seen: dict[int, Any] = {}

    def run(self, ring: Tensor, output: int, frame: Callable[[], None]) -> None:
        """Make a frame: by the graph that was captured for this ring and output, or eagerly. A ring that is seen again
        has its frame captured too: its graph makes the frames to come."""
        key = (ring.data_ptr(), output)
        known = self._kept.get(key)
        if known is not None and known[0]() is ring:
            known[1].replay()
            return
        frame()  # also before every capture, in the thread that captures
        seen = self._seen.get(ring.data_ptr())
        if seen is None or seen() is not ring:
            self._forget()
            self._seen[ring.data_ptr()] = weakref.ref(ring)
            return
        if self.refused:
            return
        # torch refuses memory whose graphs are all gone, so it is that of a graph that is still here, or fresh
        alive = next((other for _, other in self._kept.values()), None)
        try:
            self._kept[key] = weakref.ref(ring), capture(frame, None if alive is None else alive.pool())
        except RuntimeError as error:  # the frame is made: whoever plays goes on, slower
            self.refused = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            warnings.warn(f"frames cannot be captured and are launched kernel by kernel from now on: {self.refused}",
                          RuntimeWarning, stacklevel=2)

    def _forget(self) -> None:
        """Drop the graphs of rings that are gone, and the oldest beyond the limit."""
        self._kept = {key: kept for key, kept in self._kept.items() if kept[0]() is not None}
        while len(self._kept) > OUTPUTS * (GRAPHS - 1):
            del self._kept[next(iter(self._kept))]
        self._seen = {place: ring for place, ring in self._seen.items() if ring() is not None}
