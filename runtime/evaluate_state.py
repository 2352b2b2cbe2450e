"""Where things are: in the dream's picture and in the game's, as the game's own finder reads both.

A game that is a `Finder` (models/training/games), such as pong, tells from a picture alone where its
things are. The same finder reads dreamed and real frames, so its own error, which tests hold to the
game's memory, is on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dreamloop.models.training.games import Finder
    from dreamloop.runtime.evaluate import Dream, Truth

POOLED_FRAMES = 8  # a horizon stands for itself and the seven frames before it, as far as they are dreamed
NEAR_PIXELS = 4.0


def state_error(finder: Finder, truths: list[Truth], dream: Dream, horizons: tuple[int, ...]
                ) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """thing -> horizon -> figures, over all episodes and `POOLED_FRAMES` frames up to the horizon:

    frames: how many there are in which the game shows the thing; of those, present: the share in
    which the dream shows it, near: in which it is within `NEAR_PIXELS` of the game's, across and
    down, pixels: the median distance where both show it; invented: the share of the frames without
    the thing in which the dream shows one. None where there is nothing to count. Pixels are the
    finder's.
    """
    figures: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for horizon in horizons:
        pairs = []
        for episode, truth in enumerate(truths):
            last = min(horizon, dream.frames.shape[1], len(truth.future))
            if last == horizon:
                pairs += [(finder.find(truth.future[h - 1]), finder.find(dream.frames[episode, h - 1]))
                          for h in range(max(1, horizon - POOLED_FRAMES + 1), horizon + 1)]
        for thing in pairs[0][0] if pairs else figures:
            figures.setdefault(thing, {})[str(horizon)] = _figures([(real[thing], made[thing])
                                                                    for real, made in pairs])
    return figures


def _figures(pairs: list[tuple[Any, Any]]) -> dict[str, float | int | None]:
    shown = [made for real, made in pairs if real is not None]
    away = np.array([max(abs(made.x - real.x), abs(made.y - real.y))
                     for real, made in pairs if real is not None and made is not None])
    absent = [made for real, made in pairs if real is None]

    def share(count: int, of: int) -> float | None:
        return round(count / of, 4) if of else None

    return {"frames": len(shown), "present": share(sum(made is not None for made in shown), len(shown)),
            "near": share(int((away <= NEAR_PIXELS).sum()), len(shown)),
            "pixels": round(float(np.median(away)), 2) if len(away) else None,
            "invented": share(sum(made is not None for made in absent), len(absent))}
