"""Where the player is, and where the dream thinks: heading and position, and a full turn on the spot.

The probe `motion` reads from two frames how the player moved between them; its readings, summed up from the
last primed frame on, are where the dream went. The same is read from the game's own frames, so its error
stands beside the dream's.

For the turn the game is played again: the player stands still for the primed frames, then holds one turn key until
they look where they looked before. Is the room still the room?
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dreamloop.runtime import metrics

if TYPE_CHECKING:
    from dreamloop.models.networks.inverse_dynamics import Judge
    from dreamloop.runtime.evaluate import Dream, Truth

TURN_KEYS = ("turn_left", "turn_right")
TURN_FRAMES = 35
CIRCLE_FRAMES = 128  # a full turn takes about 106
SAME_VIEW_DEGREES = 2.0


def motion_error(probe: Judge, truths: list[Truth], dream: Dream, horizons: tuple[int, ...]
                 ) -> dict[str, dict[str, dict[str, Any]]]:
    """heading, position -> horizon -> figures: `degrees` or `units` the mean distance of the dream's reading from
    the game's truth, `real` the same of the reading of the game's frames, `frames` how many episodes."""
    paths = [_paths(probe, truth, dream.frames[e]) for e, truth in enumerate(truths)
             if {"heading", "x", "y"} <= set(truth.variables)]
    figures: dict[str, dict[str, dict[str, Any]]] = {"heading": {}, "position": {}}
    for horizon in horizons:
        reached = [path for path in paths if len(path[0]) > horizon]
        if not reached:
            continue
        true, dreamed, real = (np.stack([path[i][horizon] for path in reached]) for i in range(3))
        turn = [np.abs(side[:, 2] - true[:, 2]) for side in (dreamed, real)]
        away = [np.hypot(*(side[:, :2] - true[:, :2]).T) for side in (dreamed, real)]
        for name, unit, (made, own) in (("heading", "degrees", turn), ("position", "units", away)):
            figures[name][str(horizon)] = {**metrics.mean_of(unit, made, 2), "real": round(float(own.mean()), 2),
                                           "episodes": len(reached)}
    return figures


def _paths(probe: Judge, truth: Truth, dreamed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, heading relative to the last primed frame, at horizons 0, 1, ...: of the game, read from the dream,
    read from the game's frames; (n, 3) each."""
    from dreamloop.models.networks.probes import read_motion
    count = min(len(truth.future), len(dreamed))
    last = truth.primed - 1
    facing = np.unwrap(np.radians(truth.variables["heading"][last : last + count + 1].astype(np.float64)))
    x, y = (truth.variables[k][last : last + count + 1].astype(np.float64) for k in ("x", "y"))
    cos, sin = np.cos(facing[0]), np.sin(facing[0])
    dx, dy = x - x[0], y - y[0]
    true = np.stack([dx * cos + dy * sin, dy * cos - dx * sin, np.degrees(facing - facing[0])], axis=1)
    sides = [np.concatenate([truth.frames[last : last + 1], frames[:count]])
             for frames in (dreamed, truth.future)]
    read = [walked(read_motion(probe, frames)) if count else np.zeros((1, 3)) for frames in sides]
    return true, read[0], read[1]


def walked(moves: np.ndarray) -> np.ndarray:
    """Dead reckoning: (N, 3) ahead, left, turn of each step -> (N + 1, 3) x (ahead at the start), y (left), heading
    in degrees, from 0, 0, 0."""
    heading = np.concatenate([[0.0], np.cumsum(moves[:, 2])])
    facing = np.radians(heading[:-1])
    steps = np.stack([moves[:, 0] * np.cos(facing) - moves[:, 1] * np.sin(facing),
                      moves[:, 0] * np.sin(facing) + moves[:, 1] * np.cos(facing)], axis=1)
    return np.concatenate([np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]), heading[:, None]], axis=1)


def turn_figures(probe: Judge | None, truths: list[Truth], dream: Dream) -> dict[str, Any]:
    """Of episodes in which a turn key is held after the primed frames:

    heading_error, heading_error_real: mean distance in degrees from the game's heading after `TURN_FRAMES`,
    read from the dream and from the game; None without a probe. revisit_psnr: dream against game in dB where
    the game looks again as at the last primed frame, after a full turn; revisit_psnr_elsewhere: the same dream
    against the game's view half a turn away, what a forgotten room would reach; episodes: how many, turned:
    how many of them the full circle.
    """
    errors: list[tuple[float, float]] = []
    again, elsewhere, episodes = [], [], 0
    for episode, truth in enumerate(truths):
        count = min(len(truth.future), dream.frames.shape[1])
        if count < TURN_FRAMES or "heading" not in truth.variables:
            continue
        episodes += 1
        if probe is not None:
            true, made, real = _paths(probe, truth, dream.frames[episode])
            errors.append((abs(made[TURN_FRAMES, 2] - true[TURN_FRAMES, 2]),
                           abs(real[TURN_FRAMES, 2] - true[TURN_FRAMES, 2])))
        horizon = full_turn(truth.variables["heading"][truth.primed - 1 :][: count + 1])
        if horizon is None:
            continue
        shown = dream.frames[episode, horizon - 1]
        again.append(metrics.squared_error(shown, truth.future[horizon - 1]))
        elsewhere.append(metrics.squared_error(shown, truth.future[horizon // 2 - 1]))
    figures: dict[str, Any] = {}
    for i, name in enumerate(("heading_error", "heading_error_real")):
        figures |= metrics.mean_of(name, np.array([pair[i] for pair in errors]), 2)
    for name, values in (("revisit_psnr", again), ("revisit_psnr_elsewhere", elsewhere)):
        figures[name] = metrics.rounded(metrics.pooled_psnr(np.array(values)), 3)
        span = metrics.interval(np.array(values), metrics.pooled_psnr)
        figures[f"{name}_interval"] = metrics.rounded_pair(span, 3)
    return {**figures, "episodes": episodes, "turned": len(again)}


def full_turn(heading: np.ndarray) -> int | None:
    """The first index at which the view is that of index 0 again, within `SAME_VIEW_DEGREES` and after more than
    half a turn; None where it does not come back. heading: (N,) degrees."""
    turned = np.abs(np.degrees(np.unwrap(np.radians(heading.astype(np.float64) - heading[0]))))
    back = np.flatnonzero(np.abs(turned - 360.0) <= SAME_VIEW_DEGREES)
    return int(back[np.abs(turned[back] - 360.0).argmin()]) if len(back) else None
