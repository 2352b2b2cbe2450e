"""Tiny worlds with random weights: every mechanism of a real one, made in milliseconds.

A frame is 32x48, six tokens in blocks of four (so the last block has a tail), and the memory has
sinks, a dilated ring and a window. The weights are random but none is zero or one by chance of a
default, so a kernel that skips a bias, a table or a norm gives another answer.

    from worlds import tiny_world
    world = tiny_world(tmp_path, frame_width=64)      # overrides are fields of `WorldSpec`
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from dreamloop.models.core.spec import (
    ActionSpec,
    AutoencoderSpec,
    Button,
    DynamicsSpec,
    MemorySpec,
    PlanSpec,
    WorldSpec,
    weight_shapes,
)
from dreamloop.models.core.world import World, save_world

START_FRAMES = 3


def tiny_spec(**overrides: Any) -> WorldSpec:
    """The spec of a tiny world; overrides: fields of `WorldSpec`, such as `memory=MemorySpec(...)`."""
    fields: dict[str, Any] = {
        "name": "tiny", "game": "none", "frame_height": 32, "frame_width": 48, "fps": 35.0,
        "actions": ActionSpec((
            Button("turn_left", keys=("ArrowLeft", "KeyA")),
            Button("turn_right", keys=("ArrowRight", "KeyD")),
            Button("attack", keys=("Space",)))),
        "autoencoder": AutoencoderSpec(latent_channels=4, widths=(8, 8, 8), encoder_blocks=(1, 0, 1),
                                       decoder_blocks=(1, 1, 0)),
        "dynamics": DynamicsSpec(width=32, layers=2, heads=2, mlp_width=48),
        "memory": MemorySpec(window_frames=4, sink_frames=2, dilated_frames=2, dilation=3, max_age=20),
        "plan": PlanSpec(block_tokens=4)}
    return WorldSpec(**{**fields, **overrides})


def random_weights(spec: WorldSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of `weight_shapes(spec)`, float32, none of them trivial.

    Matrices and kernels ~ N(0, 1 / fan_in); biases and tables ~ N(0, 0.1^2) and more; gains of the
    norms about 1; `latent_std` in [0.5, 1.5]. The last layer is small, so latents wander slowly.
    """
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(spec).items():
        value = generator.standard_normal(shape)
        if name.endswith("latent_std"):
            value = generator.uniform(0.5, 1.5, shape)
        elif name.endswith(("query_norm", "key_norm")):
            value = 1.0 + 0.2 * value
        elif name.endswith("table"):
            value = 0.3 * value
        elif len(shape) == 1:
            value = 0.1 * value
        else:
            value /= np.sqrt(np.prod(shape[1:]))
        if name == "dynamics.output.weight":
            value *= 0.2
        weights[name] = value.astype(np.float32)
    return weights


def random_frames(spec: WorldSpec, count: int, seed: int = 0) -> np.ndarray:
    """Random frames, (count, H, W, 3) uint8, smooth enough to tell one from another by eye."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, spec.frame_height // 8 + 1, spec.frame_width // 8 + 1, 3))
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, : spec.frame_height, : spec.frame_width]
    return np.ascontiguousarray(fine.astype(np.uint8))


def tiny_world(folder: str | os.PathLike[str], seed: int = 0, **overrides: Any) -> World:
    """A tiny world written to `folder` and read back."""
    spec = tiny_spec(**overrides)
    return save_world(folder, spec, random_weights(spec, seed), random_frames(spec, START_FRAMES, seed), "# tiny\n")
