"""doom-maze-study: the maze at a quarter of its pixels, 20 tokens a frame, for comparing ways to train.

    dreamloop study methods OUT --minutes 20

80x60 frames (padded to 80x64) in cells of 16x16 pixels are 4x5 latents, a token each. Not for the zoo: small
enough that a method shows in twenty minutes on two cores what it is good for. Its base sees noisy frames
half of the time, so that it is a teacher at 2 and 4 noise levels as well.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import DynamicsSpec, MemorySpec
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.recipes.doom_maze import FROM_NOTHING

DOOM_MAZE_STUDY = dataclasses.replace(
    FROM_NOTHING,
    spec=dataclasses.replace(
        FROM_NOTHING.spec, name="doom-maze-study", game="doom-maze-study", frame_height=60, frame_width=80,
        autoencoder=dataclasses.replace(FROM_NOTHING.spec.autoencoder, latent_channels=32, widths=(48, 64, 96)),
        dynamics=DynamicsSpec(width=192, layers=6, heads=4, mlp_width=576),
        memory=MemorySpec(window_frames=16)),
    record_frames=80_000,
    held_out_frames=8_000,
    minutes=50.0,
    dynamics=DynamicsTraining(clip_frames=26, batch_clips=6, noisy_target_share=0.5),
    distillation=(Scoring(clip_frames=26),),
    gates={"dynamics.shuffle_ratio": 1.05})
