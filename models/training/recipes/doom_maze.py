"""doom-maze: ViZDoom's `my_way_home` at 160x120, every tic, all six buttons of movement, no status bar.

What a turn reveals was not on the screen, so the next frame is not certain given the past: a
regressor averages over rooms, and scoring, which makes the step a generator, is there for that (it is the
one method that could be played in the study, docs/distillation.md). Its memory reaches further back than the
arena's: besides the window, frames at every 8th. Texture is all there is to see, so the code has half as many
channels again as the arena's; the networks are narrower: a world of 3.8 MB, where the arena has 6.9.

No world of it ships yet. On one core, shared with other work, 22 minutes made a code of 27.7 dB, 27 of stage `dynamics`
(1,757 steps) left 0.42 of what changes from frame to frame unforetold (0.51, 0.48, 0.45, 0.43, 0.42, five minutes
apart); 15 of `scoring` later, rooms went to pieces of the right colours within twenty frames.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes import beginning_from
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

# what doom-maze-hd and doom-maze-study have of it, which begin from nothing
FROM_NOTHING = dataclasses.replace(
    DOOM_ARENA,
    spec=dataclasses.replace(DOOM_ARENA.spec, name="doom-maze", game="doom-maze", actions=doom_actions(*WALK)),
    shares={"autoencoder": 0.20, "dynamics": 0.24, "scoring": 0.42, "decoder": 0.07, "judges": 0.07},
    gates={"autoencoder.psnr": 25.0, "dynamics.shuffle_ratio": 1.1, "scoring.shuffle_ratio": 1.1,
           "judges.motion_told": 0.5})
DOOM_MAZE = beginning_from(dataclasses.replace(
    FROM_NOTHING,
    minutes=80.0,  # of one core
    shares={"autoencoder": 0.19, "dynamics": 0.10, "scoring": 0.56, "decoder": 0.10, "judges": 0.05},
    dynamics=DynamicsTraining(history_noise=0.15, history_noise_share=0.5, foreign_share=0.1),
    distillation=(Scoring(batch_clips=3),)), "doom-corridor")
