"""Scripted players: the policies that a recording mixes, and the one that evaluation uses.

A policy sees the game's `View` and answers with an action vector. All are seeded, so an episode is
a function of (game, policy, seed). Keys are held for natural lengths; every button is pressed and
released often, alone and together, for a world must learn what each of them does and does not do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dreamloop.models.core.spec import ActionSpec
from dreamloop.models.training.games import View

Policy = Callable[[View], np.ndarray]
OPPOSITES = (("turn_left", "turn_right"), ("forward", "backward"), ("strafe_left", "strafe_right"))
AIM_PIXELS = 6.0  # an enemy nearer to the crosshair than this is worth a shot


def _set(actions: ActionSpec, names: set[str]) -> np.ndarray:
    return np.array([float(name in names) for name in actions.names], np.float32)


def held_keys(actions: ActionSpec, rng: np.random.Generator, idle: float = 0.1) -> Policy:
    """Every button on its own clock, held for 2 to 45 frames; opposite buttons seldom together;
    now and then no key at all for up to 40 frames."""
    left = np.zeros(actions.size, np.int64)
    held = np.zeros(actions.size, np.float32)
    resting = 0

    def act(view: View) -> np.ndarray:
        nonlocal resting
        if resting == 0 and rng.random() < idle / 30:
            resting = int(rng.integers(10, 40))
        for i in range(actions.size):
            if left[i] == 0:
                held[i] = float(rng.random() < 0.45)
                left[i] = int(2 + rng.exponential(12)) if rng.random() < 0.8 else int(rng.integers(20, 45))
            left[i] -= 1
        vector = held.copy()
        for a, b in OPPOSITES:
            if a in actions.names and b in actions.names and rng.random() < 0.97:
                i, j = actions.names.index(a), actions.names.index(b)
                if vector[i] and vector[j]:
                    vector[j if left[i] >= left[j] else i] = 0.0
        if resting:
            resting -= 1
            return np.zeros_like(vector)
        return vector

    return act


def aiming(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """Turn towards the nearest enemy in view and shoot when it is near the crosshair, with a
    wandering aim; with nobody in view, sweep. Attack is pressed in bursts of varied length."""
    sweep, burst, wander = "turn_left", 0, 0.0

    def act(view: View) -> np.ndarray:
        nonlocal sweep, burst, wander
        names: set[str] = set()
        wander = 0.9 * wander + rng.normal(0, 2.0)
        if view.targets:
            offset = min(view.targets, key=abs) + wander
            if abs(offset) > 3:
                names.add("turn_right" if offset > 0 else "turn_left")
            if abs(offset) < AIM_PIXELS and burst <= 0 and rng.random() < 0.5:
                burst = int(rng.integers(1, 20))
        else:
            if rng.random() < 0.03:
                sweep = "turn_right" if sweep == "turn_left" else "turn_left"
            names.add(sweep)
        burst -= 1
        if burst > 0:
            names.add("attack")
        return _set(actions, names)

    return act


def mixed(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """Switches between `aiming` and `held_keys` every one to four seconds."""
    parts = (aiming(actions, rng), held_keys(actions, rng))
    current, left = parts[0], 0

    def act(view: View) -> np.ndarray:
        nonlocal current, left
        if left == 0:
            current, left = parts[int(rng.random() < 0.5)], int(rng.integers(35, 140))
        left -= 1
        return current(view)

    return act


POLICIES: dict[str, Callable[[ActionSpec, np.random.Generator], Policy]] = {
    "held_keys": held_keys, "aiming": aiming, "mixed": mixed,
}
