"""Real games, run headless: what a world learns from and is judged against.

    from dreamloop.models.training.games import open_game
    with open_game("doom-arena") as game:
        view = game.reset(seed=7)
        view = game.step(vector)          # the action pressed while the last frame was on the screen

A game's name is one of `GAMES`, `gymnasium:ENV_ID` for any Gymnasium environment (gymnasium_game.py), or
`folder:PATH` for recordings made elsewhere (folder.py). A `View` is one moment: the frame a player
sees, and what only the game knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np

from dreamloop.models.core.errors import GameError
from dreamloop.models.core.spec import ActionSpec

GYMNASIUM, FOLDER = "gymnasium:", "folder:"


@dataclass(frozen=True)
class View:
    """frame: (H, W, 3) uint8; objects: (H, W) bool, True on small things that matter (monsters,
    missiles); targets: horizontal offset in pixels from the crosshair of each living enemy in
    view; clearance: free distance left, ahead and right, in the game's units, where it is known;
    recorded: the action that led to the next frame, where that is written down already; variables:
    the game's own numbers by name; done: the episode is over (then `frame` is its last one)."""

    frame: np.ndarray
    objects: np.ndarray
    targets: tuple[float, ...] = ()
    variables: dict[str, float] = field(default_factory=dict)
    clearance: tuple[float, float, float] | None = None
    recorded: np.ndarray | None = None
    done: bool = False


Policy = Callable[[View], np.ndarray]


@dataclass(frozen=True)
class Player:
    """Who plays: make(actions, rng) gives a policy for one episode, share is its part of the recorded frames.
    meddle(game, rng), if there is one, changes the game itself before a step: a recording then shows the way back from
    what a dream comes to and the game never does."""

    name: str
    share: float
    make: Callable[[ActionSpec, np.random.Generator], Policy]
    meddle: Callable[[Any, np.random.Generator], None] | None = None


class Game(Protocol):
    """A game that is stepped one frame at a time, deterministic for a seed and a list of actions.
    players: who records it; the last of them, who keeps moving, also plays when a world is judged."""

    name: str
    fps: float
    frame_height: int
    frame_width: int
    actions: ActionSpec
    players: tuple[Player, ...]

    def reset(self, seed: int) -> View:
        """The first view of an episode. Raises `NoMoreEpisodes` where a game has a fixed number of them."""

    def step(self, action: np.ndarray) -> View:
        """action: (A,) float32. After `done` only `reset` may be called."""

    def close(self) -> None: ...

    def __enter__(self) -> Game: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...


@dataclass(frozen=True)
class Found:
    """A thing seen in a picture: its middle, in pixels of the game's frame."""

    x: float
    y: float


class Finder(Protocol):
    """A game that can tell from a picture alone, real or dreamed, where its things are."""

    def find(self, frame: np.ndarray) -> Mapping[str, Found | None]:
        """frame: (H, W, 3) uint8; the things by name, None where one is not to be seen."""


class Shooter(Protocol):
    """A game with an `attack` button in whose pictures, real or dreamed, one can see when a shot is fired."""

    def flashes(self, frames: np.ndarray) -> np.ndarray:
        """(F, H, W, 3) uint8 consecutive frames -> the indices at which a muzzle flash begins, ascending."""


class NoMoreEpisodes(GameError):
    """A game of a fixed number of episodes has shown them all."""


class PlayerLeft(Exception):
    """Raised by a policy whose human has closed the window: the recording ends here."""


def _doom(name: str) -> Game:
    from dreamloop.models.training.games.doom import SCENARIOS, DoomGame
    return DoomGame(SCENARIOS[name])


def _pong(name: str) -> Game:
    from dreamloop.models.training.games.pong import PongGame
    return PongGame()


_FREEDOOM = "ViZDoom (MIT) showing Freedoom's assets (BSD-3-Clause, see NOTICE)"
_ATARI = "an Atari 2600 game in the Arcade Learning Environment (GPL-2.0); the game's own rights are its owner's"
# name -> how to open it, and under which licence its pictures are
GAMES: dict[str, tuple[Callable[[str], Game], str]] = {
    "doom-arena": (_doom, _FREEDOOM), "doom-corridor": (_doom, _FREEDOOM), "doom-maze": (_doom, _FREEDOOM),
    "doom-maze-study": (_doom, _FREEDOOM), "doom-maze-hd": (_doom, _FREEDOOM), "pong": (_pong, _ATARI)}


def open_game(name: str, trusted: bool = True) -> Game:
    """The game of that name. trusted: the user typed it; otherwise it came with a world, and a name that
    would have a module imported or a file read is refused. Raises `GameError` if it is unknown or its
    package is missing."""
    if name.startswith((GYMNASIUM, FOLDER)):
        kind, _, what = name.partition(":")
        if not what:
            raise GameError(f"game {name!r}: expected gymnasium:ENV_ID or folder:PATH")
        if not trusted and (kind == "folder" or set(unquote(what)) & set(":?")):
            raise GameError(f"game {name!r} names a folder, a module or arguments, and a world is not to be trusted "
                            "with those: say it yourself with --game")
    elif name not in GAMES:
        raise GameError(f"unknown game {name!r}; known: {', '.join(sorted(GAMES))}, gymnasium:ENV_ID, folder:PATH")
    try:
        if name.startswith(GYMNASIUM):
            from dreamloop.models.training.games.gymnasium_game import GymnasiumGame
            return GymnasiumGame(name)
        if name.startswith(FOLDER):
            from dreamloop.models.training.games.folder import FolderGame
            return FolderGame(name)
        return GAMES[name][0](name)
    except ImportError as error:
        raise GameError(f"game {name} needs a package that is not installed ({error}); "
                        "pip install 'dreamloop[games]'") from error


def assets_licence(name: str) -> str:
    """What a world of this game was shown, and whose pictures those are: for its card."""
    if name in GAMES:
        return GAMES[name][1]
    return (f"the Gymnasium environment {name.removeprefix(GYMNASIUM)}, under the licence of its package"
            if name.startswith(GYMNASIUM) else "recordings that the maker of this world had; their licence is theirs")
