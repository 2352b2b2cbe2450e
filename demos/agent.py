"""An agent in a dream, without a window: the loop that a training program has around an environment.

    python -m dreamloop.demos.agent doom-arena --steps 300

The agent is a small one, so that the loop stays in sight: it keeps what it does for as long as that changes
the picture, and tries something else when it does not. Its score is the mean change of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dreamloop.demos.environment import register
from dreamloop.demos.verbs.common import Parser, whole
from dreamloop.models.core.errors import DreamloopError


def change(before: np.ndarray, action: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute change of a frame, in levels of 0 to 255."""
    return float(np.abs(after.astype(np.int16) - before).mean())


class CuriousAgent:
    """Holds an action while it pays, by a running mean of the reward, and draws another when it no longer does."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self.space, self.action, self.usual = space, space.sample(), 0.0

    def act(self, reward: float) -> Any:
        if reward < self.usual:
            self.action = self.space.sample()
        self.usual += 0.1 * (reward - self.usual)
        return self.action


def run(world: str, steps: int = 300, seed: int = 0) -> float:
    """Let the agent live `steps` frames in a world; returns its mean reward."""
    environment = gymnasium.make(register(Path(world).name, world), reward=change)
    environment.action_space.seed(seed)
    environment.reset(seed=seed)
    agent, reward, total = CuriousAgent(environment.action_space), 0.0, 0.0
    for _ in range(steps):
        _, given, terminated, truncated, _ = environment.step(agent.act(reward))
        reward = float(given)
        total += reward
        if terminated or truncated:
            environment.reset()
    environment.close()
    return total / steps


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Let an agent live in a dream.")
    parser.add_argument("world", nargs="?", default="doom-arena", help="a world of the zoo or a folder")
    parser.add_argument("--steps", type=whole(1), default=300)
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    try:
        print(f"mean change of a frame: {run(args.world, args.steps, args.seed):.2f} of 255")
    except DreamloopError as error:
        parser.exit(2, f"agent: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
