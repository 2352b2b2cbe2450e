"""Input without a player: seeded keys, held for a while, as hands do it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dreamloop.models.core.spec import ActionSpec
from dreamloop.runtime.loop import Command

OPPOSITES = (("left", "right"), ("forward", "backward"), ("up", "down"))
HOLD_FRAMES = (4, 30)


def _opposed(first: str, second: str) -> bool:
    return any((a in first and b in second) or (b in first and a in second) for a, b in OPPOSITES)


class ScriptedSource:
    """A source that holds random keys for 4 to 30 frames, or always the keys in `hold`.

    One time in six nothing is held; otherwise one or two buttons, never two opposite ones.
    """

    def __init__(self, actions: ActionSpec, seed: int = 0, hold: Iterable[str] | None = None) -> None:
        self._names = [button.name for button in actions.buttons]
        self._random = np.random.default_rng(seed)
        self._fixed = None if hold is None else actions.vector(hold)
        self._held: set[str] = set()
        self._left = 0

    def read(self) -> Command:
        if self._fixed is not None:
            return Command(self._fixed)
        if self._left == 0:
            self._left = int(self._random.integers(*HOLD_FRAMES, endpoint=True))
            self._held = self._draw()
        self._left -= 1
        return Command(frozenset(self._held))

    def _draw(self) -> set[str]:
        if not self._names or self._random.random() < 1 / 6:
            return set()
        first, second = (self._names[i] for i in self._random.integers(0, len(self._names), 2))
        return {first} if _opposed(first, second) or self._random.random() < 0.5 else {first, second}
