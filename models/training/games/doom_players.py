"""Who plays Doom: aiming at what is in view, exploring without running into walls, and keys held at random."""

from __future__ import annotations

import numpy as np

from dreamloop.models.core.spec import ActionSpec
from dreamloop.models.training.games import Player, Policy, View
from dreamloop.models.training.games.players import held_keys, switching

AIM_PIXELS = 6.0  # an enemy nearer to the crosshair than this is worth a shot
NEAR = 9.0  # of the depth buffer's 255: a wall nearer than this is one to turn away from


def _set(actions: ActionSpec, names: set[str]) -> np.ndarray:
    return np.array([float(name in names) for name in actions.names], np.float32)


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


def advancing(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """`aiming` on the move: mostly forward while nobody is in view, sidesteps in a fight, now and then a
    step back."""
    aim = aiming(actions, rng)
    step, left = "", 0

    def act(view: View) -> np.ndarray:
        nonlocal step, left
        vector = aim(view)
        if left == 0:
            fight = ("strafe_left", "strafe_right", "strafe_left", "strafe_right", "backward", "forward", "")
            walk = ("forward", "forward", "forward", "forward", "strafe_left", "strafe_right", "backward", "")
            step, left = str(rng.choice(fight if view.targets else walk)), int(rng.integers(4, 24))
        left -= 1
        if not view.targets and rng.random() < 0.7:  # straight on, not sweeping all the time
            vector = _set(actions, set())
        return np.maximum(vector, _set(actions, {step}))

    return act


def exploring(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """Walk where there is room: forward while the way is clear, towards the freer side where a wall is
    near, at times a sidestep or a look around. Needs `View.clearance`."""
    turn, turning, step, stepping = "turn_left", 0, "", 0

    def act(view: View) -> np.ndarray:
        nonlocal turn, turning, step, stepping
        assert view.clearance is not None, "an explorer sees how far the walls are"
        left, ahead, right = view.clearance
        names: set[str] = set()
        if ahead < NEAR and turning == 0:
            turn = "turn_left" if left > right else "turn_right"
            turning = int(rng.integers(6, 24))
        elif turning == 0 and rng.random() < 0.03:  # a door, or a look around
            turn = "turn_left" if rng.random() < left / max(left + right, 1e-6) else "turn_right"
            turning = int(rng.integers(4, 40))
        if turning:
            turning -= 1
            names.add(turn)
        if ahead >= NEAR or (ahead >= NEAR / 2 and turning):
            names.add("forward")
        elif ahead < NEAR / 3:
            names.add("backward")
        if stepping == 0:
            step = str(rng.choice(("", "", "", "strafe_left", "strafe_right")))
            stepping = int(rng.integers(5, 30))
        stepping -= 1
        if step and (left if step == "strafe_left" else right) >= NEAR / 2:
            names.add(step)
        return _set(actions, names)

    return act


FIGHTERS = (Player("aiming", 0.25, aiming), Player("held_keys", 0.45, held_keys),
            Player("mixed", 0.3, switching(aiming, held_keys)))
WALKING_FIGHTERS = (Player("advancing", 0.4, advancing), Player("held_keys", 0.25, held_keys),
                    Player("mixed", 0.35, switching(advancing, held_keys)))
EXPLORERS = (Player("held_keys", 0.15, held_keys), Player("exploring", 0.5, exploring),
             Player("mixed", 0.35, switching(exploring, held_keys)))
