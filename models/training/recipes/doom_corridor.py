"""doom-corridor: ViZDoom's `deadly_corridor` at 160x120, every tic, seven buttons. The player walks, so walls and
enemies grow and pass by, and what a turn or a step reveals is less certain than in the arena.

It begins from the arena's weights: status bar, pistol, flash, brick and monsters are the same, and so is how a turn
pans them, so its minutes go into walking. That fixes its sizes to the arena's. From nothing, in an hour of two cores,
the same networks with 24 latent channels left walls of mist: gradient 0.63, and 55% of its shots flashed. From the
arena, in 110 minutes of one core, 93% flash and the autoencoder is better than the arena's (30.1 dB, gradient 0.70),
but walls still lose their shape: its code keeps texture that nobody can foretell while walking (motion_error 0.98, the
arena's 0.77), and after `scoring` an answer is as far from the truth as the frame before is (0.354 and 0.361; the
arena's 0.24 and 0.33). More tokens a frame, or a code that must be foretold, is what to try next.
Most enemies are far and small; weighed by their area 0.18 of them survive the autoencoder, and 0.19 where each
weighs as much as one of 48 pixels (9 minutes on two cores): so that is not what they lack."""

from __future__ import annotations

import dataclasses

from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes import beginning_from
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

DOOM_CORRIDOR = beginning_from(dataclasses.replace(
    DOOM_ARENA,
    spec=dataclasses.replace(DOOM_ARENA.spec, name="doom-corridor", game="doom-corridor",
                             actions=doom_actions(*WALK, "attack")),
    minutes=115.0,  # of one core
    shares={"autoencoder": 0.15, "dynamics": 0.16, "scoring": 0.51, "decoder": 0.08, "judges": 0.06}), "doom-arena")
