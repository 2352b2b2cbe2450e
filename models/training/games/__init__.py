"""Real games, run headless: what a world learns from and is judged against.

    from dreamloop.models.training.games import open_game
    with open_game("doom-arena") as game:
        view = game.reset(seed=7)
        view = game.step(vector)          # the action pressed while the last frame was on the screen

A `View` is one moment: the frame a player sees, and what only the game knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import numpy as np

from dreamloop.models.core.errors import GameError
from dreamloop.models.core.spec import ActionSpec


@dataclass(frozen=True)
class View:
    """frame: (H, W, 3) uint8; objects: (H, W) bool, True on small things that matter (monsters,
    missiles); targets: horizontal offset in pixels from the crosshair of each living enemy in
    view; variables: the game's own numbers by name; done: the episode is over (then `frame` is the
    last one of the episode)."""

    frame: np.ndarray
    objects: np.ndarray
    targets: tuple[float, ...] = ()
    variables: dict[str, float] = field(default_factory=dict)
    done: bool = False


class Game(Protocol):
    """A game that is stepped one frame at a time, deterministic for a seed and a list of actions."""

    name: str
    fps: float
    frame_height: int
    frame_width: int
    actions: ActionSpec

    def reset(self, seed: int) -> View: ...

    def step(self, action: np.ndarray) -> View:
        """action: (A,) float32. After `done` only `reset` may be called."""

    def close(self) -> None: ...

    def __enter__(self) -> Game: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...


def _doom_arena() -> Game:
    from dreamloop.models.training.games.doom import DOOM_ARENA, DoomGame
    return DoomGame(DOOM_ARENA)


GAMES: dict[str, Callable[[], Game]] = {"doom-arena": _doom_arena}


def open_game(name: str) -> Game:
    """The game of that name. Raises `GameError` if it is unknown or its package is missing."""
    if name not in GAMES:
        raise GameError(f"unknown game {name!r}; known: {', '.join(sorted(GAMES))}")
    try:
        return GAMES[name]()
    except ImportError as error:
        raise GameError(f"game {name} needs a package that is not installed ({error}); "
                        "pip install 'dreamloop[games]'") from error
