"""doom-maze: ViZDoom's `my_way_home` at 160x120, every tic, all six buttons of movement, no status bar.

What a turn reveals was not on the screen, so the next frame is not certain given the past: a
regressor averages over rooms, and scoring, which makes the step a generator, is there for that. Its
memory reaches further back than the arena's: besides the window, frames at every 8th. It begins from the arena's
weights, which know how a turn pans a wall, and keeps stage `dynamics` short, for that turns the generator that it
begins from back into a regressor: the corridor, begun likewise, left it with 0.34 of the real latents' spread, 16
frames on.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import MemorySpec
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes import beginning_from
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

# from nothing, as the mazes of other sizes begin
MAZE = dataclasses.replace(
    DOOM_ARENA,
    spec=dataclasses.replace(
        DOOM_ARENA.spec, name="doom-maze", game="doom-maze", actions=doom_actions(*WALK),
        memory=MemorySpec(window_frames=14, dilated_frames=4, dilation=8)),
    record_frames=150_000,
    # longer than the span of the dilated frames, 4 x 8, and a phase of it
    dynamics=DynamicsTraining(clip_frames=42, batch_clips=4),
    distillation=(Scoring(clip_frames=44, batch_clips=2),),
    gates={"autoencoder.psnr": 25.0, "dynamics.shuffle_ratio": 1.1, "scoring.shuffle_ratio": 1.1,
           "judges.motion_told": 0.5})

DOOM_MAZE = beginning_from(dataclasses.replace(
    MAZE, shares={"autoencoder": 0.20, "dynamics": 0.06, "scoring": 0.56, "decoder": 0.10, "judges": 0.08}),
    "doom-arena")
