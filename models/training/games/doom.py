"""Doom through ViZDoom (Farama), with the freely licensed Freedoom assets that its wheel carries.

One step is one tic, 35 a second, the game's own speed. The labels buffer tells where monsters and
missiles are: recordings use it to weigh small things, scripted players to aim.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import vizdoom

from dreamloop.models.core.errors import GameError
from dreamloop.models.training.games import Player, View
from dreamloop.models.training.games.doom_events import flashes
from dreamloop.models.training.games.doom_keys import WALK, doom_actions
from dreamloop.models.training.games.doom_players import EXPLORERS, FIGHTERS, WALKING_FIGHTERS

TICS_PER_SECOND = 35.0
SCENERY = ("DoomPlayer",)  # the player's own weapon; everything else that has a label matters
MONSTERS = ("Demon", "DoomImp", "Zombieman", "ShotgunGuy", "ChaingunGuy", "MarineChainsaw", "Cacodemon", "HellKnight")

VIZDOOM_BUTTONS = {
    "forward": vizdoom.Button.MOVE_FORWARD, "backward": vizdoom.Button.MOVE_BACKWARD,
    "turn_left": vizdoom.Button.TURN_LEFT, "turn_right": vizdoom.Button.TURN_RIGHT,
    "strafe_left": vizdoom.Button.MOVE_LEFT, "strafe_right": vizdoom.Button.MOVE_RIGHT,
    "attack": vizdoom.Button.ATTACK,
}
VARIABLES = {
    "health": vizdoom.GameVariable.HEALTH, "ammo": vizdoom.GameVariable.AMMO2,
    "kills": vizdoom.GameVariable.KILLCOUNT, "heading": vizdoom.GameVariable.ANGLE,
    "x": vizdoom.GameVariable.POSITION_X, "y": vizdoom.GameVariable.POSITION_Y,
}


@dataclass(frozen=True)
class DoomScenario:
    """One ViZDoom scenario. episode_tics: an episode ends then, if not by death before; skill: 1 to 5, 0 for
    the scenario's own; depth: players need to know how far the walls are; drawn: the size that Doom draws at;
    shrink: frames are means over squares of so many pixels. Doom takes one texel to a pixel, so what walls show
    flickers as one moves, and no past foretells that: of a turn on the spot, a frame warped as the view turns is the
    next one with 27.2 dB as it is drawn, with 30.4 as means over 2x2 pixels, with 31.4 over 4x4 (ten columns off the
    edges 29.0, 34.2 and 37.4; the frame held still 18 to 19)."""

    name: str
    config: str
    buttons: tuple[str, ...]
    status_bar: bool
    episode_tics: int
    players: tuple[Player, ...]
    skill: int = 0
    depth: bool = False
    drawn: tuple[int, int] = (160, 120)
    shrink: int = 1


SCENARIOS = {scenario.name: scenario for scenario in (
    DoomScenario("doom-arena", "defend_the_line.cfg", ("turn_left", "turn_right", "attack"), True, 2100, FIGHTERS),
    # at its own skill, 5, a player is dead after two seconds, and a world of it would be two seconds long
    DoomScenario("doom-corridor", "deadly_corridor.cfg", (*WALK, "attack"), True, 2100, WALKING_FIGHTERS, skill=3),
    DoomScenario("doom-maze", "my_way_home.cfg", WALK, False, 2100, EXPLORERS, depth=True, drawn=(320, 240), shrink=2),
    DoomScenario("doom-maze-study", "my_way_home.cfg", WALK, False, 2100, EXPLORERS, depth=True, shrink=2),
    DoomScenario("doom-maze-hd", "my_way_home.cfg", WALK, False, 2100, EXPLORERS, depth=True, drawn=(640, 480),
                 shrink=2))}
RESOLUTIONS = {(160, 120): vizdoom.ScreenResolution.RES_160X120, (320, 240): vizdoom.ScreenResolution.RES_320X240,
               (640, 480): vizdoom.ScreenResolution.RES_640X480}


class DoomGame:
    """A `Game` (see games/__init__.py) around one `vizdoom.DoomGame`, and a `Shooter` where one can shoot."""

    fps = TICS_PER_SECOND

    def __init__(self, scenario: DoomScenario) -> None:
        self.name = scenario.name
        self.actions = doom_actions(*scenario.buttons)
        self.players = scenario.players
        self.shrink = scenario.shrink
        self.frame_width, self.frame_height = (side // scenario.shrink for side in scenario.drawn)
        game = vizdoom.DoomGame()
        game.load_config(str(Path(vizdoom.scenarios_path) / scenario.config))
        self._folder = tempfile.TemporaryDirectory(prefix="dreamloop-doom-")
        game.set_doom_config_path(str(Path(self._folder.name) / "vizdoom.ini"))  # else it writes where it is run
        game.set_screen_resolution(RESOLUTIONS[scenario.drawn])
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_render_hud(scenario.status_bar)
        game.set_labels_buffer_enabled(True)
        game.set_depth_buffer_enabled(scenario.depth)
        game.set_mode(vizdoom.Mode.PLAYER)
        if scenario.skill:
            game.set_doom_skill(scenario.skill)
        game.set_episode_timeout(scenario.episode_tics)
        game.set_available_buttons([VIZDOOM_BUTTONS[name] for name in scenario.buttons])
        game.set_available_game_variables(list(VARIABLES.values()))
        try:
            with contextlib.chdir(self._folder.name):  # the engine leaves an empty folder where it starts
                game.init()
        except vizdoom.ViZDoomErrorException as error:
            raise GameError(f"ViZDoom did not start: {error}") from error
        self._game = game
        self._last: View | None = None

    def reset(self, seed: int) -> View:
        self._game.set_seed(seed & 0x7FFFFFFF)
        self._game.new_episode()
        return self._look()

    def step(self, action: np.ndarray) -> View:
        self._game.make_action([float(value) for value in action], 1)
        return self._look()

    def _look(self) -> View:
        if self._game.is_episode_finished():  # ViZDoom shows no more, so the last view stands
            assert self._last is not None
            return View(self._last.frame, self._last.objects, (), self._last.variables, self._last.clearance,
                        done=True)
        state = self._game.get_state()
        assert state.labels is not None and state.labels_buffer is not None and state.game_variables is not None
        things = [label for label in state.labels if label.object_name not in SCENERY]
        objects = np.isin(state.labels_buffer, [label.value for label in things])
        targets = tuple((label.x + label.width / 2) / self.shrink - self.frame_width / 2
                        for label in things if label.object_name in MONSTERS)
        variables = dict(zip(VARIABLES, map(float, state.game_variables), strict=True))
        self._last = View(_shrunk(state.screen_buffer, self.shrink), _shrunk(objects, self.shrink), targets, variables,
                          _clearance(state.depth_buffer))
        return self._last

    def flashes(self, frames: np.ndarray) -> np.ndarray:
        """Where the muzzle flash begins (see doom_events.py)."""
        return flashes(frames)

    def close(self) -> None:
        with contextlib.suppress(vizdoom.ViZDoomErrorException):
            self._game.close()
        self._folder.cleanup()

    def __enter__(self) -> DoomGame:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _clearance(depth: np.ndarray | None) -> tuple[float, float, float] | None:
    """Free distance at eye level in the left, middle and right third of the picture: the nearest wall
    there, but for its nearest tenth (a corner that sticks out). depth: (H, W), None where not drawn. A larger
    picture's buffer says less (0.4 of its 255 at 320x240, 1.2 at 640x480): with one more for every doubling
    explorers get about as they do at 160x120 (in 600 frames of 14 episodes 31.5 and 31.9 squares of 48 units)."""
    if depth is None:
        return None
    middle_row, rows = len(depth) // 2, len(depth) // 24  # so many above and below eye level
    thirds = np.array_split(depth[middle_row - rows : middle_row + rows], 3, axis=1)
    left, middle, right = (float(np.percentile(third, 10)) + np.log2(len(depth) / 120) for third in thirds)
    return left, middle, right


def _shrunk(picture: np.ndarray, shrink: int) -> np.ndarray:
    """A copy, means over shrink x shrink pixels; of a mask (bool), whether any of them is set."""
    if shrink == 1:
        return picture.copy()
    parts = [picture[down::shrink, right::shrink] for down in range(shrink) for right in range(shrink)]
    if picture.dtype == bool:
        return np.asarray(np.logical_or.reduce(parts))
    total = np.zeros(parts[0].shape, np.uint16)
    for part in parts:
        total += part
    return ((total + shrink**2 // 2) // shrink**2).astype(np.uint8)
