"""doom-maze: ViZDoom's `my_way_home` at 160x120, every tic, all six buttons of movement, no status bar.

What a turn reveals was not on the screen, so the next frame is not certain given the past: a
regressor averages over rooms, and scoring, which makes the step a generator, is there for that (it is the
one method that could be played in the study, docs/distillation.md). Its memory reaches further back than the
arena's: besides the window, frames at every 8th. Texture is all there is to see, so the code has half as many
channels again as the arena's; the networks are narrower, which on a CPU is half as many steps again in the
same minutes, and half the size.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import MemorySpec
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

DOOM_MAZE = dataclasses.replace(
    DOOM_ARENA,
    spec=dataclasses.replace(
        DOOM_ARENA.spec, name="doom-maze", game="doom-maze", actions=doom_actions(*WALK),
        autoencoder=dataclasses.replace(DOOM_ARENA.spec.autoencoder, latent_channels=24, widths=(48, 64, 96)),
        dynamics=dataclasses.replace(DOOM_ARENA.spec.dynamics, width=192, mlp_width=576),
        memory=MemorySpec(window_frames=14, dilated_frames=4, dilation=8)),
    shares={"autoencoder": 0.20, "dynamics": 0.24, "scoring": 0.42, "decoder": 0.07, "judges": 0.07},
    # longer than the span of the dilated frames, 4 x 8, and a phase of it
    dynamics=DynamicsTraining(clip_frames=42, batch_clips=4, foreign_share=0.25),
    distillation=(Scoring(clip_frames=44, batch_clips=2),),
    gates={"autoencoder.psnr": 25.0, "dynamics.shuffle_ratio": 1.1, "scoring.shuffle_ratio": 1.1,
           "judges.motion_told": 0.5})
