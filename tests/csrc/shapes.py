"""Shapes of worlds that the C example is played on: overrides of `tiny_world`."""

from __future__ import annotations

from typing import Any

from dreamloop.models.core.spec import AutoencoderSpec, DynamicsSpec, MemorySpec, PlanSpec

WORLDS: dict[str, dict[str, Any]] = {
    "sinks_dilated_window_and_block_tail": {},
    "window_plan": {"plan": PlanSpec("window", window_frames=3, block_tokens=4)},
    "sinks_clamped_early": {"memory": MemorySpec(window_frames=2, sink_frames=3, max_age=5)},
    "dilated_without_sinks": {"memory": MemorySpec(window_frames=3, dilated_frames=3, dilation=4)},
    "patch_of_two_padded": {"frame_height": 44, "frame_width": 70, "plan": PlanSpec(block_tokens=3),
                            "dynamics": DynamicsSpec(width=32, layers=2, heads=4, mlp_width=48, patch=2)},
    "radial_plan": {"memory": MemorySpec(window_frames=13), "plan": PlanSpec("radial", 2, block_tokens=2)},
    "radial_plan_over_a_dilated_ring": {
        "memory": MemorySpec(window_frames=6, sink_frames=2, dilated_frames=3, dilation=4, max_age=20),
        "plan": PlanSpec("radial", 1, block_tokens=4)},
    "top_k_plan": {"plan": PlanSpec("top_k", block_tokens=4, top_blocks=2)},
    "top_k_plan_of_whole_frames": {"memory": MemorySpec(window_frames=9), "plan": PlanSpec("top_k", top_blocks=3)},
    "two_noise_levels": {"dynamics": DynamicsSpec(width=32, layers=2, heads=2, mlp_width=48, sigmas=(1.0, 0.4))},
    "sizes_that_fill_no_register": {
        "frame_height": 48, "frame_width": 80, "autoencoder": AutoencoderSpec(3, (17, 33, 5), (1, 1, 1), (2, 1, 1)),
        "dynamics": DynamicsSpec(width=72, layers=2, heads=3, mlp_width=131)}}
