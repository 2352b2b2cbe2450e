"""Dreamed worlds as Gymnasium environments, so that an agent can live in one.

    import gymnasium
    import dreamloop.demos.environment                      # registers the worlds of the zoo; without this line,
                                                            # the id dreamloop.demos.environment:dreamloop/NAME-v0

    environment = gymnasium.make("dreamloop/doom-arena-v0", render_mode="rgb_array")
    many = gymnasium.make_vec("dreamloop/doom-arena-v0", num_envs=8)      # one pass of the network for all

An observation is a frame, (H, W, 3) uint8; an action is one bit per button of the world, or, where it has
axes, one number per control. A dream knows neither score nor end: `reward` is a function of what was seen,
by default nothing, and an episode ends when `max_episode_steps` says so (`gymnasium.make` takes it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dreamloop.demos.play import pygame_module
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec
from dreamloop.models.core.world import World, zoo_names
from dreamloop.runtime.batch import BatchedSession
from dreamloop.runtime.session import Session

MAX_EPISODE_STEPS = 2100  # a minute at 35 frames a second
WINDOW_WIDTH = 640  # pixels at most, of render mode `human`
Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # (frame before, action, frame after)


def action_space(actions: ActionSpec) -> spaces.Space[Any]:
    """One bit per button; with axes, one number per control in the order of `ActionSpec.names`."""
    if not actions.axes:
        return spaces.MultiBinary(actions.size)
    limits = np.array([1.0] * len(actions.buttons) + [axis.limit for axis in actions.axes], np.float32)
    lowest = np.array([0.0] * len(actions.buttons) + [-axis.limit for axis in actions.axes], np.float32)
    return spaces.Box(lowest, limits, dtype=np.float32)


def _spaces(world: World) -> tuple[spaces.Box, spaces.Space[Any]]:
    spec = world.spec
    return spaces.Box(0, 255, (spec.frame_height, spec.frame_width, 3), np.uint8), action_space(spec.actions)


def _start(random: np.random.Generator, world: World, options: dict[str, Any] | None) -> tuple[int, Any]:
    """(seed of the noise, start) of an episode; options may name the start: an index or an image."""
    seed = int(random.integers(0, 1 << 63))
    start = int(random.integers(len(world.starts)))
    return seed, (options or {}).get("start", start)


def _check_mode(render_mode: str | None, modes: list[str]) -> None:
    if render_mode not in (None, *modes):
        raise DreamloopError(f"render_mode={render_mode!r} must be one of {', '.join(modes)}")


class DreamEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """One dream. world: a `World`, a zoo name or a folder; engine, precision, threads: see `Session`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 35}  # noqa: RUF012  as its base

    def __init__(self, world: World | str, render_mode: str | None = None, engine: str = "auto",
                 precision: str | None = None, threads: int | None = None, reward: Reward | None = None) -> None:
        _check_mode(render_mode, self.metadata["render_modes"])
        self.session = Session(world, engine, precision, threads=threads)
        self.world, self.render_mode, self.reward = self.session.world, render_mode, reward
        self.metadata = {**self.metadata, "render_fps": round(self.world.spec.fps)}
        self.observation_space, self.action_space = _spaces(self.world)
        self._frame = self.session.render().pixels
        self._window: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        noise, start = _start(self.np_random, self.world, options)
        self._frame = self.session.reset(start, seed=noise).pixels
        self._show()
        return self._frame.copy(), {"frame": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before, shown = self._frame, self.session.step(np.asarray(action, np.float32))
        self._frame = shown.pixels
        reward = 0.0 if self.reward is None else float(self.reward(before, action, self._frame))
        self._show()
        return self._frame.copy(), reward, False, False, {"frame": shown.index}

    def render(self) -> Any:
        if self.render_mode == "rgb_array":
            return self._frame.copy()
        self._show()
        return None

    def _show(self) -> None:
        """Render mode `human`: every frame in a window, at the world's pace. Raises `NoDisplay` where there is no
        screen."""
        if self.render_mode != "human":
            return
        screen, spec = pygame_module("screen"), self.world.spec
        pygame = screen.pygame
        if self._window is None:
            screen.start_display()
            scale = max(1, WINDOW_WIDTH // spec.frame_width)
            self._window = pygame.display.set_mode((spec.frame_width * scale, spec.frame_height * scale))
            pygame.display.set_caption(f"{self.world.name} - dreamloop")
            self._clock = pygame.time.Clock()
        pygame.event.pump()
        drawn = screen.picture(self._frame).convert(self._window)
        pygame.transform.scale(drawn, self._window.get_size(), self._window)
        pygame.display.flip()
        self._clock.tick(spec.fps)

    def close(self) -> None:
        self.session.close()
        if self._window is not None:
            pygame_module("screen").pygame.display.quit()
            self._window = None


class DreamVectorEnvironment(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B dreams that step together: one pass of the network makes the next frame of all.

    Observations, rewards, ends, infos and seeds are those of a `SyncVectorEnv` of single dreams, in each of its
    ways to start over: autoreset_mode `NextStep`, `SameStep` or `Disabled`, as Gymnasium defines them.
    max_episode_steps: None or -1 is no end; the rest as for `DreamEnvironment`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 35,  # noqa: RUF012  as its base has it
                                "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, world: World | str, render_mode: str | None = None, engine: str = "auto",
                 precision: str | None = None, threads: int | None = None, reward: Reward | None = None,
                 max_episode_steps: int | None = MAX_EPISODE_STEPS,
                 autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP) -> None:
        _check_mode(render_mode, self.metadata["render_modes"])
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError:
            raise DreamloopError(f"autoreset_mode={autoreset_mode!r} must be one of "
                                 f"{', '.join(mode.value for mode in AutoresetMode)}") from None
        self._most_steps = np.inf if max_episode_steps in (None, -1) else max_episode_steps
        if self._most_steps < 1:
            raise DreamloopError(f"max_episode_steps={max_episode_steps} must be 1 or more, or -1 for no end")
        self.game = BatchedSession(world, num_envs, engine, precision, threads)
        self.num_envs, self.world, self.render_mode, self.reward = num_envs, self.game.world, render_mode, reward
        self.metadata = {**self.metadata, "render_fps": round(self.world.spec.fps), "autoreset_mode": self._mode}
        self.single_observation_space, self.single_action_space = _spaces(self.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        for _ in range(num_envs):
            self.game.join()
        self._randoms = [np.random.default_rng() for _ in range(num_envs)]
        self._frames = np.stack([frame.pixels for frame in self.game.render().values()])
        self._steps = np.zeros(num_envs, np.int64)  # of the episode that each is in
        self._ended = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
              ) -> tuple[np.ndarray, dict[str, Any]]:
        """Dreams start over. seed: one number, from which each dream gets its own, or one each; options: `start` (see
        `DreamEnvironment`), and `reset_mask`, (B,) bool: which dreams, where not all of them."""
        if seed is None:
            seed = [None] * self.num_envs
        elif isinstance(seed, int):
            seed = [seed + i for i in range(self.num_envs)]
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if len(seed) != self.num_envs:
            raise DreamloopError(f"seed: {len(seed)} numbers for {self.num_envs} dreams")
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise DreamloopError(f"reset_mask must be {self.num_envs} bool, one of them True at least")
        infos: dict[str, Any] = {}
        for seat in map(int, np.flatnonzero(mask)):
            if (own := seed[seat]) is not None:
                self._randoms[seat] = gymnasium.utils.seeding.np_random(own)[0]
            self._begin(seat, options)
            self._ended[seat] = False
            infos = self._add_info(infos, {"frame": 0}, seat)
        return self._frames.copy(), infos

    def _begin(self, seat: int, options: dict[str, Any] | None = None) -> None:
        noise, start = _start(self._randoms[seat], self.world, options)
        self._frames[seat], self._steps[seat] = self.game.start(seat, noise, start).pixels, 0

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """actions: (B, A). Where an episode has ended, NextStep starts the dream over instead of making its frame;
        SameStep has done so already, with the last observation in `final_obs`; Disabled waits for `reset`."""
        if self._mode is AutoresetMode.DISABLED and self._ended.any():
            raise DreamloopError(f"dream {int(np.flatnonzero(self._ended)[0])} is over; reset it first: "
                                 "options={'reset_mask': ended}")
        actions = np.asarray(actions)
        if len(actions) != self.num_envs:
            raise DreamloopError(f"{len(actions)} actions for {self.num_envs} dreams")
        over, before = np.flatnonzero(self._ended), self._frames
        shown = self.game.step(dict(enumerate(actions)))
        self._frames = np.stack([shown[seat].pixels for seat in range(self.num_envs)])
        self._steps += 1
        index = [frame.index for frame in shown.values()]
        for seat in map(int, over):
            self._begin(seat)
            index[seat] = 0
        rewards = np.zeros(self.num_envs)
        if self.reward is not None:
            for seat in set(range(self.num_envs)) - set(over):
                rewards[seat] = self.reward(before[seat], actions[seat], self._frames[seat])
        cut, infos = self._steps >= self._most_steps, dict[str, Any]()
        for seat in range(self.num_envs):
            if self._mode is AutoresetMode.SAME_STEP and cut[seat]:
                last = {"final_obs": self._frames[seat].copy(), "final_info": {"frame": index[seat]}}
                infos = self._add_info(infos, last, seat)
                self._begin(seat)
                index[seat] = 0
            infos = self._add_info(infos, {"frame": index[seat]}, seat)
        self._ended = cut & (self._mode is not AutoresetMode.SAME_STEP)
        return self._frames.copy(), rewards, np.zeros(self.num_envs, bool), cut, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        return tuple(self._frames.copy()) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        self.game.close()


def register(name: str, world: str | None = None) -> str:
    """Register a world, by default the one of the zoo with that name; returns the environment's id. Of two worlds of
    one name the one that was registered last counts."""
    identity, module = f"dreamloop/{name}-v0", "dreamloop.demos.environment"
    gymnasium.registry.pop(identity, None)  # else it warns
    try:
        gymnasium.register(identity, f"{module}:DreamEnvironment", kwargs={"world": world or name},
                           vector_entry_point=f"{module}:DreamVectorEnvironment", max_episode_steps=MAX_EPISODE_STEPS)
    except gymnasium.error.Error as error:
        raise DreamloopError(f"{name[:100]!r} cannot be an environment's name: it has letters, digits, "
                             "-, _ and . alone") from error
    return identity


for _name in zoo_names():
    register(_name)
