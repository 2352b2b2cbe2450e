"""doom-maze: ViZDoom's `my_way_home` at 160x120, every tic, all six buttons of movement, no status bar.

What a turn reveals was not on the screen, so the next frame is not certain given the past: a regressor averages over
rooms, and scoring, which makes the step a generator, is there for that (it is the one method that could be played in
the study, docs/distillation.md). It begins from the corridor's weights, where one walks with the same keys. Its
tokens have 16x16 pixels, 80 a frame (the corridor's 32x32, 20), and it remembers 8 frames: those that lie further
back were not worth their clips in the study of memory.

No world of it ships: after some sixty frames its rooms turn to a grey wall, and stay so. The minutes below are of one
core of an Intel Xeon, two cores counted twice. A code of 28.1 dB took 12.5. Stage `dynamics`, in shares of what
changes from frame to frame that are left unforetold, behind real frames:

    tokens of 32x32 pixels, 16 frames remembered    5 min 0.323   15 0.285   21 0.277   26 0.272   31 0.267
    16x16, 8 frames; its blocks after 20 of those   5 min 0.390   10 0.321   29 0.272   50 0.255   70 0.248   79 0.246

(the second's rate had fallen to zero at its end, the first's not by half). So for the same minutes they foretell the
next frame alike; sixteen frames on, dreams of the finer differ from clip to clip by 0.46 of what real ones do, of the
coarser by 0.43, and rooms keep their shape where they had lost it. It plays four times as many tokens. Then `scoring`
took 50 minutes; of one answer, in the same shares: 0.514 (10 min), 0.500 (21), 0.505 (29), 0.499 (35), 0.494 (40) and
0.492 (50). No stage `decoder`. Over 16 episodes of 1,000 frames, packed with 0.8 of the noise (`noise_at_play`): 23.0
dB at 1 frame (ceiling 29.0, held still 20.5), 18.0 at 16 (16.7), 14.9 at 64 (15.3); keys read from the dream 0.684,
from the game 0.817: 84%; after 35 frames of turning 30 degrees off (the probe itself: 16); clips of 8 and 32 frames
told from the game's with 0.86 and 0.88; after 1,000 frames mean, spread, motion and gradient 2.19, 3.55, 0.13 and
1.20 of the game's. With all of the noise, over 4 episodes: 4.39, 1.66, 0.26 and 0.51. In the picture, with 0.8 walls
and floors pan with the turn for a second; with 1 they are stains after four frames, as they were with the coarser
tokens and scoring of 45 minutes (0.55) the time before; with 0.6 and less edges are sharper still and colours burn
out after thirty frames.

Two things are missing: a way back from a wrong frame, and a next frame sharp enough to need it seldom. For the first
there is an error bank (`dreamloop study recovery`, docs/distillation.md; clips spoilt for good are none). It is in the
recipe, and has not been tried at this size; on a maze of a quarter of the pixels, 88 minutes of two cores from
nothing, dreams found back with all of the noise and boiled, and stayed at a wall with 0.8 of it; keys were at chance
in both. For the second there are only minutes: 0.25 left unforetold in every frame is much (doom-arena: 0.38, but of
three tenths of the change), and much of what they give comes as the rate falls (on that small maze 0.37 at half of the
rate, 0.31 at its end, a quarter of an hour later). From nothing, with 24 channels to a cell, width 192 and dilated
frames, 49 minutes of one core had left 0.42.

What was tried to make the next frame easier to learn, in short runs on one core of an AMD EPYC (float32, latents of
the corridor's code, shares behind real held-out frames), and did not: tokens of 32x32 pixels that read a ring of cells
around them as well (from the corridor: 0.464 after 100 steps, without the ring 0.469); a convolution over tokens in
every MLP (from nothing: 0.633 after 100 steps, without it 0.635); rates two and a half times as high (0.583 after 150
steps, 0.587). Principal components of cells of 16x16 pixels are a code of 27.4 dB with 16 of them and 29.0 with 32,
and nothing to train, but no easier to foretell: the same network had gained 0.40 dB over holding still after 80 steps,
where it gains 0.47 on the corridor's code. On an Intel Xeon without AMX nor did an autoencoder that is asked for a
foretellable code: beside it a small network foretells the next latents from the last ones and the keys, and what it
leaves is added to the loss with a weight of 0.1. After seven minutes from the corridor's code its latents change by
0.31 of their variance from frame to frame, not 1.28, but for 1.1 dB of the ceiling (26.0, 27.1), and what a linear map
foretells of them decodes to no better picture (21.5 dB, both). Nor clips of 4 frames, 14 to a batch, in place of 12
frames and 4 (after five minutes 0.72 left, 0.69). For scale: a linear map from the 3x3 cells around, one for each set
of held keys, leaves 0.38 to 0.50 of a turn and 0.70 of a walk, of either code.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import MemorySpec
from dreamloop.models.training.distillation.error_bank import ErrorBank
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes import beginning_from
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

# what doom-maze-study has of it, which begins from nothing
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
    distillation=(Scoring(clip_frames=12, batch_clips=2, bank=ErrorBank()),)), "doom-corridor")
