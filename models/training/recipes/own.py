"""A recipe for any game: the sizes follow from its frames, everything else is doom-arena's.

    dreamloop train --game gymnasium:MountainCar-v0 --minutes 60

A small picture (games/sizes.py) has latent cells of 8x8 pixels instead of 16x16, and smaller networks.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.core.spec import AutoencoderSpec, DynamicsSpec, MemorySpec, WorldSpec
from dreamloop.models.training.games import FOLDER, GYMNASIUM, Game, open_game
from dreamloop.models.training.games.sizes import PATCH, downsample_of
from dreamloop.models.training.polish import Polish
from dreamloop.models.training.recipes import Recipe, recipes

AUTOENCODERS = {
    8: AutoencoderSpec(latent_channels=16, widths=(48, 96), encoder_blocks=(1, 1), decoder_blocks=(1, 2)),
    16: AutoencoderSpec(latent_channels=16, widths=(64, 96, 128), encoder_blocks=(1, 1, 2), decoder_blocks=(1, 2, 2)),
}
DYNAMICS = {
    8: DynamicsSpec(width=192, layers=6, heads=4, mlp_width=576, patch=PATCH),
    16: DynamicsSpec(width=256, layers=6, heads=4, mlp_width=768, patch=PATCH),
}


def recipe_for(name: str) -> Recipe:
    """The recipe of a game by its name: that of the repository, where there is one, else made from what
    the game is like. Raises `GameError` for a game that cannot be opened."""
    if name in recipes():
        return recipes()[name]
    with open_game(name) as game:
        return own_recipe(name, game)


def own_recipe(name: str, game: Game) -> Recipe:
    """name: what `open_game` took."""
    cell = downsample_of(game.frame_height, game.frame_width)
    spec = WorldSpec(
        name=world_name(game.name), game=game.name, frame_height=game.frame_height, frame_width=game.frame_width,
        fps=game.fps, actions=game.actions, autoencoder=AUTOENCODERS[cell], dynamics=DYNAMICS[cell],
        memory=MemorySpec(window_frames=16))
    # what a gate should be hangs on the game: these two only stop a run in which nothing is learnt
    return dataclasses.replace(recipes()["doom-arena"], spec=spec, game=name, polish=Polish(dream_frames=24),
                               gates={"autoencoder.psnr": 20.0, "dynamics.shuffle_ratio": 1.01})


def world_name(game_name: str) -> str:
    """gymnasium:ALE%2FBreakout-v5 -> ale-breakout-v5: a name for folders and windows."""
    plain = game_name.removeprefix(GYMNASIUM).removeprefix(FOLDER).partition("?")[0].replace("%2F", "-")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in plain).strip("-.").lower()[:60] or "world"
