"""doom-corridor: ViZDoom's `deadly_corridor` at 160x120, every tic, seven buttons. The player walks, so
walls and enemies grow and pass by: more latent channels than in the arena. Most enemies are far and small;
weighed by their area 0.18 of them survive the autoencoder, and 0.19 where each weighs as much as one of 48 pixels (9
minutes on two cores): so that is not what they lack."""

from __future__ import annotations

import dataclasses

from dreamloop.models.training.autoencoder import AutoencoderTraining
from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

DOOM_CORRIDOR = dataclasses.replace(
    DOOM_ARENA,
    spec=dataclasses.replace(
        DOOM_ARENA.spec, name="doom-corridor", game="doom-corridor", actions=doom_actions(*WALK, "attack"),
        autoencoder=dataclasses.replace(DOOM_ARENA.spec.autoencoder, latent_channels=24)),
    shares={"autoencoder": 0.18, "dynamics": 0.28, "scoring": 0.38, "decoder": 0.09, "judges": 0.07},
    autoencoder=AutoencoderTraining(object_size=48))
