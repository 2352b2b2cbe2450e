"""doom-maze-hd: the maze at 320x240, 20x15 latents of 16x16 pixels each.

A token is one latent: 300 tokens a frame, fifteen times doom-maze's. The decoder has the arena's widths: four times the
pixels already cost four times its time. Meant for a GPU; where there is none it can be rehearsed, not trained.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import DynamicsSpec, MemorySpec
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.recipes.doom_maze import FROM_NOTHING

DOOM_MAZE_HD = dataclasses.replace(
    FROM_NOTHING,
    spec=dataclasses.replace(
        FROM_NOTHING.spec, name="doom-maze-hd", game="doom-maze-hd", frame_height=240, frame_width=320,
        autoencoder=dataclasses.replace(FROM_NOTHING.spec.autoencoder, latent_channels=32),
        dynamics=DynamicsSpec(width=256, layers=8, heads=4, mlp_width=768),
        memory=MemorySpec(window_frames=12, dilated_frames=4, dilation=8)),
    record_frames=200_000,
    held_out_frames=12_000,
    minutes=240.0,
    dynamics=DynamicsTraining(clip_frames=42, batch_clips=4),
    distillation=(Scoring(clip_frames=44, batch_clips=2),))
