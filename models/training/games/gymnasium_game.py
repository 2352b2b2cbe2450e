"""Any Gymnasium environment as a game: `gymnasium:ENV_ID`, such as `gymnasium:MountainCar-v0`.

It needs frames (`render_mode="rgb_array"`), a speed (`metadata["render_fps"]`) and actions that
buttons can stand for (controls.py). Arguments of the environment follow a question mark:
`gymnasium:ALE/Breakout-v5?frameskip=2`. Where `/` may not stand, as in a world's own name of its game, it is %2F.

When the environment's episode is over, its next one begins, as an arcade cabinet does: a recorded
episode is `EPISODE_FRAMES` frames whatever happens in them, so the world learns to begin anew, too.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import gymnasium
import numpy as np

from dreamloop.models.core.errors import GameError
from dreamloop.models.training.games import GYMNASIUM, Player, View
from dreamloop.models.training.games.controls import controls
from dreamloop.models.training.games.players import held_keys, random_keys
from dreamloop.models.training.games.sizes import frame_size, moving, resized

EPISODE_FRAMES = 1000
MOST_VARIABLES = 64  # an observation longer than this is not a list of numbers that a player reads


class GymnasiumGame:
    """A `Game` (see games/__init__.py) around one environment."""

    players: tuple[Player, ...] = (Player("random", 0.2, random_keys), Player("sticky", 0.8, held_keys))

    def __init__(self, name: str) -> None:
        identity, _, arguments = unquote(name.removeprefix(GYMNASIUM)).partition("?")
        self.name = f"{GYMNASIUM}{quote(unquote(name.removeprefix(GYMNASIUM)), safe=':?=&,.')}"
        with _one_line(identity):
            self._env = _make(identity, arguments)
        try:
            self._look_at(identity)
        except GameError:
            self.close()
            raise

    def _look_at(self, identity: str) -> None:
        fps = self._env.metadata.get("render_fps")
        if not isinstance(fps, int | float | np.number) or not 0 < fps <= 1000:
            raise GameError(f"{identity}: its metadata has no render_fps, so nobody knows how fast it is played")
        self.fps = float(fps)
        try:
            self._controls = controls(self._env)
        except GameError as error:
            raise GameError(f"{identity}: {error}") from error
        self.actions = self._controls.spec
        with _one_line(identity):
            self._env.reset(seed=0)
            picture = self._env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise GameError(f"{identity}: render() gives {type(picture).__name__} "
                            f"{getattr(picture, 'shape', '')}, expected frames (H, W, 3)")
        self.frame_height, self.frame_width = frame_size(*picture.shape[:2])
        self._identity = identity
        self._shown = 0
        self._over = False
        self._last = np.zeros((self.frame_height, self.frame_width, 3), np.uint8)

    def reset(self, seed: int) -> View:
        with _one_line(self._identity):
            observation, _ = self._env.reset(seed=seed)
        self._shown, self._over = 1, False
        self._last = self._picture()
        return self._view(observation, 0.0)

    def step(self, action: np.ndarray) -> View:
        reward = 0.0
        with _one_line(self._identity):
            if self._over:
                observation, _ = self._env.reset()
                self._over = False
            else:
                observation, given, terminated, truncated, _ = self._env.step(
                    self._controls.action(np.asarray(action) > 0.5))
                reward = float(given)
                self._over = bool(terminated or truncated)
        self._shown += 1
        return self._view(observation, reward)

    def _view(self, observation: Any, reward: float) -> View:
        before, self._last = self._last, self._picture()
        variables = {"reward": reward}
        if isinstance(observation, np.ndarray | int | float | np.number):
            values = np.asarray(observation, np.float64).ravel()
            if len(values) <= MOST_VARIABLES:
                variables |= {f"observation_{i}": float(v) for i, v in enumerate(values)}
        return View(self._last, moving(self._last, before), variables=variables, done=self._shown > EPISODE_FRAMES)

    def _picture(self) -> np.ndarray:
        with _one_line(self._identity):
            picture = np.asarray(self._env.render())
        return resized(picture.astype(np.uint8, copy=False), self.frame_height, self.frame_width)

    def close(self) -> None:
        self._env.close()

    def __enter__(self) -> GymnasiumGame:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _make(identity: str, arguments: str) -> gymnasium.Env[Any, Any]:
    if identity.startswith("ALE/"):
        import ale_py
        gymnasium.register_envs(ale_py)
    values = {key: _value(text) for key, text in parse_qsl(arguments, keep_blank_values=True)}
    env = gymnasium.make(identity, render_mode="rgb_array", disable_env_checker=True, **values)
    modes = env.metadata.get("render_modes") or ()
    if "rgb_array" not in modes:
        env.close()
        raise GameError(f"{identity}: it cannot render to rgb_array, only to {', '.join(map(str, modes)) or 'nothing'}")
    return env


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextlib.contextmanager
def _one_line(identity: str) -> Iterator[None]:
    """What an environment, which is not ours, raises is a line that the user can act on."""
    try:
        yield
    except (GameError, ImportError):
        raise
    except Exception as error:
        raise GameError(f"{identity}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
