"""A human as the player of a real game: its frames in a window, its keys, its speed.

    dreamloop record gymnasium:MountainCar-v0 OUT --policy human --frames 3000

The frame on the screen is the one that the pressed keys answer, as in the dream. Esc ends the
recording; what was played is kept. Importing this file imports pygame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pygame

from dreamloop.demos.bindings import default_bindings
from dreamloop.demos.controls import Controls
from dreamloop.demos.overlay import hint
from dreamloop.demos.player import WINDOW_WIDTH
from dreamloop.demos.screen import picture, start_display
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec
from dreamloop.runtime.session import Action


def human(game: str) -> Any:
    """A `Player` (models/training/games) that opens a window when it first sees a frame. Raises
    `NoDisplay` where there is no screen."""
    from dreamloop.models.training.games import Player, View, open_game
    start_display()
    with open_game(game) as opened:  # a view does not tell the speed
        fps, name = opened.fps, opened.name
    window = HumanWindow(name, fps)

    def make(actions: ActionSpec, rng: np.random.Generator) -> Any:
        window.bind(actions)

        def act(view: View) -> np.ndarray:
            return actions.vector(window.held_after(view.frame))

        return act

    return Player("human", 1.0, make)


class HumanWindow:
    """Shows frames at `fps` and tells which buttons are down."""

    def __init__(self, name: str, fps: float) -> None:
        self._name, self._fps = name, fps
        self._clock = pygame.time.Clock()
        self._controls: Controls | None = None
        self._hint = ""
        self._open = False
        self._left = False

    def bind(self, actions: ActionSpec) -> None:
        """The keys of a game, as its world will have them; a second call does nothing."""
        if self._controls is not None:
            return
        bindings = default_bindings(actions)
        if not any(bindings.actions.values()):
            raise DreamloopError(f"{self._name}: none of its buttons has a key")
        self._controls = Controls(actions, bindings)
        self._hint = hint(bindings, pad=False)

    def held_after(self, frame: np.ndarray) -> Action:
        """Show a frame, (H, W, 3) uint8, for as long as it lasts; then the buttons that are down, or were
        since. Raises `PlayerLeft` once the window is closed."""
        from dreamloop.models.training.games import PlayerLeft
        assert self._controls is not None, "keys are bound first"
        if self._left:
            raise PlayerLeft
        self._show(frame)
        self._clock.tick(self._fps)
        for event in pygame.event.get():
            if "quit" in self._controls.feed(event) or event.type == pygame.QUIT:
                self._left = True
                self._controls.close()
                pygame.display.quit()
                raise PlayerLeft
        return self._controls.action()

    def _show(self, frame: np.ndarray) -> None:
        height, width, _ = frame.shape
        scale = max(1, round(WINDOW_WIDTH / width))
        if not self._open:
            pygame.display.set_mode((width * scale, height * scale))
            pygame.display.set_caption(f"{self._name} - recording     {self._hint}     Esc: end")
            self._open = True
        surface = pygame.display.get_surface()
        assert surface is not None
        pygame.transform.scale(picture(frame).convert(surface), surface.get_size(), surface)
        pygame.display.flip()
