"""doom-corridor: ViZDoom's `deadly_corridor` at 160x120, every tic, seven buttons. The player walks, so
walls and enemies grow and pass by: more latent channels than in the arena."""

from __future__ import annotations

import dataclasses

from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA

DOOM_CORRIDOR = dataclasses.replace(
    DOOM_ARENA,
    spec=dataclasses.replace(
        DOOM_ARENA.spec, name="doom-corridor", game="doom-corridor", actions=doom_actions(*WALK, "attack"),
        autoencoder=dataclasses.replace(DOOM_ARENA.spec.autoencoder, latent_channels=24)))
