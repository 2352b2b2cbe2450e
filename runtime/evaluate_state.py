"""Where things are: in the dream's picture and in the game's, as the game's own finder reads both.

A game that is a `Finder` (models/training/games), such as pong, tells from a picture alone where its
things are. The same finder reads dreamed and real frames, so its own error, which tests hold to the
game's memory, is on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dreamloop.runtime import metrics

if TYPE_CHECKING:
    from dreamloop.models.training.games import Finder
    from dreamloop.runtime.evaluate import Dream, Truth

POOLED_FRAMES = 8  # a horizon stands for itself and the seven frames before it, as far as they are dreamed
NEAR_PIXELS = 4.0


def state_error(finder: Finder, truths: list[Truth], dream: Dream, horizons: tuple[int, ...]
                ) -> dict[str, dict[str, dict[str, Any]]]:
    """thing -> horizon -> figures, over all episodes and `POOLED_FRAMES` frames up to the horizon:

    frames: how many there are in which the game shows the thing; of those, present: the share in
    which the dream shows it, near: in which it is within `NEAR_PIXELS` of the game's, across and
    down, pixels: the median distance where both show it; invented: the share of the frames without
    the thing in which the dream shows one. None where there is nothing to count. Pixels are the
    finder's.
    """
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for horizon in horizons:
        episodes = []
        for episode, truth in enumerate(truths):
            last = min(horizon, dream.frames.shape[1], len(truth.future))
            if last == horizon:
                episodes.append([(finder.find(truth.future[h - 1]), finder.find(dream.frames[episode, h - 1]))
                                 for h in range(max(1, horizon - POOLED_FRAMES + 1), horizon + 1)])
        for thing in episodes[0][0][0] if episodes else figures:
            figures.setdefault(thing, {})[str(horizon)] = _figures([[(real[thing], made[thing]) for real, made in pairs]
                                                                    for pairs in episodes])
    return figures


def _figures(episodes: list[list[tuple[Any, Any]]]) -> dict[str, Any]:
    present, near, invented, away = [], [], [], []
    for pairs in episodes:
        shown = [(real, made) for real, made in pairs if real is not None]
        far = [max(abs(made.x - real.x), abs(made.y - real.y)) for real, made in shown if made is not None]
        absent = [made for real, made in pairs if real is None]
        present.append((len(far), len(shown)))
        near.append((sum(distance <= NEAR_PIXELS for distance in far), len(shown)))
        invented.append((sum(made is not None for made in absent), len(absent)))
        away += far
    return {"frames": sum(shown for _, shown in present), **metrics.share("present", present),
            **metrics.share("near", near), "pixels": round(float(np.median(away)), 2) if away else None,
            **metrics.share("invented", invented)}
