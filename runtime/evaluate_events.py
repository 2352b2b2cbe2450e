"""What should happen in a dream of a shooting game, and does: flashes after shots, monsters, monsters shot.

The game's side comes from the game of the same episode, the dream's from its pictures alone: the game's own
finder of muzzle flashes (`Shooter`), and the probe `sight` for monsters. What the same probe reads on the
game's pictures stands beside each figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dreamloop.runtime import metrics

if TYPE_CHECKING:
    from dreamloop.models.networks.inverse_dynamics import Judge
    from dreamloop.models.training.games import Shooter
    from dreamloop.runtime.evaluate import Dream, Truth

SLACK_FRAMES = 7  # half of the weapon's period: so much may a dreamed flash lie before or after the game's
PRESENT_HORIZON, PRESENT_FRAMES = 64, 16  # monsters are looked for in the 16 frames up to horizon 64
GONE_FRAMES = 35
GONE_STRETCH = 3  # frames in a row without a monster in the crosshair: one may be a misreading
AWAY_DEGREES = 4.0  # of heading: beyond it the crosshair has left the monster, not the monster the crosshair


def flash_figures(shooter: Shooter, truths: list[Truth], dream: Dream) -> dict[str, Any]:
    """`flash_hit`: of the game's shots (`flash_shots` of them), the share with a dreamed flash within
    `SLACK_FRAMES`; `flash_false`: of the dreamed flashes (`flash_flashes`), the share with no shot of the game as
    near. Over the frames that both sides have."""
    hits, falses = [], []
    for episode, truth in enumerate(truths):
        count = min(len(truth.future), dream.frames.shape[1])
        if count < 2:
            continue
        game = shooter.flashes(truth.future[:count])
        dreamed = shooter.flashes(dream.frames[episode, :count])
        inner = slice(SLACK_FRAMES, count - SLACK_FRAMES)  # a partner of those at the ends may lie outside
        near = np.abs(game[:, None] - dreamed[None]) <= SLACK_FRAMES
        of_game, of_dream = (((at >= inner.start) & (at < inner.stop)) for at in (game, dreamed))
        hits.append((int(near.any(1)[of_game].sum()), int(of_game.sum())))
        falses.append((int((~near.any(0))[of_dream].sum()), int(of_dream.sum())))
    return {**metrics.share("flash_hit", hits), **metrics.share("flash_false", falses),
            "flash_shots": sum(all_of for _, all_of in hits), "flash_flashes": sum(all_of for _, all_of in falses)}


def monster_figures(sight: Judge, truths: list[Truth], dream: Dream) -> dict[str, Any]:
    """`monsters_present`: of the frames up to horizon 64 in which the game has a living monster in view
    (`monsters_frames`), the share in which the dream shows one; `monsters_present_real`: what the probe finds in
    the game's own frames; `monsters_invented`: of the frames without, the share in which the dream shows one."""
    from dreamloop.models.networks.probes import read_sight
    present, real, invented = [], [], []
    for episode, truth in enumerate(truths):
        if min(len(truth.future), dream.frames.shape[1]) < PRESENT_HORIZON or not truth.targets:
            continue
        first = PRESENT_HORIZON - PRESENT_FRAMES
        fact = np.array([bool(targets) for targets in truth.targets[truth.primed :][first:PRESENT_HORIZON]])
        read = read_sight(sight, dream.frames[episode, first - 1 : PRESENT_HORIZON])[:, 0]
        of_game = read_sight(sight, truth.future[first - 1 : PRESENT_HORIZON])[:, 0]
        present.append((int(read[fact].sum()), int(fact.sum())))
        real.append((int(of_game[fact].sum()), int(fact.sum())))
        invented.append((int(read[~fact].sum()), int((~fact).sum())))
    return {**metrics.share("monsters_present", present), **metrics.share("monsters_present_real", real),
            **metrics.share("monsters_invented", invented), "monsters_frames": sum(there for _, there in present)}


def gone_figures(shooter: Shooter, sight: Judge, truths: list[Truth], dream: Dream) -> dict[str, Any]:
    """`shot_gone`: of the dream's own shots at a monster in its crosshair (`shot_gone_cases`), the share after
    which the crosshair is empty within a second; `shot_gone_real`, `shot_gone_real_cases`: the same of the
    game's pictures. Cases in which the player turns away first are left out."""
    from dreamloop.models.networks.probes import read_sight
    told: dict[str, list[tuple[int, int]]] = {"": [], "_real": []}
    for episode, truth in enumerate(truths):
        count = min(len(truth.future), dream.frames.shape[1])
        if count <= GONE_FRAMES or "heading" not in truth.variables:
            continue
        heading = truth.variables["heading"][truth.primed :][:count]
        for side, frames in (("", dream.frames[episode, :count]), ("_real", truth.future[:count])):
            aimed = np.concatenate([[False], read_sight(sight, frames)[:, 1]])
            cases, gone = shot_gone(shooter.flashes(frames), aimed, heading)
            told[side].append((gone, cases))
    return {key: value for side, rows in told.items()
            for key, value in {**metrics.share(f"shot_gone{side}", rows),
                               f"shot_gone{side}_cases": sum(cases for _, cases in rows)}.items()}


def shot_gone(flashes: np.ndarray, aimed: np.ndarray, heading: np.ndarray) -> tuple[int, int]:
    """Cases, and those of them that ended with an empty crosshair. flashes: frames of shots; aimed: (F,) bool, a
    monster is in the crosshair; heading: (F,) degrees."""
    cases = gone = 0
    for t in flashes:
        if t + GONE_FRAMES >= len(aimed) or not aimed[t - 1 : t + 1].all():
            continue
        turned = np.abs((heading[t : t + GONE_FRAMES + 1] - heading[t] + 180) % 360 - 180) > AWAY_DEGREES
        until = int(turned.argmax()) if turned.any() else GONE_FRAMES + 1
        empty = ~aimed[t : t + until]
        stretch = np.convolve(empty, np.ones(GONE_STRETCH), "valid") if len(empty) >= GONE_STRETCH else np.zeros(0)
        if (stretch == GONE_STRETCH).any():
            gone += 1
        elif turned.any():
            continue
        cases += 1
    return cases, gone
