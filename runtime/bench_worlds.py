"""Worlds of random weights for `dreamloop bench`: the sizes of a world that nobody has trained yet.

    cpu-300   320x240 in 300 tokens, width 384, 8 layers, 8 visible frames: the size to play at 30 frames a second
              on two cores

What a frame costs does not depend on what the weights are, as long as they are no zeros; the last layer is small,
so that the latents stay near those of real worlds and every engine can be held to the oracle.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import (
    ActionSpec,
    AutoencoderSpec,
    Button,
    DynamicsSpec,
    MemorySpec,
    PlanSpec,
    WorldSpec,
    to_json,
    weight_shapes,
)
from dreamloop.models.core.world import World

ACTIONS = ActionSpec((Button("left"), Button("right"), Button("attack")))
PRESETS = {"cpu-300": WorldSpec(
    name="cpu-300", game="none", frame_height=240, frame_width=320, fps=30.0, actions=ACTIONS,
    autoencoder=AutoencoderSpec(latent_channels=32, widths=(48, 96, 128), encoder_blocks=(1, 1, 1),
                                decoder_blocks=(1, 1, 1)),
    dynamics=DynamicsSpec(width=384, layers=8, heads=6, mlp_width=1152), memory=MemorySpec(window_frames=8))}


def sparse_spec(window_frames: int, plan: PlanSpec) -> WorldSpec:
    """160x128 in 80 tokens, blocks of 20, two layers of width 128: only the memory and the plan vary."""
    return WorldSpec(
        name=f"{plan.policy}-{window_frames}", game="none", frame_height=128, frame_width=160, fps=30.0,
        actions=ACTIONS, autoencoder=AutoencoderSpec(8, (8, 8, 8), (0, 0, 0), (0, 0, 0)),
        dynamics=DynamicsSpec(width=128, layers=2, heads=4, mlp_width=256),
        memory=MemorySpec(window_frames=window_frames), plan=plan)


def preset(name: str) -> World:
    """A preset by name; raises `DreamloopError` that lists them."""
    if name not in PRESETS:
        raise DreamloopError(f"no preset {name[:100]!r}; known: {', '.join(PRESETS)} (others with --device cuda)")
    return synthetic_world(PRESETS[name])


def synthetic_world(spec: WorldSpec, seed: int = 0) -> World:
    """A world with random weights and one random start frame; its hash is that of the spec and the seed."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(spec).items():
        value: np.ndarray = generator.standard_normal(shape, np.float32)
        if name.endswith(("latent_std", "query_norm", "key_norm")):
            value = 1.0 + 0.1 * np.tanh(value)
        elif len(shape) == 1 or name.endswith("table"):
            value *= 0.1
        else:
            value /= np.sqrt(np.prod(shape[1:]))
        weights[name] = (0.1 * value if name == "dynamics.output.weight" else value).astype(np.float32)
    coarse = generator.integers(0, 256, (1, spec.frame_height // 8, spec.frame_width // 8, 3), np.uint8)
    rows = np.minimum(np.arange(spec.frame_height) // 8, coarse.shape[1] - 1)
    columns = np.minimum(np.arange(spec.frame_width) // 8, coarse.shape[2] - 1)
    said = json.dumps([to_json(spec), seed], sort_keys=True).encode()
    return World(spec, weights, coarse[:, rows][:, :, columns], hashlib.sha256(said).hexdigest())
