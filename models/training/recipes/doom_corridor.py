"""doom-corridor: ViZDoom's `deadly_corridor` at 160x120, every tic, seven buttons. The player walks, so walls and
enemies grow and pass by, and what a turn or a step reveals is less certain than in the arena.

It begins from the arena's weights: status bar, pistol, flash, brick and monsters are the same, and so is how a turn
pans them, so its minutes go into walking. That fixes its sizes to the arena's. From nothing, in an hour of two
cores, the same networks with 24 latent channels left walls of mist: gradient 0.63, and 55% of its shots flashed.

The world that ships was made on one core, in three steps: 110 minutes from the arena (autoencoder 17, dynamics 18,
scoring 59, decoder 9, judges 7); 110 from that with no stage `dynamics`, for regression undoes what `scoring` has
taught (spread of its latents 0.34, after scoring 0.87): autoencoder 22, scoring 80, decoder 8; then 29 of `scoring`
alone, with what stands below. In the second step the autoencoder learnt from windows around enemies, which took
those that can still be seen from 0.26 to 0.31 of all, most of them far and small.

The third step has little noise on previous latents, 0.15 at most, where the others had 0.5; a tenth of its clips is
spoilt for good (`foreign_share`), none of theirs was; and its rates are two thirds of theirs. At play nothing is
noisy and the network is told so, but half of the noisy frames of training were told the same: it seems to have
taken every frame for a noisy one, and to have drawn its details anew. Walls lost their bricks at the first dreamed
frame, behind sixteen real ones and while nothing moved; now a view that stands still keeps them for half a second.
Keys read from the dream went from 0.679 to 0.700 (the game's 0.799), the clip discriminator from 0.98 to 0.90, a
turn of 35 frames from 56 degrees off to 43, flashes without a shot from 0.20 to 0.16; shots that flash stayed at
0.95, motion at 1,000 frames fell from 0.74 to 0.68, enemies there at 64 frames from 0.68 to 0.60 (intervals of 0.4
both). What the noise did, what the spoilt clips and what the minutes was not told apart.

It is packed with 0.8 of the noise that it learnt with (`noise_at_play`): nothing was trained for that. Every frame
is drawn anew from all that might be, and a network that has had few minutes takes its own doubt for chance, so walls
boil. With 0.8 they hold: 24.4 dB are left at 64 frames (23.8 with all of the noise), flashes without a shot are 0.08
(0.20), shots that flash 0.96 (0.95), keys read from the dream 0.713 (0.709). What it costs is motion, 0.51 of the
game's after 1,000 frames (0.68). Over six episodes of 300 frames 0.6 was too little: keys 0.69 there, 0.75 with 0.8.

Tried from nothing, on one core: cells of 8x8 pixels with 8 channels, tokens of 4x4 of them, width 192, a world of
3.7 MB. 22 minutes made a code of 30.6 dB which keeps 0.39 of the things that the frames show (the shipped one 0.31
after 39); 27 of dynamics left 0.55 of the change unforetold; after 26 of 53 minutes of scoring, the last ten with
that little noise, over eight episodes of 300 frames, keys were level with the second step's world (0.673, 0.671),
but 24.5 dB were left at 16 frames (25.4) and 0.64 of shots flashed (0.94), and the run was given up for the third
step."""

from __future__ import annotations

import dataclasses

from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes import beginning_from
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

DOOM_CORRIDOR = beginning_from(dataclasses.replace(
    DOOM_ARENA,
    spec=dataclasses.replace(DOOM_ARENA.spec, name="doom-corridor", game="doom-corridor",
                             actions=doom_actions(*WALK, "attack")),
    minutes=220.0,  # of one core
    shares={"autoencoder": 0.18, "dynamics": 0.08, "scoring": 0.62, "decoder": 0.08, "judges": 0.03},
    autoencoder=dataclasses.replace(DOOM_ARENA.autoencoder, object_weight=16.0, object_weight_end=6.0, object_size=64,
                                    crop_share=0.6, crop_cells=4),
    dynamics=DynamicsTraining(history_noise=0.15, history_noise_share=0.5, foreign_share=0.1),
    distillation=(Scoring(batch_clips=3, learning_rate=1e-3, matrix_learning_rate=1e-2),),
    noise_at_play=0.8), "doom-arena")
