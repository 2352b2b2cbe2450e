"""doom-corridor: ViZDoom's `deadly_corridor` at 160x120, every tic, seven buttons. The player walks, so walls and
enemies grow and pass by, and what a turn or a step reveals is less certain than in the arena.

It begins from the arena's weights: status bar, pistol, flash, brick and monsters are the same, and so is how a turn
pans them, so its minutes go into walking. That fixes its sizes to the arena's. From nothing, in an hour of two cores,
the same networks with 24 latent channels left walls of mist: gradient 0.63, and 55% of its shots flashed.

The world that ships was made without spoilt clips (`foreign_share`), and came here in two steps of one core: 110
minutes from the arena (autoencoder 17, dynamics 18, scoring 59, decoder 9, judges 7), then 110 from that, with no
stage `dynamics`, for regression undoes what `scoring` has taught (spread of its latents 0.34, after scoring 0.87):
autoencoder 22, scoring 80, decoder 8. In the second step the autoencoder learnt from windows around enemies, which
took those that can still be seen from 0.26 to 0.31 of all, most of them far and small, and did more for the dynamics
than for the picture: after `scoring` an answer is 0.88 as far from the truth as the frame before is, where it was
0.98. That ratio was reached in 25 minutes and stayed for the other 55: walls still lose their shape while one walks,
and more tokens a frame, or a code that must be foretold (motion_error 0.98, the arena's 0.77), is what to try next."""

from __future__ import annotations

import dataclasses

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
                                    crop_share=0.6, crop_cells=4)), "doom-arena")
