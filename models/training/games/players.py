"""Players of any game: the policies that a recording mixes.

A policy sees the game's `View` and answers with an action vector. All are seeded, so an episode is
a function of (game, policy, seed). Keys are held for natural lengths; every button is pressed and
released often, alone and together, for a world must learn what each of them does and does not do.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dreamloop.models.core.errors import ActionError, GameError
from dreamloop.models.core.spec import ActionSpec
from dreamloop.models.training.games import Player, Policy, View

Factory = Callable[[ActionSpec, np.random.Generator], Policy]
OPPOSITES = (("turn_left", "turn_right"), ("forward", "backward"), ("strafe_left", "strafe_right"),
             ("left", "right"), ("up", "down"))


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


def random_keys(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """Every frame anew: no key, or one of them, or for every sixth frame any set of them."""
    def act(view: View) -> np.ndarray:
        if rng.random() < 1 / 6:
            return (rng.random(actions.size) < 0.5).astype(np.float32)
        return np.eye(actions.size + 1, actions.size, dtype=np.float32)[rng.integers(actions.size + 1)]

    return act


def no_key(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """Touches nothing: a dream must bear to be looked at, too."""
    return lambda view: np.zeros(actions.size, np.float32)


def holding(keys: set[str], after: int) -> Factory:
    """No key for so many frames, then these, for good."""
    def make(actions: ActionSpec, rng: np.random.Generator) -> Policy:
        frames = itertools.count()
        return lambda view: actions.vector(keys if next(frames) >= after else ())

    return make


def recorded(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """What the recording holds; no key where it has ended."""
    def act(view: View) -> np.ndarray:
        return np.zeros(actions.size, np.float32) if view.recorded is None else view.recorded

    return act


def switching(first: Factory, second: Factory) -> Factory:
    """Switches between two policies every one to four seconds (of 35 frames)."""
    def make(actions: ActionSpec, rng: np.random.Generator) -> Policy:
        parts = (first(actions, rng), second(actions, rng))
        current, left = parts[0], 0

        def act(view: View) -> np.ndarray:
            nonlocal current, left
            if left == 0:
                current, left = parts[int(rng.random() < 0.5)], int(rng.integers(35, 140))
            left -= 1
            return current(view)

        return act

    return make


POLICIES: dict[str, Factory] = {"idle": no_key, "random": random_keys, "sticky": held_keys}


def find_player(text: str) -> Player:
    """The player of `--policy`: `idle`, `random`, `sticky`, or `module:function`, a function of (view, rng) that
    returns whatever `ActionSpec.vector` takes, such as a set of names. view.variables holds the
    game's own numbers. The module is looked for in the current folder, too."""
    if text in POLICIES:
        return Player(text, 1.0, POLICIES[text])
    module, colon, name = text.partition(":")
    if not (colon and module and name):
        raise GameError(f"no policy {text!r}: expected {', '.join(sorted(POLICIES))}, human or module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise GameError(f"policy {text}: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise GameError(f"policy {text}: {name} is a {type(function).__name__}, expected a function of (view, rng)")

    def make(actions: ActionSpec, rng: np.random.Generator) -> Policy:
        def act(view: View) -> np.ndarray:
            try:
                return actions.vector(function(view, rng))
            except ActionError as error:
                raise GameError(f"policy {text}: {error}") from error

        return act

    return Player(text, 1.0, make)


def next_player(players: Sequence[Player], frames: dict[str, int]) -> Player:
    """Whose turn it is, for each to keep their share. frames: recorded so far, by name."""
    return min(players, key=lambda player: frames.get(player.name, 0) / player.share)
