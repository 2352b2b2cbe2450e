"""Rotary angles of a frame on the device, in torch: the twin of `pass_inputs` in models/core/conditioning.py.

Angles are float64 there and here, and rounded once to float32. They are made once a frame for all layers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.core import conditioning
from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.gpu.sizes import Turns


@cache  # for good: captured graphs hold the addresses
def _constants(spec: WorldSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Angle of one frame of time (D/2), angles of space (T, D/2), sink frames (sinks); float64."""
    with torch.inference_mode(False):
        one = torch.from_numpy(conditioning.time_angles(spec, np.ones(()))).to(device)
        space = torch.from_numpy(conditioning.space_angles(spec)).to(device)
        return one, space, torch.arange(1, spec.memory.sink_frames + 1, device=device, dtype=torch.float64)


def rotations(spec: WorldSpec, frames: Tensor) -> Turns:
    """Rotations of B players about to make `frames` (B,) int64. Call it once before a graph is captured: what does not
    change with time is put on the device by the first call."""
    one, space, sink = _constants(spec, frames.device)
    t = frames.double()[:, None]
    time = (t * one)[:, None]  # (B, 1, D/2)
    angle = time + space
    stored = angle
    if spec.memory.sink_frames:
        stored = torch.where((frames <= spec.memory.sink_frames)[:, None, None], space, angle)
    sinks = (t - torch.clamp(t - sink, max=float(spec.memory.max_age)))[..., None] * one
    cos, sin = angle.cos().float(), angle.sin().float()
    store = (stored.cos().float(), stored.sin().float()) if spec.memory.sink_frames else (cos, sin)
    return Turns(cos, sin, *store, sinks.cos().float(), sinks.sin().float())
