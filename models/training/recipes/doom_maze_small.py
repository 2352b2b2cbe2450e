"""doom-maze-small: the maze at a quarter of its pixels, which the minutes at hand teach to walk."""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import AutoencoderSpec, DynamicsSpec, MemorySpec
from dreamloop.models.training.distillation.error_bank import ErrorBank
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.recipes.doom_maze import FROM_NOTHING

DOOM_MAZE_SMALL = dataclasses.replace(
    FROM_NOTHING,
    spec=dataclasses.replace(
        FROM_NOTHING.spec, name="doom-maze-small", game="doom-maze-small", frame_height=60, frame_width=80,
        autoencoder=AutoencoderSpec(latent_channels=8, widths=(64, 96), encoder_blocks=(1, 2), decoder_blocks=(2, 2)),
        dynamics=DynamicsSpec(width=192, layers=6, heads=4, mlp_width=576, patch=2),
        memory=MemorySpec(window_frames=16)),
    minutes=95.0,
    shares={"autoencoder": 0.085, "dynamics": 0.36, "scoring": 0.465, "decoder": 0.04, "judges": 0.05},
    gates={"autoencoder.psnr": 27.0, "dynamics.shuffle_ratio": 1.1, "scoring.shuffle_ratio": 1.1,
           "judges.motion_told": 0.5},
    dynamics=DynamicsTraining(batch_clips=4, history_noise=0.15, history_noise_share=0.5, foreign_share=0.1),
    distillation=(Scoring(batch_clips=3, bank=ErrorBank()),))
