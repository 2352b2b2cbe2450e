"""Making worlds from the command line: `dreamloop record` and `dreamloop train`.

    dreamloop record gymnasium:MountainCar-v0 OUT --policy human
    dreamloop train --game gymnasium:MountainCar-v0 --recordings OUT --minutes 60
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamloop.models.core.errors import DreamloopError

if TYPE_CHECKING:
    from dreamloop.models.training.games import Player

Progress = Callable[[int, int], None]


def record(game: str, out: str, frames: int, seed: int, policy: str | None, held_out: bool,
           progress: Progress) -> dict[str, Any]:
    """Record a game; returns what there is now."""
    from dreamloop.models.training import recording
    result = recording.record(game, out, frames=frames, seed=seed, split="held_out" if held_out else "train",
                              progress=progress, player=_human(game) if policy == "human" else scripted(policy))
    return {"game": game, "out": out, **result}


def train(recipe: str | None, game: str | None, minutes: float | None, device: str | None, resume: bool,
          run_folder: str | None, policy: str | None, recordings: str | None, begin: str | None,
          only: str, batch: int) -> tuple[Path, str]:
    """Train a world; returns its folder and the game to judge it against."""
    if (recipe is None) == (game is None):
        raise DreamloopError("name a RECIPE or a --game, one of the two")
    from dreamloop.models.training import pipeline
    from dreamloop.models.training.recipes import recipe as recipe_named
    from dreamloop.models.training.recipes.own import recipe_for
    chosen = recipe_named(recipe) if recipe is not None else recipe_for(game or "")
    folder = pipeline.train(chosen, minutes=minutes, device=device, resume=resume, run_folder=run_folder,
                            player=scripted(policy), recordings=recordings, begin=begin,
                            stages=only.split(",") if only else (), batch=batch)
    return folder, chosen.game_name


def scripted(policy: str | None) -> Player | None:
    """Who plays while nobody sits there, None for the game's own players."""
    if policy == "human":
        raise DreamloopError("--policy human is for `dreamloop record`; `train --recordings` learns from that")
    from dreamloop.models.training.games.players import find_player
    return find_player(policy) if policy else None


def _human(game: str) -> Player:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from dreamloop.demos.human import human
    return human(game)
