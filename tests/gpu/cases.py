"""Worlds and rings that the GPU kernels are tested on: every policy, and a batch of players at different times."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from worlds import tiny_spec

from dreamloop.models.core.plan import Plan
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec, WorldSpec
from dreamloop.runtime.gpu.sizes import DevicePlan

WINDOW = MemorySpec(window_frames=5)
SINKS = MemorySpec(window_frames=3, sink_frames=2, max_age=4)
DILATED = MemorySpec(window_frames=3, dilated_frames=2, dilation=3)
ALL = MemorySpec(window_frames=4, sink_frames=2, dilated_frames=2, dilation=3, max_age=20)
LONG = MemorySpec(window_frames=13)
SPECS: dict[str, WorldSpec] = {
    "dense_with_a_tail": tiny_spec(memory=ALL, plan=PlanSpec(block_tokens=4)),
    "dense_whole_frames": tiny_spec(memory=SINKS, plan=PlanSpec()),
    "dense_long_dilation": tiny_spec(memory=MemorySpec(window_frames=5, sink_frames=3, dilated_frames=3, dilation=2,
                                                       max_age=9), plan=PlanSpec(block_tokens=2)),
    "window": tiny_spec(memory=DILATED, plan=PlanSpec("window", window_frames=3, block_tokens=4)),
    "radial": tiny_spec(memory=LONG, plan=PlanSpec("radial", 2, block_tokens=2)),
    "radial_with_sinks": tiny_spec(memory=ALL, plan=PlanSpec("radial", 1, block_tokens=1)),
    "top_k": tiny_spec(memory=LONG, plan=PlanSpec("top_k", block_tokens=2, top_blocks=4)),
    "top_k_with_sinks_and_a_tail": tiny_spec(memory=ALL, plan=PlanSpec("top_k", block_tokens=4, top_blocks=2))}
FRAMES = np.array([1, 2, 3, 5, 9, 23, 36, 1000], np.int64)  # warm-up, sinks, wrap-around, and long after


def small(spec: WorldSpec) -> WorldSpec:
    """The same world with head size 16 and two heads."""
    d = DynamicsSpec(width=32, layers=1, heads=2, mlp_width=8)
    return WorldSpec(**{**{name: getattr(spec, name) for name in spec.__dataclass_fields__}, "dynamics": d})


def on_device(plan: Plan) -> DevicePlan:
    """A numpy plan as the kernels take it."""
    kept = None if plan.block_kept is None else torch.from_numpy(plan.block_kept)
    return DevicePlan(torch.from_numpy(plan.block_index), torch.from_numpy(plan.block_count),
                      torch.from_numpy(plan.block_length), kept)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def max_error(found: Tensor, expected: Tensor) -> float:
    """NaN if there is one."""
    return float((found.double() - expected.double()).abs().max())
