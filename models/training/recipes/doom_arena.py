"""doom-arena: ViZDoom's `defend_the_line` at 160x120, every tic. The whole arena is in view of a
turning player, so the next frame is nearly certain given the past and the keys: one-step
regression is enough."""

from __future__ import annotations

from dreamloop.models.core.spec import (
    ActionSpec,
    AutoencoderSpec,
    Button,
    DynamicsSpec,
    MemorySpec,
    WorldSpec,
)
from dreamloop.models.training.recipes import Recipe

DOOM_ARENA = Recipe(
    spec=WorldSpec(
        name="doom-arena", game="doom-arena", frame_height=120, frame_width=160, fps=35.0,
        actions=ActionSpec((
            Button("turn_left", ("ArrowLeft", "KeyA"), ("button14",)),
            Button("turn_right", ("ArrowRight", "KeyD"), ("button15",)),
            Button("attack", ("Space",), ("button0",), ("left",)),
        )),
        autoencoder=AutoencoderSpec(latent_channels=16, widths=(64, 96, 128), encoder_blocks=(1, 1, 2),
                                    decoder_blocks=(1, 2, 2)),
        dynamics=DynamicsSpec(width=256, layers=6, heads=4, mlp_width=768, patch=2),
        memory=MemorySpec(window_frames=16),
    ),
    record_frames=100_000,
    held_out_frames=12_000,
    minutes=112.0,
    shares={"autoencoder": 0.17, "dynamics": 0.60, "self_rollout": 0.19, "judges": 0.04},
    gates={"autoencoder.psnr": 25.0, "autoencoder.psnr_objects": 18.0,
           "dynamics.shuffle_ratio": 1.1, "self_rollout.shuffle_ratio": 1.1},
)
