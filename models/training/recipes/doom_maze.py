"""doom-maze: ViZDoom's `my_way_home` at 160x120, every tic, all six buttons of movement, no status bar.

What a turn reveals was not on the screen, so the next frame is not certain given the past: a regressor averages over
rooms, and scoring, which makes the step a generator, is there for that (it is the one method that could be played in
the study, docs/distillation.md). It begins from the corridor's weights, where one walks with the same keys, and so has
its sizes and its window: frames that lie further back were not worth their clips in the study of memory.

No world of it ships yet. From nothing, with 24 channels to a cell, width 192 and dilated frames, 22 minutes of one core
made a code of 27.7 dB, 27 of stage `dynamics` left 0.42 of what changes from frame to frame unforetold. From the
corridor, 15 minutes of one core (in all that follows the core had other work, too) made a code of 27.9 dB, and 8 of
`dynamics` (519 steps) left 0.36. Then 45 of `scoring` (5,313 steps): the error of one answer, in units of what changes,
went from 0.60 to 0.58, 0.57, 0.57, 0.56, 0.55, 0.55, 0.55, five minutes apart; spread of the latents 16 frames on was
0.72 of the game's. Over three episodes of 257 frames 24.2 dB were left at 1 frame (ceiling 28.2, held still 23.2), 21.2
at 16 (18.8), and in the picture walls lose their edges within four frames and are stains of the right colours after
sixteen: not a place to walk in. What one answer leaves falls slowly, what regression leaves in minutes: more of
stage `dynamics`, an hour or more, before scoring, is what to try next.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import MemorySpec
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
    spec=dataclasses.replace(FROM_NOTHING.spec, dynamics=dataclasses.replace(FROM_NOTHING.spec.dynamics, patch=1),
                             memory=MemorySpec(window_frames=8)),
    minutes=180.0,  # of one core
    shares={"autoencoder": 0.07, "dynamics": 0.47, "scoring": 0.39, "decoder": 0.04, "judges": 0.03},
    dynamics=DynamicsTraining(clip_frames=12, batch_clips=4, history_noise=0.15, history_noise_share=0.5,
                              foreign_share=0.1),
    distillation=(Scoring(clip_frames=12, batch_clips=2),)), "doom-corridor")
